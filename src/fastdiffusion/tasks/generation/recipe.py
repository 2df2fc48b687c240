"""Saved images made anew from the recipe inside them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, DataError, InputError, MissingExtra
from ...io.guarded import BUDGET
from ...io.images import inner_recipe, read_recipe, save_png
from ...io.metadata import as_command, summarize
from ...models import Model
from ...models.registry import locate
from ...options import fill
from ...samplers import Table
from ..loading import LOADING, loaded, recorded
from .options import SEEDS, SampleOptions
from .plan import Plan, perform, plan
from .samples import RECIPE, Samples

_NOW = {"negative": "negative_prompt", "guide": "guidance"}  # parameters of the first version's recipes
_NUMBERS = ("scale", "strength", "variation_strength", "image_scale")
_LISTS = ("prompt", "classes", "size", "control", "image_prompt")


def reproduce(image: str | Path, model: Model | str | Path | None = None, device: str | None = None) -> Samples:
    """Make a saved image anew from the recipe in it: on the same machine, the same bytes.

    Args:
        image: A file of :meth:`Samples.save` or :meth:`Samples.save_grid`.
        model: By default the file that the recipe names, looked for near the image, here, and in run folders here.
        device: Where to compute; by default as for ``sample``.

    Raises:
        DataError: No recipe in the image, or one that cannot be followed.
        CheckpointError: The model is not found, or is another one than the recipe names.
    """
    planned, wanted, rows = followed(image, model, device)
    *_, last = perform(planned, rows)
    return planned.samples(planned.finish(last.images[wanted.start - rows.start :][: len(wanted)]), wanted)


def followed(
    image: str | Path, model: Model | str | Path | None = None, device: str | None = None
) -> tuple[Plan, range, range]:
    """The run that a saved image came from: its plan, which images of it these are, and the batches they are in."""
    name, recipe = Path(image).name, read_recipe(image)
    if "made_by" in recipe:
        raise DataError(
            f"{name!r} was made by {recipe['made_by']}, and cannot be made again to the byte. What it says: "
            f"{summarize(recipe)}. With the same model this comes near: {as_command(recipe)}"
        )
    if (made_by := recipe.get("verb")) != "sample":
        if "fastdiffusion" in recipe and isinstance(made_by, str):
            raise DataError(f"{name!r} was made by {made_by[:40]!r}, and only what sample drew can be followed.")
        raise DataError(f"{name!r} was not made by fastdiffusion's sample. What it says of itself: {str(recipe)[:300]}")
    try:
        if int(recipe["recipe"]) > RECIPE:
            raise DataError(
                f"{name!r} comes from a newer fastdiffusion. Upgrade with: pip install --upgrade fastdiffusion"
            )
        table = None if recipe["table"] is None else Table.from_json(json.dumps(recipe["table"]))
        index = None if "grid" in recipe else int(recipe["index"])
        asked = device if isinstance(model, Model) else recorded(recipe["model"], Path(image), device)
        ready = loaded(_find(recipe["model"], Path(image)) if model is None else model, asked)
        if ready.id != recipe["model"]["sha256"]:
            raise CheckpointError(
                f"{name!r} was made by another model, {recipe['model']['name']!r} with sha256 "
                f"{recipe['model']['sha256'][:12]}.... Name the right one with --model."
            )
        _check_kinds(recipe["parameters"])
        parameters = {_NOW.get(key, str(key)): value for key, value in recipe["parameters"].items()}
        options = fill(SampleOptions, **parameters)
        BUDGET.check(images=options.n, rows=options.steps)
        planned = plan(ready, options, table, recipe["model"]["name"], Path(image))
        at_once = options.n if index is None else min(options.n, options.batch_size)  # a grid holds all
        values = at_once * math.prod((*ready.image_shape[:-2], *(planned.size or ready.image_shape[-2:])))
        BUDGET.check(values=values * _enlarged(recipe.get("grid", {})))
        whole = range(planned.options.n)
        wanted, rows = (whole, whole) if index is None else (range(index, index + 1), planned.batch_of(index))
    except Exception as error:  # a recipe may come from anybody
        if isinstance(error, CheckpointError | DataError | MissingExtra):
            raise
        raise DataError(f"The recipe in {name!r} cannot be followed ({error}).") from None
    return planned, wanted, rows


def _check_kinds(parameters: Mapping[str, Any]) -> None:
    """Refuse JSON values of kinds that no option has."""
    for key, value in parameters.items():
        for item in value if isinstance(value, list) else [value]:
            wanted: Any = (float, int) if key in _NUMBERS else (str, int, None.__class__)
            if not isinstance(item, wanted) or (isinstance(item, int) and abs(item) >= SEEDS) or key in LOADING:
                raise InputError(f"{str(key)[:40]} cannot be {str(item)[:40]!r}")
        if isinstance(value, list) and key not in _LISTS:
            raise InputError(f"{str(key)[:40]} cannot be a list")


def _enlarged(grid: Mapping[str, Any]) -> int:
    """How many pixels of a sheet each pixel of an image takes; what is no option of a sheet is refused."""
    kinds = {"columns": int, "zoom": int, "labels": bool}
    for key, value in grid.items():
        if key not in kinds or not (value is None or type(value) is kinds[key]):
            raise InputError(f"{str(key)[:40]} of a grid cannot be {str(value)[:40]!r}")
        BUDGET.check(images=value or 0)
    return (grid.get("zoom") or 1) ** 2


def reproduce_file(
    image: str | Path, path: str | Path, model: Model | str | Path | None = None, device: str | None = None
) -> Samples:
    """Write what :func:`reproduce` makes in the form of ``image``: single or a grid, its recipe inside or not."""
    made, recipe = reproduce(image, model, device), read_recipe(image)
    inside = inner_recipe(image) is not None
    if "grid" not in recipe:
        save_png(made.images[0], path, made.recipe_of(0) if inside else None)
        return made
    try:
        made.save_grid(path, inside, **recipe["grid"])
    except (TypeError, ValueError) as error:
        raise DataError(f"The recipe in {Path(image).name!r} cannot be followed ({error}).") from None
    return made


def _find(wanted: Mapping[str, str], image: Path) -> Path:
    """The model file that a recipe names: by its name in the likely places, and by its hash."""
    hint = f"Name it: fastdiffusion reproduce {image.name} --model MODEL"
    try:
        path = locate(wanted["name"], wanted.get("file", wanted["sha256"]), image)
    except CheckpointError as error:
        raise CheckpointError(f"{error} {hint}") from None
    if path is None:
        raise CheckpointError(f"The model {wanted['name']!r} of {image.name!r} is not near the image. {hint}")
    return path
