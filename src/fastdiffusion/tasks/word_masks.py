"""Where in an image some words of its prompt are, as a map or a mask: for ``edit --only``, and for inpainting.

Two ways, and "auto" takes the second, which found things better wherever both were measured (docs/explain.md):

"attention": what each place attends to, averaged over noise levels and layers (``guidance.concept_maps``).
"occlusion": which places the model explains better with the words than without. At some noise levels x0 is estimated
from the words alone, from the whole prompt, and from the prompt without them; where one of the first two comes nearer
to the image than the last, there the words are (a difference of pointwise mutual informations, after Kong et al. 2023,
arXiv:2310.07972). The words alone tell two things of one image apart; but "heart" alone may be a red one, and explains
nothing of a blue heart. An image larger than the
model's own is looked at through windows of that size, half a window apart: things are then as large as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .. import choices, prompts
from ..errors import InputError, unknown
from ..guidance.attention import control
from ..guidance.concept_maps import Concepts, along_edges
from ..models import Model, Size
from ..noise import Stream, generator
from ..prompts.terms import Term, Terms, terms
from ..schedules import strength_sigma
from ..types import Cond

LEVELS = (0.2, 0.3, 0.4, 0.5, 0.6)  # parts of noise at which a given image is looked at
DRAWS = 3  # noises at each of them
THROUGH = 0.5  # of what a prompt changes, the least that must go through attention for its maps to mean anything
CUT = 0.3  # what of a map's largest values is in the mask
EDGE, REACH, SIDE = 0.15, 1000, 64  # of ``along_edges``, for images of so many pixels a side
TOP, HIGHER = 0.98, 0.05  # what of a map that is spread counts as 1, and how much more than of others is inside


class WordMap(NamedTuple):
    """Where some words are.

    Attributes:
        map: (1, h, w), from 0 to 1.
        method: "attention" or "occlusion".
    """

    map: Float[Tensor, "1 h w"]
    method: str


def word_mask(
    model: Model,
    image: Float[Tensor, "c h w"],
    prompt: str,
    phrase: str,
    method: str = "auto",
    cut: float = CUT,
) -> Float[Tensor, "1 h w"]:
    """1 where some words of a prompt are in an image, 0 elsewhere.

    Args:
        model: One that takes prompts.
        image: In [-1, 1], of sides that divide by ``model.factor``.
        prompt: What it shows, in the language of prompts without AND and changes.
        phrase: Of the prompt, such as "the hat": as a phrase, or else each of them.
        method: "attention", "occlusion", or "auto".
        cut: What of the map's largest values belongs to the mask, 0 to 1.

    Raises:
        InputError: A word that is not in the prompt; a model without prompts, or without attention if that was asked
            for.
    """
    return (word_map(model, image, prompt, phrase, method).map > cut).float()


@torch.no_grad()
def word_map(
    model: Model, image: Float[Tensor, "c h w"], prompt: str, phrase: str, method: str = "auto", seed: int = 0
) -> WordMap:
    """The map that :func:`word_mask` cuts: see there."""
    if method not in choices.MAPS:
        raise unknown("method of maps", method, choices.MAPS)
    if model.conditioner is None:
        raise InputError("This model was trained without captions, and finds no words. Take model='emoji'.")
    size = (image.shape[-2], image.shape[-1])
    parsed = terms(prompt, model.conditioner)
    chosen = parsed.find(phrase)
    shown = image[None].to(model.device)
    if method == "attention":
        states = _noised(model, model.encode(shown), seed)
        own = [i for i, term in enumerate(parsed.content) if term in chosen]
        found = of_attention(model, parsed, states, size)[own].mean(0, keepdim=True)
        return WordMap(_scaled(found).cpu(), "attention")
    raw = _evidence(model, shown, seed, parsed, chosen)
    spread = along_edges(raw, shown[0], round(REACH * min(1.0, max(size) / SIDE)), EDGE)
    return WordMap(_scaled(spread).cpu(), "occlusion")


def soft(
    places: Float[Tensor, "1 1 i j"], threshold: float, image: Float[Tensor, "1 c h w"]
) -> Float[Tensor, "1 1 h w"]:
    """Where a map is above a threshold, at the size of the image; its border follows the image's own.

    A latent is many pixels, and a border that is cut through it leaves a rim of old colors. So the pixels of a ring of
    one latent around are taken along where their color is nearer to that of what is inside, close by, than outside.
    """
    inside, size = (places > threshold).float(), image.shape[-2:]
    core = F.interpolate(inside, size, mode="bilinear")
    grown = F.interpolate(F.max_pool2d(inside, 3, 1, 1), size)
    reach = 2 * (2 * size[-1] // places.shape[-1]) + 1
    distances = []
    for part in ((core > 0.5).float(), 1 - grown):
        weight = F.avg_pool2d(part, reach, 1, reach // 2)
        mean = F.avg_pool2d(image * part, reach, 1, reach // 2) / weight.clamp(min=1e-6)
        distance = (image - mean).square().sum(1, keepdim=True)
        distances.append(torch.where(weight > 0, distance, torch.inf))
    ring = grown * (distances[0] < distances[1])
    return torch.maximum(core, F.avg_pool2d(ring, 3, 1, 1) * grown).clamp(max=1)


def filled(
    places: Float[Tensor, "1 1 i j"], threshold: float, image: Float[Tensor, "1 c h w"]
) -> Float[Tensor, "1 1 h w"]:
    """:func:`soft`, and with it the areas of one color that are above a slightly higher threshold in the mean.

    Two prompts may disagree about the rim of a thing alone, and its even middle would keep the old color.
    """
    part = min(1.0, SIDE / max(image.shape[-2:]))
    small = F.interpolate(image, [max(round(n * part), 1) for n in image.shape[-2:]], mode="area")
    heat = F.interpolate(places, small.shape[-2:], mode="bilinear")[0]
    spread = along_edges(heat, small[0], REACH, EDGE)[None]
    spread = (spread / spread.flatten().quantile(TOP).clamp(min=1e-9)).clamp(max=1)
    return torch.maximum(soft(places, threshold, image), soft(spread, threshold + HIGHER, image))


def phrases(text: str) -> list[str]:
    """The words between commas: "the hat, the tie"."""
    return [part.strip() for part in text.split(",") if part.strip()]


def shown_mask(model: Model, image: Float[Tensor, "c h w"], text: str) -> Float[Tensor, "1 h w"]:
    """Where an image shows any of some things, "the hat, the tie", of which no prompt is known.

    Each is a prompt of its own, and is where the model explains the image better by it than by no prompt.
    """
    found = [word_map(model, image, phrase, phrase) for phrase in phrases(text)]
    places = torch.stack([F.avg_pool2d(each.map[None], model.factor) for each in found]).amax(0)
    return soft(places, CUT, image[None])[0]


def choose(model: Model, parsed: Terms, states: Sequence[tuple[Tensor, float]], size: Size) -> tuple[str, str]:
    """ "attention" or "occlusion" for maps of a run, and why, in a sentence.

    Attention says something where the prompt acts through it. So that is measured: how far the estimates of x0 move
    if the token states are those of "no prompt" while all else of the condition stays, as a part of how far they move
    without the prompt. Where a pooled vector does most, attention maps show little of what the words did.
    """
    try:
        of_attention(model, parsed, states[:1], size)
    except InputError as error:
        return "occlusion", f"Maps by occlusion: attention cannot be seen here. {error}"
    cond, null = condition(model, parsed, size), condition(model, parsed, size, "")
    if cond.pooled is None and not cond.extra:
        return "attention", "Maps by attention: it is the only way from the prompt to the image in this model."
    silent = replace(cond, emb=None, mask=None).with_text(Cond(emb=null.emb, mask=null.mask))
    moved = whole = 0.0
    for x, sigma in states:
        level = x.new_full((len(x),), sigma)
        full, hidden, without = (model.denoise(x, level, c.expand(len(x))) for c in (cond, silent, null))
        moved, whole = moved + float((full - hidden).norm()), whole + float((full - without).norm())
    part = moved / max(whole, 1e-12)
    if part < THROUGH:
        return "occlusion", (
            f"Maps by occlusion: {part:.0%} of what the prompt changes goes through attention in this model, the rest "
            "through its pooled vector."
        )
    return "attention", f"Maps by attention: {min(part, 1):.0%} of what the prompt changes goes through it."


@torch.no_grad()
def of_attention(
    model: Model,
    parsed: Terms,
    states: Sequence[tuple[Tensor, float]],
    size: Size,
    cond: Cond | None = None,
) -> Float[Tensor, "t h w"]:
    """How much each place attends to each of a prompt's words, averaged over states (x, sigma).

    Raises:
        InputError: Attention cannot be seen in this network, or does not attend to a text.
    """
    if (net := model.modules.get("net")) is None:
        raise InputError("This model brings no network whose attention could be seen.")
    cond, total = condition(model, parsed, size) if cond is None else cond, torch.zeros(len(parsed.content), *size)
    used = compact(cond)
    watched = Concepts(tokens=[[used.place[row] for row in term.rows if row in used.place] for term in parsed.content])
    with control(net, watched):
        for x, sigma in states:
            model.denoise(x, x.new_full((len(x),), sigma), used.cond.expand(len(x)))
            total += watched.maps(x.shape[2:], size).cpu()
            watched.clear()
    return total / len(states)


class Compact(NamedTuple):
    """A condition of one row without what its mask hides, and where each row of ``emb`` has gone."""

    cond: Cond
    place: dict[int, int]


def compact(cond: Cond) -> Compact:
    """Some families leave hidden rows out of their network: then tokens are counted without them."""
    if cond.emb is None or cond.mask is None:
        return Compact(cond, {i: i for i in range(0 if cond.emb is None else cond.emb.shape[1])})
    kept = [i for i, real in enumerate(cond.mask[0].tolist()) if real]
    if not kept:
        return Compact(cond, {i: i for i in range(cond.emb.shape[1])})
    n = cond.emb.shape[1]
    parts = {
        name: v[:, kept] if v.ndim > 1 and v.shape[1] == n and name in ("emb", "mask", "tokens") else v
        for name, v in cond.parts().items()
    }
    return Compact(Cond.of(parts), {row: i for i, row in enumerate(kept)})


def condition(model: Model, parsed: Terms, size: Size, prompt: str | None = None) -> Cond:
    """The condition of a prompt, one row; by default of all its words."""
    assert model.conditioner is not None
    text = parsed.without([]) if prompt is None else prompt
    if not text.strip():
        return model.conditioner.null(1, size)
    made = prompts.compile(
        [text],
        partial(model.encode_prompt, size=size),
        spans=model.conditioner.token_spans,
        limit=model.conditioner.max_tokens,
        measure=getattr(model.conditioner, "measure", None),
    )
    return made.stages[0].conds[0]


def _noised(model: Model, x0: Tensor, seed: int) -> list[tuple[Tensor, float]]:
    """The image at several noise levels: (DRAWS states, sigma) each."""
    states = []
    for part in LEVELS:
        sigma = strength_sigma(part, model.sigma_data)
        keys = range(seed, seed + DRAWS)
        noises = [torch.randn(x0.shape[1:], generator=generator(s, Stream.EDIT_NOISE, round(1e6 * part))) for s in keys]
        states.append((x0 + sigma * torch.stack(noises).to(x0), sigma))
    return states


def _evidence(
    model: Model, image: Float[Tensor, "1 c h w"], seed: int, parsed: Terms, chosen: Sequence[Term]
) -> Float[Tensor, "1 h w"]:
    """Where the words, alone or in their prompt, explain an image better than it without them: relative errors."""
    rest = [term for term in parsed.all if term not in chosen and term.kind in ("word", "punctuation")]
    (height, width), boxes = image.shape[-2:], _windows(model, image)
    (_, _, wide, high), place = boxes[0], torch.zeros(1, height, width)
    conds = [condition(model, parsed, (high, wide), parsed.without(gone)) for gone in (rest, [], chosen)]
    looked = [_errors(model, image[..., y : y + high, x : x + wide], seed, conds) for x, y, _, _ in boxes]
    errors = [torch.stack([torch.minimum(each[:, 0], each[:, 1]), each[:, 2]], 1) for each in looked]
    scale = torch.stack(errors).sum(2).mean((0, 2, 3)).clamp(min=1e-12)  # by level, over all windows
    ramp = [1 - (torch.arange(n) - (n - 1) / 2).abs() / (n / 2) + 0.02 for n in (high, wide)]
    weight, total = ramp[0][:, None] * ramp[1], torch.zeros(1, height, width)
    for (x, y, _, _), error in zip(boxes, errors, strict=True):
        gain = ((error[:, 1] - error[:, 0]) / scale[:, None, None]).sum(0)
        gain = F.interpolate(gain[None, None], (high, wide), mode="bilinear", align_corners=False)[0]
        total[..., y : y + high, x : x + wide] += weight * gain.cpu()
        place[..., y : y + high, x : x + wide] += weight
    return (total / place).to(image)


def _windows(model: Model, image: Tensor) -> list[tuple[int, int, int, int]]:
    """Left, top, width and height of windows of the model's own size, half a window apart; of a smaller image all."""
    sides = []
    for length, own in zip(image.shape[-2:], model.image_shape[-2:], strict=True):
        side = min(length, own)
        step = max(model.factor, side // 2 // model.factor * model.factor)
        sides.append((side, [*range(0, length - side, step), length - side]))
    (high, tops), (wide, lefts) = sides
    return [(x, y, wide, high) for y in tops for x in lefts]


def _errors(model: Model, image: Tensor, seed: int, conds: Sequence[Cond]) -> Float[Tensor, "levels k i j"]:
    """Squared errors of x0 under each condition, mean over noises, at each level."""
    x0, found = model.encode(image), []
    for x, sigma in _noised(model, x0, seed):
        level = x.new_full((len(x),), sigma)
        both = [(model.denoise(x, level, cond.expand(len(x))) - x0).square().sum(1).mean(0) for cond in conds]
        found.append(torch.stack([each.mean(0) if each.ndim > 2 else each for each in both]))  # of a film
    return torch.stack(found)


def _scaled(maps: Float[Tensor, "t h w"]) -> Float[Tensor, "t h w"]:
    """From 0 to 1, where the greatest fiftieth of a map is 1, so that single places do not decide."""
    flat = maps.flatten(1)
    flat = flat[:, :: max(1, flat.shape[1] // 100_000)]  # of large images a part: quantiles have a limit
    return (maps / flat.quantile(0.98, 1).clamp(min=1e-12)[:, None, None]).clamp(0, 1)
