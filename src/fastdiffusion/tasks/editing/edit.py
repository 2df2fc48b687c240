"""``edit``: an image as another prompt has it, all else kept.

edit("cat.png", "a cat with sunglasses", source="a cat")      # a given image
edit(prompt="a blue heart", source="a red heart", seed=3)     # one that is drawn first
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ... import prompts
from ...errors import InputError, warn
from ...io.images import open_image
from ...io.inputs import open_mask
from ...models import Model
from ...models.registry import short_name
from ...options import fill
from ...version import __version__
from ..generation.canvas import Canvas, canvas
from ..generation.conditioning import size_notes, step_of
from ..generation.options import image_size
from ..generation.samples import RECIPE
from ..loading import loaded, of_run, settings
from .alignment import check_phrases
from .methods import Edit
from .options import WINDOW, EditOptions
from .result import EditResult

SOURCELESS = ("sdedit", "magicmix", "imagic", "reference")  # methods that ask nothing of what the image shows


def edit(
    image: str | Path | Image.Image | None = None,
    prompt: str | Sequence[str] = "",
    model: Model | str | Path = "emoji",
    **options: Any,
) -> EditResult:
    """An image as ``prompt`` describes it; what the prompts share, and what is outside of a mask, is kept.

    Args:
        image: A file or image; without one, ``source`` is drawn first.
        prompt: What the result shows. Of several (or of several lines) each is a result of its own from one source.
        model: A text-to-image model: a name, file or folder.
        options: See :class:`EditOptions <fastdiffusion.tasks.editing.options.EditOptions>`: source, method, strength,
            only, mask, reweight, steps, scale, seed, ...

    Raises:
        InputError: No prompt, no image and no source; a word of ``only``, ``protect``, ``reweight``, ``window`` or
            ``align`` that is in no prompt.
    """
    chosen = fill(EditOptions, **options)
    ready = loaded(model, chosen)
    if not (prompt.strip() if isinstance(prompt, str) else prompt):
        raise InputError(
            'Say what the result shows. Example: edit("cat.png", "a cat with sunglasses", source="a cat").'
        )
    targets = prompts.several(prompt)
    if ready.conditioner is None:
        raise InputError("This model was trained without captions, and edits by words. Take model='emoji'.")
    if image is None and not chosen.source.strip():
        raise InputError("Give an image, or say what is drawn first: source='a red heart'.")
    for note in prompts.notes(ready.conditioner, (*targets, chosen.source)):
        warn(note)
    method, why = _method(ready, chosen, image is None)
    edits = [Edit(ready, target, chosen, method) for target in targets]
    for each in edits:
        check_phrases(
            [p for text in (chosen.only, chosen.protect) if text.strip() for p in text.split(",")], each.aligned
        )
    with torch.no_grad():
        drawn = _canvas(edits[0], image)
        source, marked = drawn.image[None], None if drawn.mask is None else drawn.mask[None]
        made = [_edited(each, source, marked, image is None) for each in edits]
    results = drawn.crop(torch.cat([result for result, _ in made]))
    masks = [drawn.crop(mask) for _, mask in made if mask is not None]
    recipe = {
        "fastdiffusion": __version__,
        "recipe": RECIPE,
        "verb": "edit",
        "model": {"name": short_name(model), "sha256": ready.id, **settings(ready)},
        "parameters": _recorded(chosen, edits[0], prompt, image),
    }
    notes = [*([why] if why else []), *drawn.notes, *dict.fromkeys(note for each in edits for note in each.notes)]
    names = ("edited",) if len(edits) == 1 else tuple(f"edited-{i}" for i in range(len(edits)))
    return EditResult(
        results,
        names,
        recipe,
        tuple(notes),
        drawn.crop(source),
        torch.cat(masks) if masks else None,
        edits[0].aligned.pairs,
    )


def _method(model: Model, chosen: EditOptions, drawn: bool) -> tuple[str, str]:
    """The method, and if it was chosen here, why."""
    refers = hasattr(model.denoise, "with_reference")
    if chosen.method == "reference" and not refers:
        raise InputError(
            "This model takes no reference image. FLUX.1 Kontext and Qwen-Image-Edit do; or --method diffedit."
        )
    if chosen.method == "auto" and chosen.regions.strip():
        return "sdedit", "Method sdedit, because of the regions."
    if chosen.method == "auto" and refers:
        return "reference", "Method reference: this network takes the image itself."
    if chosen.method != "auto":
        if chosen.method not in SOURCELESS and not chosen.source.strip():
            raise InputError(f"{chosen.method} compares with what the image shows. Say it: source='a cat'.")
        return chosen.method, ""
    if not chosen.source.strip():
        return "sdedit", "Method sdedit: nothing says what the image shows. With --source more of it is kept."
    if chosen.align or chosen.window != WINDOW:
        name, why = "p2p" if drawn else "direct", "align" if chosen.align else "window"
        return name, f"Method {name}, because --{why} acts through attention."
    if drawn and chosen.reweight:
        return "p2p", "Method p2p: the weighed words are drawn beside the source, from the same noise."
    return "diffedit", "Method diffedit, which changed most for what it kept when it was measured (docs/edit.md)."


def _named(image: str | Path | Image.Image) -> str:
    return "an image given in Python" if isinstance(image, Image.Image) else Path(image).name


def _canvas(work: Edit, image: str | Path | Image.Image | None) -> Canvas:
    """The image that is edited, a mask that was given with it, and what a person should know of both."""
    mask, model, size = work.options.mask, work.model, image_size(work.options.size)
    if image is None:
        if size is not None:
            raise InputError("size is of a given image, and there is none. Leave size out, or give the image.")
        drawn, _ = (Edit(model, work.aligned.texts[1], work.options, "diffedit")).drawn()
        marked = None if mask is None else open_mask(mask, (drawn.shape[-2], drawn.shape[-1]))
        return Canvas(drawn[0].clamp(-1, 1), marked)
    source = image if isinstance(image, Image.Image) else Path(image)
    shape = (*model.image_shape[:-2], *(size or model.image_shape[-2:]))
    fitted = canvas(open_image(image), shape, mask, source=source, step=step_of(model))
    return replace(fitted, notes=(*fitted.notes, *size_notes(model, size)))


def _edited(
    work: Edit, source: Float[Tensor, "1 c h w"], marked: Tensor | None, drawn: bool
) -> tuple[Float[Tensor, "1 c h w"], Tensor | None]:
    """One result and its mask: pixels where the mask is 0 are the source's to the bit."""
    mask = work.mask(source, marked)
    if mask is not None and not bool(mask.any()):
        work.notes.append(
            "Nothing is inside of the mask, so that the image stays as it is. Leave --only out where it is all that "
            "there is, or lower --threshold."
        )
        return source, mask
    if drawn and work.method == "p2p":
        _, result = work.drawn()
        assert result is not None
    else:
        result = work.of(source, mask)
    result = result.clamp(-1, 1)
    if mask is None:
        return result, None
    if work.method == "sdedit" and (
        marked is not None or work.options.regions
    ):  # gray is a strength, and is drawn, not faded
        return torch.where(mask > 0, result, source), mask
    return torch.lerp(source, result, mask), mask


def _recorded(
    chosen: EditOptions, work: Edit, prompt: str | Sequence[str], image: str | Path | Image.Image | None
) -> dict[str, Any]:
    """The options as a recipe keeps them."""
    plain: dict[str, Any] = {"prompt": prompt if isinstance(prompt, str) else list(prompt), **of_run(vars(chosen))}
    plain |= {"mask": None if chosen.mask is None else _named(chosen.mask), "scale": work.scale}
    plain |= {"method": work.method, "strength": work.strength}
    return {**plain, "image": None if image is None else _named(image)}
