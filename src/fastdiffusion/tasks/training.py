"""Train a diffusion model on images, from what a person has: a folder, pairs of folders, a data set's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from .. import choices
from .. import data as datasets
from ..errors import InputError, unknown
from ..io.images import safe_name
from ..models import Model
from ..options import fill
from ..training.config import TrainingConfig
from ..training.console import say
from ..training.distributed import rank_and_world
from ..training.learner import Learner
from ..training.options import Budget
from ..training.report import TrainingResult
from .small_checkpoints import train_small
from .small_checkpoints.stages import DENOISER, STAGES


def train(
    data: datasets.Dataset | str | Path,
    *,
    size: int | None = None,
    aspect: str | None = None,
    labels: str | None = None,
    inputs: str | Path | None = None,
    **options: Any,
) -> TrainingResult[Model]:
    """Train a model on images; the same call again goes on where the last one stopped, bit for bit.

    Args:
        data: Images, or what ``data.load`` takes: a folder, "digits", "fashion-mnist", "emoji", "hf:owner/name".
        size: Side of the images in pixels; of a folder's, 64 by default.
        aspect: Shapes of a folder's images: "bucket" keeps them, "crop" cuts squares, "pad" adds white.
        labels: Classes of a folder's images: "auto", "folders", "table" or "none".
        inputs: A folder of inputs with the names of their answers in ``data``: learn pairs.
        options: See :class:`TrainingConfig <fastdiffusion.training.config.TrainingConfig>`: net, folder, captions,
            autoencoder, restore, ...; and of the budget: minutes, steps, fresh. By default in ``runs/NAME``.

    Raises:
        InputError: An option that does not exist or does nothing here.
        DataError: Images that cannot be used.
    """
    known = [f.name for kind in (TrainingConfig, Budget) for f in fields(kind)] + ["callbacks"]
    for name in options:
        if name not in known:
            raise unknown("option of train", name, [*known, "size", "aspect", "labels", "inputs"])
    of_budget = ("minutes", "steps", "fresh", "procs", "callbacks")
    budget = {name: options.pop(name) for name in of_budget if name in options}
    images = _opened(data, size, aspect, labels, inputs, options)
    if options.get("init_from") is not None and options.get("net") is not None:
        raise InputError("A model that is trained further keeps its net. Leave out --net or --init-from.")
    if images.report is not None and options.get("verbose", True) and rank_and_world()[0] == 0:
        say(f"{images.report}\nThe model and its report will name the data {images.name!r}, after the folder.")
    if options.get("folder") is None:
        options["folder"] = Path("runs") / safe_name(images.name)
    if options.get("net") not in choices.SMALL_NETS:
        return TrainingResult.of(Learner(images, **options).fit(**budget).model, options["folder"])
    model = train_small(images, fill(TrainingConfig, **options), _budget(budget))
    last = TrainingResult.of(model, Path(options["folder"]) / STAGES / DENOISER)
    return TrainingResult(Path(options["folder"]), model, last.report)


def _budget(options: Mapping[str, Any]) -> Budget:
    """What a run of several stages is given: ten minutes by default; callbacks belong to one loop alone."""
    if options.get("callbacks"):
        raise InputError("A checkpoint of several parts is trained in several loops. Leave callbacks out.")
    chosen = fill(Budget, **{name: value for name, value in options.items() if name != "callbacks"})
    return chosen if chosen.minutes is not None or chosen.steps is not None else replace(chosen, minutes=10.0)


def _opened(
    data: datasets.Dataset | str | Path,
    size: int | None,
    aspect: str | None,
    labels: str | None,
    inputs: str | Path | None,
    options: Mapping[str, Any],
) -> datasets.Dataset:
    """The images, as what is trained takes them: pairs, crops of photographs, or whole images."""
    if isinstance(data, datasets.Dataset):
        return data
    crops = inputs is None and options.get("restore") is not None and Path(data).is_dir()
    if inputs is not None or crops:
        for name, value, lack in (("aspect", aspect, "are cropped"), ("labels", labels, "have no classes")):
            if value is not None:
                raise InputError(f"--{name} does nothing here: pairs and images to restore {lack}. Leave it out.")
        side = 64 if size is None else size
        return datasets.Crops(data, side) if inputs is None else datasets.Pairs(inputs, data, side)
    return datasets.load_folder(
        data, size, aspect, "bucket" if options.get("autoencoder") is None else "crop", labels=labels
    )
