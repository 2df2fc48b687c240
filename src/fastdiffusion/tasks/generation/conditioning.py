"""The conditions of a run that are images: a new model with them, and how a recipe names their files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...errors import InputError
from ...guidance import guidance
from ...io.inputs import fit_image
from ...models import Model, Size
from ...models.registry import named
from ...nets.seamless import check_seamless, seamless
from ...types import Cond, Denoise
from ..loading import is_of_hub
from .condition_options import ControlSpec, weighted
from .options import STRENGTH, SampleOptions

PYTHON = "an image given in Python"
FAR = 2.0  # times the sides that a model learned from: where its shapes begin to repeat


@dataclass(frozen=True)
class Conditioned:
    """A model under the conditions of a run.

    Attributes:
        model: With them.
        options: Of the run, as a recipe keeps them.
        image: The image to start from; None where the network takes it as an input.
    """

    model: Model
    options: SampleOptions
    image: Image.Image | None


def fetched(model: Any, chosen: SampleOptions) -> SampleOptions:
    """The options with control networks of the hub where they are on this machine, after a download if asked for."""
    found = [_fetched(each, chosen.download) for each in chosen.control]
    if found == chosen.control:
        return chosen
    others = any(map(is_of_hub, (model, *chosen.lora)))
    return replace(chosen, control=found, download=chosen.download and others)


def _fetched(control: Any, download: bool) -> Any:
    from ...adapters.sources.hub import fetch_network

    spec = ControlSpec.of(control) if isinstance(control, str) else control
    if not is_of_hub(spec.network):
        return control
    network = str(fetch_network(str(spec.network), download))
    return str(spec._replace(network=network)) if isinstance(spec, ControlSpec) else replace(spec, network=network)


def sized(model: Model, chosen: SampleOptions, image: Image.Image | None) -> SampleOptions:
    """The options with the size of a network that enlarges an image."""
    factor = getattr(model.denoise, "enlarges", 0)
    if not factor or image is None:
        return chosen
    size = f"{image.width * factor}x{image.height * factor}"
    if chosen.size not in (None, size, image.width * factor):
        raise InputError(f"This model enlarges {factor} times, to {size}. Leave size={chosen.size!r} out.")
    return replace(chosen, size=size)


def idle_notes(chosen: SampleOptions) -> list[str]:
    """What was asked for and changes nothing, in sentences."""
    notes = []
    if chosen.image is None and chosen.strength != STRENGTH:
        notes.append("strength says how far to go from an image: without one it does nothing.")
    if chosen.variation_seed and not chosen.variation_strength:
        notes.append("variation_seed does nothing at variation_strength 0. Try 0.2.")
    return notes


def size_notes(model: Model, size: Size | None) -> list[str]:
    """What to expect of a size whose area or shape is far from that of the images that a model learned from."""
    own = learned_size(model)
    if size is None or own is None or getattr(model.denoise, "enlarges", 0):
        return []
    far = [side / usual for side, usual in zip(size, own, strict=True)]
    if max(far) < FAR and min(far) > 1 / FAR:
        return []
    usual = f"{own[1]}x{own[0]}"
    if max(far) < FAR:
        return [
            f"This model learned from images of {usual} pixels: much smaller ones, {size[1]}x{size[0]}, lose shapes."
        ]
    return [
        f"This model learned from images of {usual} pixels: in much larger ones, {size[1]}x{size[0]}, things repeat or "
        f"fall apart. Better: --size {usual} --upscale x4, or restore the result again."
    ]


def learned_size(model: Model) -> Size | None:
    """Height and width of most images that a model learned from; None of one that makes no images."""
    if len(model.shape) < 3:
        return None
    match model.info.get("size"):
        case [int(height), int(width)] if not height % model.factor and not width % model.factor:
            return (height, width) if min(height, width) > 0 else model.pixels
    return model.pixels


def step_of(model: Model) -> int:
    """What the sides of a model's images divide by."""
    return model.factor * getattr(model.denoise, "patch", 1)


def conditioned(
    model: Model, chosen: SampleOptions, size: Size | None, image: Image.Image | None, near: Path | None
) -> Conditioned:
    """The model under the conditions of the options, for images of ``size``; a recipe's files are ``near`` its image.

    Raises:
        DataError: A file that is not there.
        CheckpointError: A network that cannot be read.
        InputError: A condition that does not fit the model.
    """
    if chosen.seamless is not None:
        for part in ("net", "autoencoder"):
            if part in model.modules:
                check_seamless(model.modules[part])
    takes = getattr(model.denoise, "image", "")
    options, made = chosen, model
    if takes == "input":
        made, options, image = _with_input(model, chosen, size, image)
    elif chosen.image_scale != SampleOptions.image_scale:
        raise InputError("image_scale is InstructPix2Pix's, and this model is none. Leave it out.")
    if chosen.noise_level is not None and not hasattr(model.denoise, "image_levels"):
        raise InputError("noise_level is for the x4 upscaler and for unCLIP. Leave it out.")
    if takes == "prompt" and not chosen.image_prompt:
        raise InputError("This model draws what an image shows, and there is none. Give it: image_prompt='in.png'.")
    if chosen.control:
        made, recorded = _with_controls(made, chosen.control, size, near)
        options = replace(options, control=recorded)
    if chosen.image_prompt:
        made, options = _with_image_prompts(made, options, near)
    return Conditioned(made, options, image)


def _with_input(
    model: Model, chosen: SampleOptions, size: Size | None, image: Image.Image | None
) -> tuple[Model, SampleOptions, None]:
    """A network that takes an image, with it: it starts from noise."""
    from ...adapters.conditioners import with_image

    if image is None or size is None:
        raise InputError("This model works from an image, and there is none. Give it: image='in.png' (--image in.png).")
    if chosen.mask is not None or chosen.outpaint is not None:
        raise InputError("This model takes the image whole. Leave mask and outpaint out.")
    factor = getattr(model.denoise, "enlarges", 1)
    pixels: Float[Tensor, "c h w"] = fit_image(image, (model.image_shape[0], size[0] // factor, size[1] // factor))
    if hasattr(model.denoise, "image_levels"):
        level = 20 if chosen.noise_level is None else chosen.noise_level
        settings: dict[str, Any] = {"noise_level": level, "seed": chosen.seed}
    else:
        settings = {"image_scale": chosen.image_scale}
    return with_image(model, pixels[None], **settings), replace(chosen, strength=1.0), None


def _with_controls(
    model: Model, controls: Sequence[Any], size: Size | None, near: Path | None
) -> tuple[Model, list[str]]:
    from ...adapters.conditioners import Controlled, with_controls

    wanted, recorded = [], []
    for each in controls:
        if isinstance(each, Controlled):
            image, image_name = (each.image, PYTHON) if isinstance(each.image, Image.Image) else named(str(each.image))
            spec = ControlSpec(str(each.network), image_name, each.edges, each.scale, each.window)
        else:
            spec = ControlSpec.of(each)
            image, image_name = named(spec.image, near)
        network, network_name = named(_weights(spec.network, near), near)
        wanted.append(Controlled(network, image, spec.scale, spec.window, spec.edges))
        recorded.append(str(spec._replace(network=network_name, image=image_name)))
    return with_controls(model, wanted, size), recorded


def _weights(network: str, near: Path | None) -> str:
    """The weights' file in the folder of a network, which a recipe names it by."""
    from ...adapters.conditioners import weights_of

    return network if near is not None else str(weights_of(Path(os.path.expanduser(network))))


def _with_image_prompts(model: Model, options: SampleOptions, near: Path | None) -> tuple[Model, SampleOptions]:
    from ...adapters.conditioners import with_image_prompts

    images, recorded = [], []
    for each in options.image_prompt:
        source, weight = weighted(each) if isinstance(each, str) else each if isinstance(each, tuple) else (each, 1.0)
        path, name = (source, PYTHON) if isinstance(source, Image.Image) else named(str(source), near)
        images.append((path, weight))
        recorded.append(f"{name}:{weight!r}")
    adapter, scale, adapter_name = None, 1.0, None
    if options.ip_adapter is not None:
        source, scale = weighted(str(options.ip_adapter))
        adapter, name = named(source, near)
        adapter_name = f"{name}:{scale!r}"
    encoder, encoder_name = None, None
    if options.image_encoder is not None:
        encoder, encoder_name = named(_weights(str(options.image_encoder), near), near)
    made = with_image_prompts(model, images, adapter, scale, encoder, options.noise_level or 0)
    named_so = {"image_prompt": recorded, "ip_adapter": adapter_name, "image_encoder": encoder_name}
    return made, replace(options, **named_so)


@guidance
def on_torus(denoise: Denoise, axes: str) -> Denoise:
    """A denoiser whose convolutions continue an image's edges on the other side."""

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        with seamless(axes):
            return denoise(x, sigma, cond)

    return guided


@guidance
def with_extra(denoise: Denoise, extra: Mapping[str, Tensor]) -> Denoise:
    """A denoiser whose condition has these further parts."""

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        cond = cond or Cond()
        return denoise(x, sigma, replace(cond, extra={**cond.extra, **extra}))

    return guided
