"""Undo what happened to an image: ``restore(photo, "gray, blur 1.5, jpeg 30")``, at any size.

Four methods, one function. *Supervised*: a denoiser that works from the degraded image, trained with the same
corruption; one evaluation is the mean of all answers, more evaluations are one of them. *Zero-shot*: any other model as
the prior, led by the measurement (``guidance.posterior``). *Cold*: the corruption undone a little at a time, by a
supervised model. Where it is known what happened, the answer is held to it: degraded again, it gives the input.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...corruptions import Corruption, Step
from ...device import best_device
from ...errors import CheckpointError, InputError, warn
from ...io.images import turned
from ...io.inputs import losses
from ...models import Model, load
from ...options import fill
from ...progress import Progress
from ...version import __version__
from ..loading import LoadOptions, loaded
from . import patch_filling
from .inputs import Inputs, Source, opened
from .measurement import Measurement
from .method import check, check_answer, choose_method, left_to_patches, takes_mean
from .options import RestoreOptions
from .result import NOTE, RestorationResult
from .tiled import TiledRestoration
from .transparency import parted, scaled
from .trials import Trial, mixed

FEW_COLORS = "Experimental: the bundled restorer finds few colors of photographs. Give some: hints or palette."
GOLDEN = (math.sqrt(5) - 1) / 2  # whose multiples lie evenly between 0 and 1, without the whole parts
COLORLESS = "Hardly any color was found. Give some with --hints or --palette, or train a model that knows such things."


def restore(
    image: str | os.PathLike[str] | Image.Image,
    corruption: str | Corruption,
    model: Model | str | Path | None = None,
    **options: Any,
) -> RestorationResult:
    """Undo what happened to an image.

    Args:
        image: A file or a PIL image of any size.
        corruption: What happened ("gray, blur 1.5, jpeg 30"; see ``corruptions.grammar``), or the task ("upscale x2",
            "colorize", "dejpeg", "deblur motion 9 30", "deblur blind", "denoise 0.1", "inpaint hole.png",
            "dewatermark mark.png"). Ranges, and what is left out, are estimated by a model that was trained for it.
        model: A restorer, or any generative model as the prior; by default the small restorer of this package.
        options: See :class:`RestoreOptions`.

    Raises:
        InputError: Something that cannot be undone, or not by this model.
        DataError: An image that cannot be read.
    """
    chosen = fill(RestoreOptions, model=model, **options)
    check(chosen)
    device = chosen.device or (best_device() if model is None else None)
    how = LoadOptions(device=device, engine=chosen.engine, precision=chosen.precision)
    ready = loaded(bundled() if model is None else model, how)
    if corruption == "pairs" and ready.corruption != "pairs":
        raise InputError("corruption='pairs' is for models trained on pairs. Say what happened: corruption='jpeg 30'.")
    channels = _channels(ready)

    def undo(source: Source, last: Corruption) -> Image.Image:
        same = {"tile": chosen.tile, "overlap": chosen.overlap, "self_ensemble": chosen.self_ensemble}
        return restore(source, last, ready, **same).to_pil()[0]

    colors, opacity = parted(image)
    found = opened(colors, corruption, ready, chosen, undo)
    few_colors = model is None and not (chosen.hints or chosen.palette)
    few_colors = few_colors and any(step.name == "gray" for step in found.what.steps)
    if few_colors:
        warn(FEW_COLORS)  # before the work, which may take minutes
    method = choose_method(chosen, found.named, ready, model)
    check_answer(chosen, method, found.what, ready)
    measurement = _measured(found, found.what, ready, channels)
    hole = measurement.hole
    if hole is not None and left_to_patches(chosen):
        # what a small net knows of a wide hole is a blur
        method = "patches" if patch_filling.fits(hole) else method
    job = TiledRestoration(measurement, ready, method, chosen)
    tile, overlap = measurement.tiling(chosen.tile, chosen.overlap)
    if method == "patches" and hole is not None:
        images = _filled(measurement.image, hole, chosen)
    elif found.likely or Trial.of(found, ready, chosen) is not None:
        images = _weighed(found, ready, channels, method, chosen)
    else:  # the measurement has the pixels: no large image is held twice
        found = replace(found, degraded=None, image=Image.new("L", (1, 1)))
        images = job.run(tile, overlap)
    colorless = job.lacks_color(images)
    if colorless and few_colors:
        images = job.grayed(images)  # what the bundled restorer has found is noise
    marked = any(step.name in ("watermark", "logo") for step in found.what.steps) or "watermark" in str(corruption)
    notes = [*found.notes, *[NOTE] * marked, *losses(image, transparency=False), *[COLORLESS] * colorless]
    error = None if found.likely else measurement.error(images, tile, overlap)
    images = turned(images, found.orientation)
    return RestorationResult(
        images,
        turned(measurement.image, found.orientation),
        found.label,
        method,
        error,
        _uncertainty(images),
        tuple(notes),
        _recipe(chosen, ready, found.label, method, tile, overlap),
        found.kernel,
        None if opacity is None else scaled(opacity, *images.shape[2:]),
    )


def _measured(found: Inputs, what: Corruption, model: Model, channels: int) -> Measurement:
    exact = what.known and model.corruption != "pairs"
    return Measurement(found.image, what, channels, exact, model.device, found.trust, found.rounding)


def _weighed(found: Inputs, model: Model, channels: int, method: str, options: RestoreOptions) -> Tensor:
    """The mean over all that may have happened; or samples, each of one of them, which its seed draws."""
    if not found.likely:
        return _answer(found, model, channels, method, options)
    if takes_mean(options):
        answers = [_answer(replace(found, what=what), model, channels, method, options) for what in found.likely]
        return mixed(answers, list(found.likely.values()))
    samples = []
    for seed in range(options.seed, options.seed + options.n):
        one = replace(options, n=1, answer="sample", seed=seed)
        samples.append(_answer(replace(found, what=drawn(found.likely, seed)), model, channels, method, one))
    return torch.cat(samples)


def _filled(image: Tensor, hole: Tensor, options: RestoreOptions) -> Tensor:
    """Results whose hole is filled with patches of the image."""
    seeds = Progress(range(options.seed, options.seed + options.n), "filling")
    return torch.stack([patch_filling.fill(image, hole, seed, not takes_mean(options)) for seed in seeds])


def drawn(likely: Mapping[Step, float], seed: int) -> Step:
    """One of the steps; seeds that follow each other draw each about as often as it is likely."""
    tops = torch.tensor(list(likely.values())).cumsum(0)[:-1]
    return list(likely)[int((tops <= seed * GOLDEN % 1).sum())]


def _answer(found: Inputs, model: Model, channels: int, method: str, options: RestoreOptions) -> Tensor:
    """The images if this happened: by a trial where there are several answers to it."""
    trial = Trial.of(found, model, options)
    if trial is not None:
        return trial.run()
    measurement = _measured(found, found.what, model, channels)
    tiling = measurement.tiling(options.tile, options.overlap)
    return TiledRestoration(measurement, model, method, options).run(*tiling)


def bundled() -> Model:
    """The small restorer that comes with this package: see docs/restore.md for what it was trained on."""
    weights = files("fastdiffusion") / "weights" / "restorer.safetensors"
    if not weights.is_file():
        raise CheckpointError(
            "This installation has no restorer of its own. Name one with --model, or train one: "
            "fastdiffusion train photos/ --restore 'blur 0.5..3'."
        )
    with as_file(weights) as path:
        return load(path)


def _channels(model: Model) -> int:
    """1 or 3, of a model of pixels."""
    if model.autoencoder is not None:
        raise InputError("This model works in latents, where corruptions of pixels are unknown. Use a model of pixels.")
    if len(model.shape) != 3 or model.shape[0] not in (1, 3):
        raise InputError(
            f"The model makes samples of shape {model.shape}, no images of 1 or 3 channels: it cannot restore files."
        )
    return model.shape[0]


def _uncertainty(images: Tensor) -> Tensor:
    """Standard deviation of the results at each pixel, strip by strip: the float copy of all would be large."""
    if len(images) == 1:
        return torch.zeros(images.shape[2:])
    return torch.cat([rows.float().std(0).mean(0) for rows in images.split(256, 2)])


def _recipe(options: RestoreOptions, model: Model, label: str, method: str, tile: int, overlap: int) -> dict[str, Any]:
    """What was done, as JSON values."""
    if method == "patches":
        made: dict[str, Any] = {"parameters": {"n": options.n, "seed": options.seed}}
    else:
        made = {"model": model.id[:16], "parameters": _parameters(options, tile, overlap)}
    return {"fastdiffusion": __version__, "verb": "restore", "corruption": label, "method": method, **made}


def _parameters(options: RestoreOptions, tile: int, overlap: int) -> dict[str, Any]:
    kept = {name: getattr(options, name) for name in ("n", "answer", "steps", "seed", "posterior")}
    ensemble = {"self_ensemble": True} if options.self_ensemble else {}
    ensemble |= {} if options.refine else {"refine": False}
    ensemble |= {"engine": options.engine, "precision": options.precision} if options.engine != "torch" else {}
    return {**kept, "tile": tile, "overlap": overlap, **ensemble}
