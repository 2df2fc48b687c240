"""The ways to edit one image: each takes its latents and returns the result's.

Source and target are one batch, rows 0 and 1, from the same noise: what the prompts share stays alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ... import samplers
from ...errors import InputError
from ...guidance import Region, inpaint, regional
from ...guidance import prompt_to_prompt as p2p
from ...guidance.attention import attention_control
from ...guidance.core import guidance
from ...models import Model
from ...noise import initial
from ...samplers import editing, image_to_image, strength_table
from ...samplers.adaptive import rk45
from ...schedules import Sigmas, strength_sigma
from ...types import Cond, Denoise
from ..word_masks import CUT, filled, phrases, soft, word_map
from . import inversions
from .alignment import SOURCE, TARGET, Alignment, removed
from .imagic import imagic
from .options import EditOptions, regions_of
from .reweighting import removals, reweighted

AGREE = 0.7  # what the prompts disagree less about stays; chosen on bench/edits.txt (docs/edit.md)
PLACED = (0.5, 0.6, 0.7)  # parts of noise at which places are looked for (DiffEdit takes 0.5)
SOURCE_SCALE = 1.5  # guidance of FlowEdit's walk away from the source (Kulikov et al. 2024, sec. 5)
STRENGTH = {"flowedit": 0.7, "sdedit": 0.7, "magicmix": 0.75, "imagic": 0.7}  # of the others INVERTED
INVERTED = 0.8
IMAGIC_STEPS = 150
Latents = Float[Tensor, "1 c h w"]
Mask = Float[Tensor, "1 1 h w"]


class Edit:
    """One edit of a model: the two prompts, how they are denoised together, and where."""

    def __init__(self, model: Model, target: str, options: EditOptions, method: str):
        assert model.conditioner is not None
        self.model, self.options, self.method = model, options, method
        self.aligned = Alignment(model.conditioner, options.source, target, options)
        self.cond = model.encode_prompt(list(self.aligned.texts))
        self.scale = model.scale if options.scale is None else options.scale
        self.strength = STRENGTH.get(method, INVERTED) if options.strength is None else options.strength
        self.notes: list[str] = []
        self._image: Tensor | None = None

    # ---- a source that is drawn, and one that is given ----------------------------------------------------------

    def drawn(self) -> tuple[Tensor, Tensor | None]:
        """The source as the model draws it; with "p2p" also the result, which is drawn beside it."""
        table, seed = self.model.table(self.options.steps), self.options.seed
        x = table.sigmas[0] * initial([seed], self.model.shape).to(self.model.device)
        if self.method != "p2p":
            latents = samplers.final(samplers.run(self.guided, x, table, self.cond[[SOURCE]], [seed]))
            return self.model.decode(latents).cpu(), None
        both = x.repeat(2, *[1] * (x.ndim - 1))
        latents = samplers.final(
            samplers.run(self.weighed(self.guided, self.aligned.attends), both, table, self.cond, [seed] * 2)
        )
        source, result = self.model.decode(latents).cpu().split(1)
        return source, result

    def of(self, image: Float[Tensor, "1 c h w"], mask: Mask | None) -> Float[Tensor, "1 c h w"]:
        """The result of a given image, drawn where the mask allows it; the mask is of pixels."""
        if self.strength == 0:
            return image
        self._image = image.to(self.model.device)
        x0 = self.model.encode(self._image)
        method = WAYS.get(self.method, Edit._inverted)
        return self.model.decode(method(self, x0, self._of_latents(mask, x0))).cpu()

    def _of_latents(self, mask: Float[Tensor, "1 1 i j"] | None, x0: Latents) -> Mask | None:
        """Each latent may change as much as any pixel of its square."""
        return None if mask is None else functional.adaptive_max_pool2d(mask, list(x0.shape[-2:])).to(x0)

    # ---- the ways -----------------------------------------------------------------------------------------------

    def _inverted(self, x0: Latents, mask: Mask | None) -> Latents:
        """The target drawn beside the inverted source; the latter's attention holds it, but for "diffedit"."""
        attends = self.method != "diffedit" and self.aligned.attends
        name = {"p2p": "edit-friendly", "diffedit": "direct"}.get(self.method, self.method)
        task = inversions.Task(
            self.model, x0, self.cond[[SOURCE]], self.aligned.texts[SOURCE], self._levels(), self._guide, self.scale,
            self.options.seed, self.options.extra_steps or inversions.NULL_TEXT_ITERATIONS, self.options.cached,
        )  # fmt: skip
        found = inversions.inverted(name, task)
        self.notes.append(found.note)
        target = self.weighed(found.denoise, attends)
        both = found.inversion.x.repeat(2, *[1] * (x0.ndim - 1))
        denoise = p2p.beside(target, found.known, mask, attends)
        run = samplers.run(denoise, both, found.inversion.table, self.cond, paths=found.inversion.paths(2))
        return samplers.final(run)[1:]

    def _flow_ode(self, x0: Latents, mask: Mask | None) -> Latents:
        """Up along the source's flow and down along the target's, both to a tolerance."""
        started, levels, source = time.monotonic(), self._levels(), self.cond[[SOURCE]]
        up, down = (float(levels[-2]), float(levels[0])), (float(levels[0]), float(levels[-2]))

        def flow(denoise: Denoise, x: Tensor, ends: tuple[float, float], cond: Cond) -> Tensor:
            return samplers.final(rk45(denoise, x, *ends, cond, 1e-3, 1e-3))

        noisy = flow(self.model.denoise, x0, up, source)
        seconds = time.monotonic() - started
        error = float((flow(self.model.denoise, noisy, down, source) - x0).abs().max() / x0.abs().max())
        self.notes.append(
            f"Inversion flow-ode: {seconds:.1f} s; under its own prompt the image comes back within {error:.1e} of its "
            "largest value."
        )
        made = flow(self.weighed(self.guided), noisy, down, self.cond[[TARGET]])
        return made if mask is None else torch.lerp(x0, made, mask)

    def _walked(self, x0: Latents, mask: Mask | None) -> Latents:
        source = self.model.guide(self.model.denoise, min(SOURCE_SCALE, self.scale), self.model.null(1))
        conds = (self.cond[[SOURCE]], self.cond[[TARGET]])
        made = editing.flow_edit(source, self.weighed(self.guided), x0, self._levels(), [self.options.seed], conds)
        return made if mask is None else torch.lerp(x0, made, mask)

    def _noised(self, x0: Latents, mask: Mask | None) -> Latents:
        """Noise, and the target takes it away; a gray mask is a part of the strength (differential diffusion)."""
        strengths = self._strengths(x0) if mask is None else mask * self._strengths(x0)
        strength = float(strengths.max())
        if strength == 0:
            return x0
        table = strength_table(
            strength, self.options.steps, self._schedule, self.model.sigma_data, self.model.sigma_max
        )
        assert table is not None
        start = table.sigmas[0] * initial([self.options.seed], x0.shape[1:]).to(x0)
        x, denoise = start + (x0 if strength < 1 else 0), self._in_regions(x0)
        even = mask is None and float(strengths.min()) == strength
        slack = (1.001 * strengths).clamp(max=1)  # the level that a strength means is not to be rounded away
        held = denoise if even else inpaint(denoise, x0, slack, self.model.sigma_data)
        return samplers.final(samplers.run(held, x, table, self.cond[[TARGET]], [self.options.seed]))

    def _strengths(self, like: Tensor) -> Mask:
        """The strength at each place: of the regions that have one, or the usual one."""
        made = like.new_full((1, 1, *like.shape[-2:]), self.strength)
        for place, text in regions_of(self.options.regions):
            if isinstance(text, float):
                left, top, right, bottom = place.box(*like.shape[-2:])
                made[..., top:bottom, left:right] = text
        return made

    def _in_regions(self, like: Tensor) -> Denoise:
        """The target's denoiser, and in regions with a prompt of their own that one's."""
        step, (height, width), parts = getattr(self.model.denoise, "patch", 1), like.shape[-2:], []
        for place, text in regions_of(self.options.regions):
            if isinstance(text, str):
                parts.append(
                    Region(_under(self.guided, self.model.encode_prompt([text])), place.box(height, width, step))
                )
        size = (self.model.shape[-2], self.model.shape[-1])
        if any(region.box != (0, 0, width, height) for region in parts):
            high, wide = (side * self.model.factor for side in size)
            self.notes.append(
                f"A region shows its part of what this model draws at {wide}x{high} pixels. For whole things side by "
                f"side: fastdiffusion sample --image IN.png --regions ... --size {2 * wide}x{high}."
            )
        whole = self.weighed(self.guided)
        return regional(_under(whole, self.cond[[TARGET]]), parts, size) if parts else whole

    def _mixed(self, x0: Latents, mask: Mask | None) -> Latents:
        low = strength_sigma(self.strength / 2, self.model.sigma_data)
        made = editing.magic_mix(
            self.weighed(self.guided), x0, self._levels(), low, [self.options.seed], self.cond[[TARGET]]
        )
        return made if mask is None else torch.lerp(x0, made, mask)

    def _adapted(self, x0: Latents, mask: Mask | None) -> Latents:
        if self.aligned.weights:
            raise InputError(
                "Imagic moves the embedding of the whole prompt, and weighs no words. Take another method."
            )
        steps = self.options.extra_steps or IMAGIC_STEPS
        made, note = imagic(
            self.model, x0, self.cond[[TARGET]], self._levels_from(1.0), self.scale, self.strength, steps,
            self.options.seed,
        )  # fmt: skip
        self.notes.append(note)
        return made if mask is None else torch.lerp(x0, made, mask)

    def _referred(self, x0: Latents, mask: Mask | None) -> Latents:
        """The image given to the network as a reference; the target is drawn from noise alone."""
        family = self.model.denoise.with_reference(self._image)  # type: ignore[attr-defined]
        seeing = replace(self.model, denoise=family, conditioner=family)
        work = Edit(seeing, self.aligned.texts[TARGET], self.options, self.method)
        table, seed = self.model.table(self.options.steps), self.options.seed
        x = table.sigmas[0] * initial([seed], x0.shape[1:]).to(x0)
        made = samplers.final(samplers.run(work.weighed(work.guided), x, table, work.cond[[TARGET]], [seed]))
        return made if mask is None else torch.lerp(x0, made, mask)

    # ---- denoisers ----------------------------------------------------------------------------------------------

    @cached_property
    def guided(self) -> Denoise:
        """The model under its guidance."""
        return self._guide(self.model.null(1))

    def _guide(self, uncond: Cond | None) -> Denoise:
        return self.model.guide(self.model.denoise, self.scale, uncond) if self.scale != 1 else self.model.denoise

    def weighed(self, denoise: Denoise, attends: bool = False) -> Denoise:
        """With the target's words at their weights; ``attends``: and with the source's attention."""
        if attends:
            self.notes.append(self.aligned.note)
        parts = removals(self.aligned.weights)
        conditioner, made, conds = self.model.conditioner, [], []
        assert conditioner is not None
        for _, gone in parts:
            aligned = self.aligned.without(gone, conditioner)
            made.append(self.controlled(denoise, aligned) if attends else denoise)
            conds.append(self.model.encode_prompt(list(aligned.texts)) if gone else self.cond)
        if [gone for _, gone in parts] == [()]:
            return made[0]
        amounts = [amount for amount, _ in parts]
        return reweighted(*made, amounts=amounts, conds=conds, normalize=self.options.normalize)

    def controlled(self, denoise: Denoise, aligned: Alignment) -> Denoise:
        """With the source's attention in the target, in its windows."""
        made = p2p.controllers(aligned.columns, aligned.cross, aligned.self_attention, windows=aligned.windows)
        return attention_control(denoise, self.model.modules["net"], *made)

    def _schedule(self, n: int) -> Sigmas:
        return self.model.schedule(n, None)

    def _levels(self) -> Sigmas:
        return self._levels_from(self.strength)

    def _levels_from(self, strength: float) -> Sigmas:
        high = strength_sigma(strength, self.model.sigma_data, self.model.sigma_max)
        return image_to_image.below(high, self.options.steps, self._schedule)

    # ---- places -------------------------------------------------------------------------------------------------

    def mask(self, source: Float[Tensor, "1 c h w"], marked: Mask | None) -> Mask | None:
        """Where pixels may change: a given mask, where the words of ``only`` are, or where the prompts disagree."""
        options, cut = self.options, self.options.threshold
        masks = [] if marked is None else [marked]
        if only := phrases(options.only):
            places = [self._words(source, phrase) for phrase in only]
            masks.append(soft(torch.stack(places).amax(0), CUT if cut is None else cut, source))
        if not masks and options.keep and options.source.strip():
            masks.append(filled(self._disagreement(source), AGREE if cut is None else cut, source))
        for phrase in phrases(options.protect):
            masks.append(1 - soft(self._words(source, phrase), CUT if cut is None else cut, source))
        if any(isinstance(text, float) for _, text in regions_of(options.regions)):
            masks.append((self._strengths(source) > 0).float())
        return torch.stack(masks).prod(0) if masks else None

    def _words(self, source: Float[Tensor, "1 c h w"], phrase: str) -> Float[Tensor, "1 1 i j"]:
        """Where the words of one of the prompts are, from 0 to 1, at the size of the latents."""
        found = word_map(self.model, source[0], self.aligned.prompt_with(phrase), phrase)
        factor = self.model.factor
        return functional.avg_pool2d(found.map[None], factor)

    def _disagreement(self, source: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 1 i j"]:
        """Where the prompts disagree, or the target does with itself without the words that are weighed."""
        (old, new), weighed = self.aligned.texts, [phrase for phrase, w in self.aligned.weights.items() if w != 1]
        pairs = [(old, new)] if old.split() != new.split() or not weighed else []
        pairs += [(new, removed(new, weighed))] if weighed else []
        return torch.stack([self._where(source, *pair) for pair in pairs]).amax(0)

    def _where(self, source: Tensor, first: str, second: str) -> Float[Tensor, "1 1 i j"]:
        """Where two prompts disagree about the image, from 0 to 1, at the size of its latents."""
        x0, cond = self.model.encode(source.to(self.model.device)), self.model.encode_prompt([first, second])
        sigmas = [strength_sigma(part, self.model.sigma_data) for part in PLACED]
        return editing.difference_map(self.model.denoise, x0, sigmas, cond[[0]], cond[[1]], range(3))[None, None].cpu()


@guidance
def _under(denoise: Denoise, fixed: Cond) -> Denoise:
    """A denoiser of one prompt, whatever the run's."""
    return lambda x, sigma, cond=None: denoise(x, sigma, fixed.expand(len(x)))


WAYS: dict[str, Callable[[Edit, Latents, Mask | None], Latents]] = {
    "flow-ode": Edit._flow_ode,
    "flowedit": Edit._walked,
    "sdedit": Edit._noised,
    "magicmix": Edit._mixed,
    "imagic": Edit._adapted,
    "reference": Edit._referred,
}
