"""Look into sampling: what an option does (``study``), and how an image comes about (``trajectory``).

    result = study(model, {"scale": [1, 3, 7], "steps": [5, 8, 12]}, n=4, classes="3")
    result.to_image().show()
    result.explained()          # {"scale": 0.71, "steps": 0.18, "together": 0.11}

Every cell is a run of ``sample`` with nothing shared, so it equals the stand-alone run byte for byte.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...errors import InputError, unknown
from ...io.atomic import write_json
from ...io.fonts import drawable, font_for, write
from ...io.images import grid, safe_name, save_png, to_pil
from ...io.outputs import free_folder
from ...models import Model
from ...options import fill
from ..generation.options import SampleOptions, StudyOptions
from ..generation.sample import sample, sample_steps
from ..generation.samples import Samples
from ..loading import LoadOptions, loaded, of_run

FIXED = ("n", "batch_size", *(f.name for f in fields(LoadOptions)))  # the same in all cells
SWEPT = {f.name: f for f in fields(SampleOptions) if f.name not in FIXED}
LARGEST = 1000  # cells of a study
LETTERS = 11  # size of a label's letters in pixels


@dataclass(frozen=True)
class Study:
    """The images of every combination of some options.

    Attributes:
        sweep: Each option's values. The first runs along columns, the second along rows, further ones over blocks.
        cells: One ``Samples`` per combination, in the order of ``itertools.product(*sweep.values())``.
    """

    sweep: Mapping[str, Sequence[Any]]
    cells: Sequence[Samples]

    def __getitem__(self, options: Mapping[str, Any]) -> Samples:
        """The cell where the options have these values: ``study[{"scale": 3, "steps": 8}]``."""
        index = 0
        for name, values in self.sweep.items():
            if options.get(name) not in values:
                raise InputError(f"{name} was {list(values)} in this study, got {options.get(name)!r}.")
            index = index * len(values) + list(values).index(options[name])
        return self.cells[index]

    def explained(self, features: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """How much of the change in the images each option explains by itself; "together" is what only several do.

        The main effects of a balanced analysis of variance, image by image (seeds are not compared with each other),
        as parts of the whole change; they sum to 1.

        Args:
            features: What to measure change in, from (n, c, h, w) to (n, d); by default the pixels.
        """
        if len({cell.images.shape for cell in self.cells}) > 1:
            raise InputError("Images of different sizes cannot be compared. Leave size out of the sweep.")
        rows = [cell.images.flatten(1) if features is None else features(cell.images).flatten(1) for cell in self.cells]
        change = torch.stack(rows).double().reshape(*map(len, self.sweep.values()), -1)
        axes = range(change.ndim - 1)
        change = change - change.mean(tuple(axes), keepdim=True)
        total = float(change.square().sum())
        shares = {}
        for axis, name in enumerate(self.sweep):
            others = tuple(a for a in axes if a != axis)
            effect = change.mean(others, keepdim=True) if others else change
            shares[name] = float(effect.expand_as(change).square().sum()) / total if total else 0.0
        return shares | {"together": max(1 - sum(shares.values()), 0.0) if total else 0.0}

    def to_image(self, zoom: int | None = None) -> Image.Image:
        """All cells on one labelled sheet."""
        (across, columns), (down, rows), *rest = [*self.sweep.items(), ("", [""]), ("", [""])][
            : max(len(self.sweep), 2)
        ]
        names = [name for name, _ in rest]
        shown = {name: drawable([str(value) for value in values]) for name, values in self.sweep.items()}
        blocks = list(product(*(shown[name] for name in names)))
        shots = [cell.grid(ceil(len(cell) ** 0.5), zoom) for cell in self.cells]
        w, h = (max(shot.size[k] for shot in shots) + 4 for k in (0, 1))
        texts = [f"{down}={value}" for value in shown[down]] if down else [""]
        title, margin = 16, ceil(max(font_for(text, LETTERS).getlength(text) for text in texts)) + 12 if down else 4
        block_height = title + len(rows) * h + (title if names else 0)
        sheet = Image.new("RGB", (max(margin + len(columns) * w, 80), len(blocks) * block_height), "white")
        draw = ImageDraw.Draw(sheet)
        for b, block in enumerate(blocks):
            top = b * block_height
            if names:
                text = ", ".join(f"{name}={value}" for name, value in zip(names, block, strict=True))
                write(draw, (4, top), text, font_for(text, LETTERS))
                top += title
            for j, text in enumerate(texts):
                write(draw, (4, top + title + j * h + h // 2 - 8), text, font_for(text, LETTERS))
            for i, column in enumerate(shown[across]):
                write(draw, (margin + i * w, top), f"{across}={column}", font_for(f"{across}={column}", LETTERS))
                for j in range(len(rows)):
                    at = top + title + j * h
                    sheet.paste(shots[(i * len(rows) + j) * len(blocks) + b], (margin + i * w, at))
        return sheet

    def to_dict(self) -> dict[str, Any]:
        """What was swept and what explains what, as JSON values; ``explained`` is None for images of several sizes."""
        same = len({cell.images.shape for cell in self.cells}) == 1
        return {
            "sweep": {name: list(values) for name, values in self.sweep.items()},
            "model": self.cells[0].recipe.get("model"),
            "parameters": self.cells[0].recipe.get("parameters"),
            "explained": self.explained() if same else None,
        }

    def save(self, folder: str | Path) -> Path:
        """Write every image with its recipe, the sheet ``study.png`` and ``study.json``: :meth:`to_dict`.

        Another study that lies there stays: this one then goes to FOLDER-2, and so on. Returns the folder.
        """
        summary = self.to_dict()
        folder = free_folder(folder, "study.json", summary)
        for values, cell in zip(product(*self.sweep.values()), self.cells, strict=True):
            cell.save(folder, safe_name("-".join(f"{k}={v}" for k, v in zip(self.sweep, values, strict=True))))
        save_png(self.to_image(), folder / "study.png", None)
        write_json(folder / "study.json", summary)
        return folder

    def _repr_png_(self) -> bytes:
        return _png(self.to_image())


def study(model: Model | str | Path, sweep: Mapping[str, Sequence[Any]] | Sequence[str], **options: Any) -> Study:
    """Sample every combination of some options, all else equal.

    Args:
        model: As of ``sample``.
        sweep: Values by option, or texts such as "scale=1,3,7". Any option of ``sample`` but those of :data:`FIXED`.
        options: See :class:`StudyOptions <fastdiffusion.tasks.generation.options.StudyOptions>`: what ``sample`` takes,
            the same in all cells.
    """
    swept = dict(sweep.items() if isinstance(sweep, Mapping) else map(values_of, sweep))
    for name, values in swept.items():
        if name not in SWEPT:
            raise unknown("option to sweep", name, SWEPT)
        if isinstance(values, str) or not values:
            raise InputError(f"{name} needs a list of values, got {values!r}. Example: sweep={{'scale': [1, 3, 7]}}.")
    cells = prod(map(len, swept.values()))
    if not swept or cells > LARGEST:
        raise InputError(f"A study needs 1 to {LARGEST} cells, this one has {cells if swept else 0}.")
    chosen = fill(StudyOptions, **options)
    ready = loaded(model, chosen)
    runs = (dict(zip(swept, values, strict=True)) for values in product(*swept.values()))
    return Study(swept, [sample(ready, **{**of_run(vars(chosen)), **run}) for run in runs])


def values_of(text: str) -> tuple[str, list[Any]]:
    """ "scale=1,3,7" as ("scale", [1.0, 3.0, 7.0]): each value in the type that ``sample`` takes."""
    name, _, values = text.partition("=")
    name = name.strip()
    if name not in SWEPT:
        raise unknown("option to sweep", name, SWEPT)
    kinds = [kind for kind in (int, float, str) if kind.__name__ in str(SWEPT[name].type).split(" | ")]
    return name, [_value(name, text.strip(), kinds) for text in values.split(",")]


def _value(name: str, text: str, kinds: Sequence[Callable[[str], Any]]) -> Any:
    """A text in the first of these types that it can be read as."""
    for kind in kinds:
        with suppress(ValueError):
            return kind(text)
    raise InputError(f"Not a value of {name}: {text!r}. Example: --sweep scale=1,3,7")


@dataclass(frozen=True)
class Trajectory:
    """How images come about: the model's estimate of the clean image at every evaluation.

    Attributes:
        sigmas: Noise level of each evaluation.
        images: The estimates; the last are the finished images.
    """

    sigmas: tuple[float, ...]
    images: Float[Tensor, "steps n c h w"]

    @property
    def agreement(self) -> tuple[float, ...]:
        """Correlation of each evaluation's estimates with the finished images, mean over the images."""
        flat = self.images.flatten(2).double()
        flat = torch.nn.functional.normalize(flat - flat.mean(2, keepdim=True), dim=2)
        return tuple((flat * flat[-1]).sum(2).mean(1).tolist())

    def to_image(self, zoom: int | None = None) -> Image.Image:
        """A strip per image, from noise to finished, with the noise levels above."""
        steps = len(self.images)
        zoom = zoom or max(1, 64 // max(self.images.shape[-2:]))
        strip = grid([to_pil(image) for image in self.images.transpose(0, 1).flatten(0, 1)], steps, zoom)
        sheet = Image.new("RGB", (strip.width, strip.height + 16), "white")
        sheet.paste(strip, (0, 16))
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
        for i, sigma in enumerate(self.sigmas):
            draw.text((i * strip.width // steps + 2, 1), f"{sigma:.2g}", "black", font)
        return sheet

    def _repr_png_(self) -> bytes:
        return _png(self.to_image())


def trajectory(model: Model | str | Path, n: int = 1, seed: int = 0, steps: int = 12, **options: Any) -> Trajectory:
    """The estimates of every evaluation of the run ``sample(model, n=n, seed=seed, steps=steps, **options)``."""
    run = sample_steps(model, n=n, seed=seed, steps=steps, **{**options, "batch_size": n})
    estimates = [(step.sigma, step.images) for step in run]
    return Trajectory(
        tuple(sigma for sigma, _ in estimates), torch.stack([images for _, images in estimates]).clamp(-1, 1)
    )


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
