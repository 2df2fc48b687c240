"""``explain``: which words made which pixels.

    explain("out.png").save("out")                  # an image with its recipe: the run is made again, and asked
    explain("a red heart on blue", seed=3)          # one that is drawn now

Three questions are asked. Where does a word act (maps, for every step of the run)? How much of the image, or of a part
of it, is due to each word, for or against it (integrated gradients through the run)? And what if the word were not
there (occlusion: the run again without it)? Where the answers differ, the numbers say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InputError
from ...io.images import ENDS, safe_name
from ...io.inputs import open_mask
from ...io.metadata import without_paths
from ...models import Model, Size
from ...options import fill
from ...prompts.terms import Terms, terms
from ...types import Cond
from .. import word_masks
from ..generation.options import SampleOptions
from ..generation.plan import Plan, plan
from ..generation.recipe import followed
from ..loading import LOADING
from ..text_image import clip as text_image
from .integrated import Attribution, Run, Target, attribute, by_term, secants
from .options import ExplainOptions, corners
from .result import Explanation, WordNumbers, faded, rank_correlation

# Options of an image that is drawn now.
DRAWN = ("seed", "steps", "scale", "negative_prompt", "image", "size", *LOADING)
ALLOWED = 0.02  # of the whole, what the integral may lack before shares are taken from finite steps


def explain(what: str | Path, model: Model | str | Path | None = None, **options: Any) -> Explanation:
    """Which words made which pixels.

    Args:
        what: An image that carries its recipe, which is followed; or a prompt, which is drawn.
        model: A text-to-image model; by default the one that the recipe names, of a prompt "emoji".
        options: See :class:`ExplainOptions <fastdiffusion.tasks.attribution.options.ExplainOptions>`: seed, steps, box,
            mask, toward, maps, points, ...

    Raises:
        InputError: No prompt, one of several texts, a model of other things than images, a box outside the image.
        DataError: An image without a recipe, or with one that cannot be followed.
    """
    chosen = fill(ExplainOptions, **options)
    planned, index, ignored = _run(what, model, chosen)
    if planned.prompts is None or planned.model.conditioner is None or not planned.prompts[index].strip():
        raise InputError("There are no words to explain: the image was drawn without a prompt.")
    if planned.table is None:
        raise InputError("At strength 0 an image is its own source, and no word made it. Explain another.")
    if planned.regions:
        raise InputError("Regions are several prompts, and words are explained in one. Explain an image without them.")
    if len(planned.shape) != 3 or planned.size is None:
        raise InputError("This model makes films or no images, and explain reads single images.")
    parsed = terms(planned.prompts[index], planned.model.conditioner)
    rows = chosen.batch_size or (4 if planned.size[0] * planned.size[1] <= 128**2 else 1)
    run = Run(planned, index, rows)
    with torch.no_grad():
        watched = _watch(run)
        region = _region(chosen, planned.size)
        method, why, maps = _maps(run, parsed, watched, planned.size, chosen.maps)
        blank = run.at([0.0])
        target = _target(chosen, watched.image, blank, region)
        low, high = target(blank).item(), target(watched.image).item()
        without = _without(run, parsed, target, planned.size, high)
    found = _integrated(run, parsed, target, planned.size, chosen.points, rows)
    numbers = _numbers(parsed, found, maps, region, without, high - low)
    notes = [*ignored, *planned.notes, *_notes(parsed, found, why, chosen)]
    recipe = {
        **planned.samples(torch.zeros(1, *watched.image.shape[1:]), run.batch).recipe_of(0),
        "verb": "explain",
        "explained": without_paths(_kept(chosen), existing=True),
    }
    names = ("explained", *(safe_name(f"map-{i}-{term.text}") for i, term in enumerate(parsed.content)))
    shown = watched.image.clamp(-1, 1).cpu()
    sheet = torch.cat([shown, torch.stack([faded(shown[0], each) for each in maps.mean(0)])]) if len(maps) else shown
    return Explanation(
        sheet,
        names,
        recipe,
        tuple(dict.fromkeys(notes)),
        text=parsed.text,
        terms=tuple(numbers),
        maps=maps,
        steps=watched.images,
        sigmas=watched.sigmas,
        method=method,
        region=region,
        attribution=found,
        box=None if chosen.box is None else corners(chosen.box),
        agreement=_agreement(numbers, found),
        toward=chosen.toward,
    )


def _run(what: str | Path, model: Model | str | Path | None, chosen: ExplainOptions) -> tuple[Plan, int, list[str]]:
    """The plan of a run, which image of it is meant, and which options it has no use for."""
    path = Path(what)
    if "/" in str(what)[:200] and path.is_dir():
        raise InputError(f"{str(what)!r} is a folder. Explain one of its images.")
    if isinstance(what, Path) or path.suffix.lower() in ENDS or (len(str(what)) < 200 and path.is_file()):
        made, wanted, _ = followed(path, model, chosen.device)
        if len(wanted) != 1:
            raise InputError(f"{path.name!r} is a sheet of {len(wanted)} images. Explain one of them.")
        usual = ExplainOptions()
        named = [n for n in (*DRAWN, "strength") if n != "device" and getattr(chosen, n) != getattr(usual, n)]
        note = f"The image's recipe says how it was drawn: {', '.join(named)} had no effect."
        return made, wanted.start, [note] * bool(named)
    drawn: dict[str, Any] = {name: getattr(chosen, name) for name in DRAWN}
    started: dict[str, Any] = {} if chosen.image is None else {"strength": chosen.strength}
    return plan("emoji" if model is None else model, SampleOptions(prompt=what, n=1, **drawn, **started)), 0, []


class Watched(NamedTuple):
    """A run that was watched: its image, and at each evaluation the state, its noise level and the estimate."""

    image: Float[Tensor, "1 c h w"]
    states: list[tuple[Tensor, float]]
    images: Float[Tensor, "k c h w"]
    sigmas: tuple[float, ...]


def _watch(run: Run) -> Watched:
    model, states, estimates = run.plan.model, [], []
    steps = run.steps()
    x = None
    for step in steps:
        states.append((run.first if x is None else x, step.sigma))
        estimates.append(step.x0)
        x = step.x
    assert x is not None
    latents = torch.cat(estimates)
    small = latents.shape[-1] * latents.shape[-2] * model.factor**2 <= 256**2
    images = torch.cat([run.decode(each) for each in latents.split(1)]) if small else run.plan.preview(latents)
    return Watched(run.decode(x), states, images.clamp(-1, 1).cpu(), tuple(sigma for _, sigma in states))


def _maps(
    run: Run, parsed: Terms, watched: Watched, size: Size, asked: str
) -> tuple[str, str, Float[Tensor, "k t h w"]]:
    """How maps are made, why, and one of each word at each evaluation."""
    model, method, why = run.plan.model, asked, ""
    if asked == "auto":
        some = watched.states[:: max(1, len(watched.states) // 4)]
        method, why = word_masks.choose(model, parsed, some, size)
    if method == "attention":
        made = [word_masks.of_attention(model, parsed, [state], size, run.cond) for state in watched.states]
        return method, why, torch.stack(made)
    conds = [run.cond, *(word_masks.condition(model, parsed, size, parsed.without([term])) for term in parsed.content)]
    return method, why, torch.stack([_differences(model, conds, *state, size) for state in watched.states])


def _differences(model: Model, conds: Sequence[Cond], x: Tensor, sigma: float, size: Size) -> Float[Tensor, "t h w"]:
    """How far the estimate moves at each place if a word is left out; in units of the estimates themselves."""
    level = x.new_full((1,), sigma)
    full, *others = (model.denoise(x, level, cond) for cond in conds)
    moved = torch.cat([(other - full).square().mean(1, keepdim=True).sqrt() for other in others])
    return torch.nn.functional.interpolate(moved, size, mode="bilinear", align_corners=False)[:, 0].cpu()


def _region(chosen: ExplainOptions, size: Size) -> Float[Tensor, "1 h w"]:
    """1 where the image is explained."""
    if chosen.mask is not None:
        return open_mask(chosen.mask, size)
    if chosen.box is None:
        return torch.ones(1, *size)
    left, top, right, bottom = corners(chosen.box)
    if right > size[1] or bottom > size[0]:
        raise InputError(f"The box {chosen.box} reaches beyond the image, which has {size[1]}x{size[0]} pixels.")
    region = torch.zeros(1, *size)
    region[:, top:bottom, left:right] = 1
    return region


def _target(chosen: ExplainOptions, image: Tensor, blank: Tensor, region: Tensor) -> Target:
    """What is explained, as one number of each image: 0 without the prompt and 1 with it; or how well words fit.

    The first is the projection, inside the region, on what the prompt has changed there.
    """
    if chosen.toward.strip():
        clip = text_image.ready(None, str(image.device))
        text = clip.encode_text([chosen.toward]).to(image.device)
        inside = region.to(image)

        def fits(images: Tensor) -> Tensor:
            return (clip.encode_image(images * inside + (1 - inside)) @ text.T)[:, 0]  # all else white

        return fits
    change = (image - blank) * region.to(image)
    whole = (change * (image - blank)).sum()
    if float(whole) <= 1e-10:
        raise InputError("The prompt changes nothing in this part of the image. Choose another box.")

    def projected(images: Tensor) -> Tensor:
        return ((images - blank) * change).flatten(1).sum(1) / whole

    return projected


def _without(run: Run, parsed: Terms, target: Target, size: Size, whole: float) -> list[float]:
    """What the target loses if a word is left out of the prompt and the run made again."""
    lost = []
    for term in parsed.content:
        cond = word_masks.condition(run.plan.model, parsed, size, parsed.without([term]))
        lost.append(whole - target(run.image(cond)).item())
    return lost


def _integrated(run: Run, parsed: Terms, target: Target, size: Size, points: int, rows: int) -> Attribution | None:
    if not points:
        return None

    def encode(kept: Sequence[int]) -> Cond:
        gone = [term for i, term in enumerate(parsed.content) if i not in kept]
        return word_masks.condition(run.plan.model, parsed, size, parsed.without(gone))

    with torch.no_grad():
        split = by_term(run, len(parsed.content), encode)
    found = attribute(run, target, split, points, rows)
    if found.missing <= ALLOWED:
        return found
    return replace(found, exact=secants(run, target, split, batch_size=rows))


def _numbers(
    parsed: Terms,
    found: Attribution | None,
    maps: Tensor,
    region: Tensor,
    without: list[float],
    whole: float,
) -> list[WordNumbers]:
    """One row for each word and other part of the condition; all are parts of the target's whole difference."""
    whole = whole if abs(whole) > 1e-12 else 1.0

    def part(value: Tensor | None) -> float | None:
        return None if value is None else float(value.double().sum()) / whole

    rows: list[WordNumbers] = []
    mass = (maps.mean(0) * region).sum((1, 2))
    mapped, place = (mass / mass.sum().clamp(min=1e-12)).tolist(), 0
    for term in parsed.all:
        held = None if found is None else part(found.rows[:, list(term.rows)])
        if term.kind != "word":
            rows.append(WordNumbers(term.text, term.kind, None, (), held, None, None))
            continue
        by_step = None if found is None else found.terms[:, place]
        steps = () if by_step is None else tuple((by_step / whole).tolist())
        share = part(by_step if found is None or found.exact is None else found.exact[place])
        rows.append(WordNumbers(term.text, "word", share, steps, held, without[place] / whole, mapped[place]))
        place += 1
    if found is not None:
        for name, kind, value in (("whole prompt", "pooled", found.pooled), ("rest", "other", found.other)):
            if bool(value.any()):
                rows.append(WordNumbers(name, kind, None, (), part(value), None, None))
        rest = [] if found.exact is None else list(found.exact[place:])
        for name, kind, value in (("negative prompt", "negative", found.negative), ("image", "pixels", found.pixels)):
            if value is not None and bool(value.any()):
                value = rest.pop(0) if rest else value
                rows.append(WordNumbers(name, kind, part(value), (), None, None, None))
    return rows


def _agreement(numbers: Sequence[WordNumbers], found: Attribution | None) -> dict[str, float]:
    """Spearman's rank correlation between the answers, over the words; of fewer than three there is none."""
    own = [row for row in numbers if row.kind == "word"]
    if len(own) < 3 or found is None:
        return {}
    columns = {"occlusion": [row.occlusion or 0.0 for row in own], "maps": [row.mapped or 0.0 for row in own]}
    shares = [row.share or 0.0 for row in own]
    return {name: rank_correlation(shares, values) for name, values in columns.items()}


def _notes(parsed: Terms, found: Attribution | None, why: str, chosen: ExplainOptions) -> list[str]:
    notes = [why] if why else []
    if found is not None:
        notes.append(
            f"Shares by integrated gradients over {found.points} points: they add up to the whole but for "
            f"{found.missing:.1%}."
        )
        if found.exact is not None:
            notes.append(
                f"That is more than {ALLOWED:.0%}, because the run is rough on the way: the shares are those of finite "
                "steps instead, which add up exactly. Those at each step are the integral's."
            )
    return notes


def _kept(chosen: ExplainOptions) -> dict[str, Any]:
    own = ("box", "toward", "maps", "points")
    named = None if chosen.mask is None else "a mask"
    return {**{name: getattr(chosen, name) for name in own}, "mask": named}
