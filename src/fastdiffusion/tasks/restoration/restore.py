"""Undo what happened to an image: ``restore(photo, "gray, blur 1.5, jpeg 30")``, at any size.

Three methods, one function. *Supervised*: a denoiser that works from the degraded image, trained with the same
corruption; one evaluation is the mean of all answers, more evaluations are one of them. *Zero-shot*: any other model as
the prior, led by the measurement (``guidance.posterior``). *Cold*: the corruption undone a little at a time, by a
supervised model. Where it is known what happened, the answer is held to it: degraded again, it gives the input.
"""

from __future__ import annotations

import os
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...corruptions import Chain, Corruption, Step
from ...device import best_device
from ...errors import CheckpointError, InputError
from ...io.images import flatten, open_image, to_array, to_pil, to_tensor, turned
from ...io.inputs import losses
from ...models import Model, load
from ...options import fill
from ...version import __version__
from ..loading import loaded
from .jpeg_files import Written, as_written
from .measurement import Measurement
from .method import check, check_answer, choose_method, parse_task
from .options import RestoreOptions
from .result import NOTE, RestorationResult
from .tiled import TiledRestoration

SMALLEST = 8  # pixels
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
    source = _open(image)
    corruption, kernel = _without_blind(corruption, source)
    what = Chain(()) if corruption == "pairs" else parse_task(corruption)
    ready = loaded(bundled(), chosen.device or best_device()) if model is None else loaded(model, chosen.device)
    if corruption == "pairs" and ready.corruption != "pairs":
        raise InputError("corruption='pairs' is for models trained on pairs. Say what happened: corruption='jpeg 30'.")
    channels = _channels(ready)
    method = choose_method(chosen.method, what, ready, model, chosen.posterior)
    label = str(what) or "pairs"
    what, orientation, trust = as_written(what, image) if isinstance(image, str | os.PathLike) else Written(what)
    if orientation != 1:  # as it lies in the file, where its blocks are
        source = to_pil(turned(torch.from_numpy(to_array(source)), {6: 8, 8: 6}.get(orientation, orientation)))
    check_answer(chosen, method, what)
    measurement = Measurement(source, what, channels, what.known and ready.corruption != "pairs", ready.device, trust)
    del source  # the measurement has its pixels: a large image is not held twice
    job = TiledRestoration(measurement, ready, method, chosen)
    tile, overlap = measurement.tiling(chosen.tile, chosen.overlap)
    images = job.run(tile, overlap)
    marked = any(step.name in ("watermark", "logo") for step in what.steps) or "watermark" in str(corruption)
    notes = [NOTE] * marked + losses(image) + [COLORLESS] * job.lacks_color(images)
    error = measurement.error(images, tile, overlap)
    images = turned(images, orientation)
    return RestorationResult(
        images,
        turned(measurement.image, orientation),
        label,
        method,
        error,
        _uncertainty(images),
        tuple(notes),
        _recipe(chosen, ready, label, method, tile, overlap),
        kernel,
    )


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


def _open(image: str | os.PathLike[str] | Image.Image) -> Image.Image:
    """An image in L or RGB."""
    flat = flatten(open_image(image))
    if min(flat.size) < SMALLEST:
        raise InputError(
            f"An image of {flat.width}x{flat.height} pixels is too small to restore: give one of at least "
            f"{SMALLEST}x{SMALLEST}."
        )
    return flat if flat.mode in ("L", "RGB") else flat.convert("RGB")


def _without_blind(corruption: str | Corruption, source: Image.Image) -> tuple[str | Corruption, Tensor | None]:
    """The corruption with the blur kernel that is found in the image, if it is to be looked for."""
    if not isinstance(corruption, str) or " ".join(corruption.split()) not in ("deblur blind", "blind"):
        return corruption, None
    from .blind_deblurring import estimate_kernel

    kernel = estimate_kernel(to_tensor(source)[None])
    return Step("kernel", (kernel,)), kernel


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
    kept = {name: getattr(options, name) for name in ("n", "answer", "steps", "seed", "posterior")}
    ensemble = {"self_ensemble": True} if options.self_ensemble else {}
    return {
        "fastdiffusion": __version__,
        "verb": "restore",
        "corruption": label,
        "method": method,
        "model": model.id[:16],
        "parameters": {**kept, "tile": tile, "overlap": overlap, **ensemble},
    }
