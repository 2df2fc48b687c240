"""``edit``: an image as another prompt has it, all else kept.

    edit("cat.png", "a cat with sunglasses", source="a cat")      # a given image
    edit(prompt="a blue heart", source="a red heart", seed=3)     # one that is drawn first

Source and target are one batch, rows 0 and 1, from the same noise: what the prompts share stays alike.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ... import prompts, samplers
from ...errors import InputError, unknown, warn
from ...guidance import prompt_to_prompt as p2p
from ...guidance.attention import attention_control
from ...io.images import open_image
from ...io.inputs import open_mask
from ...models import Model
from ...models.registry import short_name
from ...noise import initial
from ...options import fill
from ...samplers import editing, image_to_image, strength_table
from ...schedules import strength_sigma
from ...types import Denoise
from ...version import __version__
from ..generation.canvas import canvas
from ..generation.samples import RECIPE
from ..loading import loaded, of_run, settings
from .options import EditOptions
from .result import EditResult

WORDS = 0.3  # where the words of ``only`` are, as a part of the greatest disagreement
KEPT = 0.6  # what the prompts disagree less about stays; chosen on bench/edits.txt (docs/edit.md)
PLACED = (0.5, 0.6, 0.7)  # parts of noise at which words are looked for (DiffEdit takes 0.5)
SOURCE_SCALE = 1.5  # guidance of FlowEdit's walk away from the source (Kulikov et al. 2024, sec. 5)


def edit(
    image: str | Path | Image.Image | None = None,
    prompt: str = "",
    model: Model | str | Path = "emoji",
    **options: Any,
) -> EditResult:
    """An image as ``prompt`` describes it; what the prompts share, and what is outside of a mask, is kept.

    Args:
        image: A file or image; without one, ``source`` is drawn first.
        prompt: What the result shows.
        model: A text-to-image model: a name, file or folder.
        options: See :class:`EditOptions <fastdiffusion.tasks.editing.options.EditOptions>`: source, method, strength,
            only, mask, reweight, steps, scale, seed, ...

    Raises:
        InputError: No prompt, no image and no source, a word of ``only`` or ``reweight`` that is in no prompt.
    """
    chosen = fill(EditOptions, **options)
    ready = loaded(model, chosen)
    if not prompt.strip():
        raise InputError(
            'Say what the result shows. Example: edit("cat.png", "a cat with sunglasses", source="a cat").'
        )
    if ready.conditioner is None:
        raise InputError("This model was trained without captions, and edits by words. Take model='emoji'.")
    if image is None and not chosen.source.strip():
        raise InputError("Give an image, or say what is drawn first: source='a red heart'.")
    for note in prompts.notes(ready.conditioner, (prompt, chosen.source)):
        warn(note)
    method, why = _method(chosen)
    notes = [why] if why else []
    with torch.no_grad():
        work, mask = _Edit(ready, prompt, replace(chosen, method=method)), None
        if image is None:
            source, result = work.generated()
            if chosen.mask is not None:
                mask = open_mask(chosen.mask, (source.shape[-2], source.shape[-1]))
        else:
            fitted = canvas(open_image(image), ready.image_shape, chosen.mask)
            mask, notes = fitted.mask, [*notes, *fitted.notes]
            source, result = work.of_image(fitted.image)
        source, result = source.clamp(-1, 1), result.clamp(-1, 1)
        if (mask := work.mask(source, mask)) is not None:
            result = torch.lerp(source, result, mask)
    recipe = {
        "fastdiffusion": __version__,
        "recipe": RECIPE,
        "verb": "edit",
        "model": {"name": short_name(model), "sha256": ready.id, **settings(ready)},
        "parameters": {"prompt": prompt, **work.recorded(), "image": None if image is None else _named(image)},
    }
    return EditResult(result, ("edited",), recipe, tuple(notes), source, mask)


def _method(chosen: EditOptions) -> tuple[str, str]:
    """The method, and if it was chosen here, why."""
    if chosen.method != "auto":
        if chosen.method != "sdedit" and not chosen.source.strip():
            raise InputError(f"{chosen.method} compares with what the image shows. Say it: source='a cat'.")
        return chosen.method, ""
    if not chosen.source.strip():
        return "sdedit", "Method sdedit: nothing says what the image shows. With --source more of it is kept."
    return "flowedit", "Method flowedit, which kept most for the same change when it was measured (docs/edit.md)."


def _named(image: str | Path | Image.Image) -> str:
    return "an image given in Python" if isinstance(image, Image.Image) else Path(image).name


class _Edit:
    """One edit: the batch of source and target, and how they are denoised together."""

    def __init__(self, model: Model, prompt: str, options: EditOptions):
        assert model.conditioner is not None
        self.model, self.options = model, options
        self.texts = (options.source, prompt)
        self.tokens = [[text[a:b] for a, b in model.conditioner.token_spans(text)] for text in self.texts]
        self.cond = model.encode_prompt(list(self.texts))
        self.null = model.conditioner.null(1)
        self.scale = model.scale if options.scale is None else options.scale
        self.guided = model.guide(model.denoise, self.scale, self.null) if self.scale != 1 else model.denoise
        self.columns = p2p.align(*self.tokens)
        self.weights = self._weights()

    # ---- the ways -------------------------------------------------------------------------------------------------

    def generated(self) -> tuple[Tensor, Tensor]:
        """A source that is drawn first, and the result."""
        table, seed = self.model.table(self.options.steps), self.options.seed
        x = table.sigmas[0] * initial([seed], self.model.shape).to(self.model.device)
        if self.options.method != "p2p":
            drawn = self.model.decode(samplers.final(samplers.run(self.guided, x, table, self.cond[[0]], [seed])))
            return self.of_image(drawn.clamp(-1, 1)[0])
        both = x.repeat(2, *[1] * (x.ndim - 1))
        latents = samplers.final(samplers.run(self._controlled(self.guided), both, table, self.cond, [seed] * 2))
        source, result = self.model.decode(latents).cpu().split(1)
        return source, result

    def of_image(self, image: Float[Tensor, "c h w"]) -> tuple[Tensor, Tensor]:
        """The image, and the result."""
        source = image[None].to(self.model.device)
        if self.options.strength == 0:
            return source.cpu(), source.cpu()
        x0 = self.model.encode(source)
        made = {"p2p": self._inverted, "flowedit": self._walked, "sdedit": self._noised}[self.options.method](x0)
        return source.cpu(), self.model.decode(made).cpu()

    def _inverted(self, x0: Tensor) -> Tensor:
        """Prompt-to-prompt on the noise of an edit-friendly inversion."""
        table = samplers.table("euler_ancestral", self._levels())
        source, seeds = self.cond[[0]], [self.options.seed]
        found = editing.edit_friendly(self.model.denoise, x0, table, source, seeds)
        both = found.x.repeat(2, *[1] * (x0.ndim - 1))
        denoise = p2p.pair(self.model.denoise, self._controlled(self.guided))
        made = samplers.final(samplers.run(denoise, both, table, self.cond, paths=found.paths(2)))
        return made[1:] + found.rest

    def _walked(self, x0: Tensor) -> Tensor:
        source = self.model.guide(self.model.denoise, min(SOURCE_SCALE, self.scale), self.null)
        conds = (self.cond[[0]], self.cond[[1]])
        return editing.flow_edit(source, self.guided, x0, self._levels(), [self.options.seed], conds)

    def _noised(self, x0: Tensor) -> Tensor:
        table = strength_table(self.options.strength, self.options.steps, self._schedule, self.model.sigma_data,
                               self.model.sigma_max)  # fmt: skip
        assert table is not None
        start = table.sigmas[0] * initial([self.options.seed], x0.shape[1:]).to(x0)
        return samplers.final(samplers.run(self.guided, start + (x0 if self.options.strength < 1 else 0), table,
                                           self.cond[[1]], [self.options.seed]))  # fmt: skip

    def _schedule(self, n: int) -> Tensor:
        return self.model.schedule(n, None)

    def _levels(self) -> Tensor:
        high = strength_sigma(self.options.strength, self.model.sigma_data, self.model.sigma_max)
        return image_to_image.below(high, self.options.steps, self._schedule)

    def _controlled(self, denoise: Denoise) -> Denoise:
        """With the source's attention in the target, unless both windows are empty."""
        o = self.options
        if o.method != "p2p" or (o.cross == o.self_attention == 0 and not self.weights):
            return denoise
        made = p2p.controllers(self.columns, (0.0, o.cross), (0.0, o.self_attention), self.weights)
        return attention_control(denoise, self.model.modules["net"], *made)

    # ---- words ----------------------------------------------------------------------------------------------------

    def find(self, phrase: str, which: int) -> list[int]:
        """The tokens of a prompt that make up some words; empty if it has none of them."""
        text = self.texts[which].casefold()
        assert self.model.conditioner is not None
        spans = self.model.conditioner.token_spans(self.texts[which])
        parts = phrase.casefold().split()
        places = [found.span() for part in parts for found in re.finditer(rf"(?<!\w){re.escape(part)}(?!\w)", text)]
        return [i for i, (a, b) in enumerate(spans) if a < b and any(a < end and start < b for start, end in places)]

    def _weights(self) -> dict[int, float]:
        weights: dict[int, float] = {}
        for entry in filter(None, (part.strip() for part in self.options.reweight.split(","))):
            name, _, factor = entry.rpartition(":")
            try:
                value = float(factor)
            except ValueError:
                raise InputError(f"reweight is written WORD:FACTOR, got {entry!r}. Example: 'sunglasses:2'.") from None
            if not (found := self.find(name, 1)):
                raise unknown("word of the new prompt", name, self.texts[1].split())
            weights |= dict.fromkeys(found, value)
        return weights

    def mask(
        self, source: Float[Tensor, "1 c h w"], marked: Float[Tensor, "1 h w"] | None
    ) -> Float[Tensor, "1 1 h w"] | None:
        """Where pixels may change: a given mask, where the words of ``only`` are, or where the prompts disagree."""
        masks = [] if marked is None else [marked[None]]
        if self.options.only:
            masks.append(self._places(source, *self._with_and_without(self.options.only), WORDS))
        if not masks and self.options.keep and self.options.source.strip():
            masks.append(self._places(source, *self.texts, KEPT))
        return torch.stack(masks).prod(0) if masks else None

    def _with_and_without(self, phrase: str) -> tuple[str, str]:
        whole = next((text for i, text in enumerate(self.texts) if self.find(phrase, i)), None)
        if whole is None:
            raise unknown("word of the prompts", phrase, " ".join(self.texts).split())
        parts = phrase.casefold().split()
        return whole, " ".join(name for name in whole.split() if name.casefold() not in parts)

    def _places(self, source: Tensor, first: str, second: str, threshold: float) -> Float[Tensor, "1 1 h w"]:
        """Where two prompts disagree about the image."""
        x0, cond = self.model.encode(source.to(self.model.device)), self.model.encode_prompt([first, second])
        sigmas = [strength_sigma(part, self.model.sigma_data) for part in PLACED]
        places = editing.difference_map(self.model.denoise, x0, sigmas, cond[[0]], cond[[1]], range(3))
        mask = (places > threshold).float()[None, None]
        return torch.nn.functional.interpolate(mask, source.shape[-2:], mode="bilinear").cpu()

    def recorded(self) -> dict[str, Any]:
        """The options as a recipe keeps them."""
        plain = of_run(vars(self.options))
        return {**plain, "mask": None if self.options.mask is None else _named(self.options.mask), "scale": self.scale}
