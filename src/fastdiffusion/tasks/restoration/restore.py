"""Undo what happened to a picture: ``restore(photo, by="gray, blur 1.5, jpeg 30")``, at any size.

Three ways, one verb. *Supervised*: a denoiser that works from the degraded picture, trained with the same corruption;
one call is the mean of all answers, more calls are one of them. *Zero-shot*: any other model as the prior, led by the
measurement (``guidance.posterior``). *Cold*: the corruption undone a little at a time, by a supervised model. Where
it is known what happened, the answer is held to it: degraded again, it gives the input.
"""

from __future__ import annotations

import os
from importlib.resources import as_file, files
from pathlib import Path

import torch
from PIL import Image

from ...corruptions import Chain, Corruption, Step
from ...errors import CheckpointError, InputError, unknown
from ...guidance import posterior as inverse
from ...io.images import flatten, open_image, to_array, to_tensor
from ...models import Model, load
from ...models.registry import best_device, loaded
from ...version import __version__
from .method import (
    METHODS,
    as_written,
    choose_method,
    undoing,
)
from .result import NOTE, RestorationResult
from .tiled import _Job

ANSWERS = ("auto", "mean", "sample")
SMALLEST = 8  # pixels
OPAQUE = "The picture's transparency was laid on white: the result has none."
COLORLESS = "Hardly any color was found. Give some with --hints or --palette, or train a model that knows such things."


def restore(
    image: str | os.PathLike[str] | Image.Image,
    corruption: str | Corruption,
    model: Model | str | Path | None = None,
    n: int = 1,
    method: str = "auto",
    answer: str = "auto",
    steps: int = 12,
    seed: int = 0,
    posterior: str = "ddnm",
    hints: str | os.PathLike[str] | Image.Image | None = None,
    palette: str | None = None,
    self_ensemble: bool = False,
    tile: int = 256,
    overlap: int = 64,
    device: str | None = None,
) -> RestorationResult:
    """Undo what happened to a picture.

    Args:
        picture: A file or a PIL picture of any size.
        by: What happened ("gray, blur 1.5, jpeg 30"; see ``corruptions.grammar``), or what to do about it ("upscale
            x2", "colorize", "dejpeg", "deblur motion 9 30", "deblur blind", "denoise 0.1", "inpaint hole.png",
            "dewatermark mark.png"). Ranges, and what is left out, are found out blindly by a model trained for it.
        model: A restorer, or any generative model as the prior; by default the small restorer of this package.
        n: How many answers. One is the mean of all, several differ and show what is not known.
        way: "supervised", "zero-shot", "cold", or "auto": supervised if the model was trained for it.
        answer: "mean" (one call), "sample", or "auto": the mean for one answer and samples for several.
        steps: Denoiser calls of a sample.
        seed: Of answer 0; answer i has seed + i.
        method: Of zero-shot, a name in ``inverse.INVERSE``.
        hints: A picture of the same size, transparent but where it says a color; for colorizing.
        palette: Colors to keep to, "#a03020,#203040"; for colorizing.
        ensemble: Take the mean over the eight turns and mirror images of each piece: eight times slower, and nearer.
        tile: Side of the pieces that it is worked in, in pixels of the input: for memory. Wide blurs take larger ones.
        overlap: How much they share, at least.
        device: Where to compute.

    Raises:
        InputError: Something that cannot be undone, or not by this model.
        DataError: A picture that cannot be read.
    """
    for kind, name, known in (
        ("method", method, METHODS), ("answer", answer, ANSWERS), ("posterior", posterior, inverse.INVERSE),
    ):  # fmt: skip
        if name not in known:
            raise unknown(kind, name, known)
    for key, value, least in (("n", n, 1), ("steps", steps, 1), ("tile", tile, 64), ("overlap", overlap, 0)):
        if type(value) is not int or value < least:
            raise InputError(f"{key} must be a whole number of at least {least}, got {value!r}.")
    source, transparent = _open(image)
    kernel = None
    if isinstance(corruption, str) and " ".join(corruption.split()) in ("deblur blind", "blind"):
        from .blind_deblurring import estimate_kernel

        kernel = estimate_kernel(to_tensor(source)[None])
        corruption = Step("kernel", (kernel,))
    what = Chain(()) if corruption == "pairs" else undoing(corruption)
    ready = loaded(bundled(), device or best_device()) if model is None else loaded(model, device)
    if corruption == "pairs" and ready.corruption != "pairs":
        raise InputError("by='pairs' is for models that learned from pairs. Say what happened, e.g. by='jpeg 30'.")
    chosen = choose_method(method, what, ready, model, posterior)
    label = str(what) or "pairs"
    if isinstance(image, str | os.PathLike):
        what = as_written(what, image)
    job = _Job(what, ready, chosen, n, answer, steps, seed, posterior, source, hints, palette, self_ensemble)
    del source  # the job has its pixels: a large picture is not held twice
    tile, overlap = job.windows(tile, overlap)
    images = job.run(tile, overlap)
    notes = (
        (NOTE,)
        if any(step.name in ("watermark", "logo") for step in what.steps) or "watermark" in str(corruption)
        else ()
    )
    if transparent:
        notes += (OPAQUE,)
    if job.colorless(images):
        notes += (COLORLESS,)
    recipe = {
        "fastdiffusion": __version__,
        "verb": "restore",
        "corruption": label,
        "method": chosen,
        "model": ready.id[:16],
        "parameters": {
            "n": n,
            "answer": answer,
            "steps": steps,
            "seed": seed,
            "posterior": posterior,
            "tile": tile,
            "overlap": overlap,
            **({"self_ensemble": True} if self_ensemble else {}),
        },
    }
    uncertainty = torch.zeros(images.shape[2:])
    if n > 1:
        uncertainty = torch.cat([rows.float().std(0).mean(0) for rows in images.split(256, 2)])
    error = job.error(images, tile, overlap)
    return RestorationResult(images, job.source, label, chosen, error, uncertainty, notes, recipe, kernel)


def bundled() -> Model:
    """The small restorer that comes with this package: see docs/restore.md for what it learned from."""
    weights = files("fastdiffusion") / "weights" / "restorer.safetensors"
    if not weights.is_file():
        raise CheckpointError(
            "This installation has no restorer of its own. Name one with --model, or train one: "
            "fastdiffusion train photos/ --restore 'blur 0.5..3'."
        )
    with as_file(weights) as path:
        return load(path)


def _open(image: str | os.PathLike[str] | Image.Image) -> tuple[Image.Image, bool]:
    """A picture in L or RGB, and whether some of it shone through."""
    whole = open_image(image)
    flat = flatten(whole)
    transparent = flat is not whole and int(to_array(whole)[-1].min()) < 255
    if min(flat.size) < SMALLEST:
        raise InputError(
            f"A picture of {flat.width}x{flat.height} pixels is too small to restore: give one of at least "
            f"{SMALLEST}x{SMALLEST}."
        )
    return (flat if flat.mode in ("L", "RGB") else flat.convert("RGB")), transparent
