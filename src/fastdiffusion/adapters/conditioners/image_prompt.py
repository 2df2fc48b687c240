"""Images as prompts: an IP-Adapter, and the families that take an image's embedding anyway."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...errors import CheckpointError, InputError, missing
from ...guidance.attention import EXTERNAL
from ...guidance.core import to_rows
from ...io.checkpoints import read_safetensors
from ...io.images import open_image
from ...models import Model, Size, folder
from ...types import Cond
from ..attention import DiffusersAttention
from ..copies import copied
from ..families.stable_diffusion import StableDiffusion
from ..family import Control, Family
from ..image_encoder import ImageEncoder, mix
from ..sources.folders import Network, read_json
from .common import changed, checked_scale, copied_family, family_of, of_image

Weighted = tuple[str | Path | Image.Image, float]


def with_image_prompts(
    model: Model,
    images: Sequence[Weighted],
    adapter: str | Path | None = None,
    scale: float = 1.0,
    encoder: str | Path | None = None,
    noise_level: int = 0,
) -> Model:
    """A new model that draws what images show; of several, what lies between them.

    Args:
        model: Of Stable Diffusion 1, 2 or XL, with an ``adapter``; or of a family that takes an image anyway
            (StableDiffusionImageVariationPipeline, StableUnCLIPImg2ImgPipeline).
        images: Each with its weight; weights count by their share.
        adapter: An IP-Adapter's file, plain or "plus" (Ye et al. 2023, arXiv:2308.06721).
        scale: How strongly the adapter counts beside the prompt: 1 is what was trained, 0 is off.
        encoder: The folder of the adapter's image encoder, or its weights' file in it; by default ``image_encoder``
            beside it, or the model's own.
        noise_level: How much noise an unCLIP model adds to the embedding: 0 to 999, more is freer.

    Raises:
        CheckpointError: A file that is missing or damaged, or no image encoder.
        InputError: An adapter for another family, or of a kind that is not supported.
    """
    family = family_of(model, "An image prompt")
    opened = [(open_image(image, "image prompt"), weight) for image, weight in images]
    weights = [weight for _, weight in opened]
    if family.image == "prompt":
        if adapter is not None:
            raise InputError("This model takes images by itself. Leave --ip-adapter out.")
        other: Any = copied_family(family)
        other.embedding = mix([other.image_encoder.pooled(image) for image, _ in opened], weights)
        other.noise_level = _checked_level(noise_level)
        return changed(model, other, {}, [of_image(other.embedding), other.noise_level])
    if adapter is None:
        raise InputError("An image prompt needs an adapter here: ip_adapter='ip-adapter_sd15.safetensors'.")
    if not isinstance(family, StableDiffusion):
        raise InputError(f"IP-Adapters for {family.name} are not supported: Stable Diffusion 1, 2 and XL are.")
    if any(isinstance(each, ImagePrompt) for each in family.controls):
        raise InputError("This model has an IP-Adapter already. Give all images to that one.")
    path, scale = Path(os.path.expanduser(adapter)), checked_scale(scale, Path(adapter).name)
    parts = _read(path)
    images_of = _encoder(path, encoder, family, *_width(parts["image_proj"]))
    if "latents" in parts["image_proj"]:
        embedding, without = mix([images_of.tokens(image) for image, _ in opened], weights), images_of.tokens(None)
    else:
        embedding = mix([images_of.pooled(image) for image, _ in opened], weights)
        without = torch.zeros_like(embedding)
    made = copied(model, {}, {})
    net, other = made.modules["net"], cast("Any", made.denoise)
    _install(net, parts, scale, path)
    other.attention = EXTERNAL[net] = DiffusersAttention((*family.attention.without, "encoder_hid_proj"))
    other.controls = (*other.controls, ImagePrompt(embedding, without))
    settings = [folder.digest(path), of_image(embedding), scale]
    return changed(made, other, {"image_encoder": images_of.net}, settings, model)


class ImagePrompt(Control):
    """An embedding of images, for the adapter's layers in the network."""

    def __init__(self, embedding: Float[Tensor, "1 *d"], without: Float[Tensor, "1 *d"]):
        self.embedding, self.without = embedding, without

    def extra(self, shown: bool) -> Mapping[str, Tensor]:
        return {"image_prompt": self.embedding if shown else self.without}

    def inputs(
        self, family: Family, inputs: Mapping[str, Any], x: Tensor, t: Tensor, cond: Cond, size: Size
    ) -> dict[str, Any]:
        embedding = cond.extra.get("image_prompt")
        embedding = to_rows(self.without, len(x)) if embedding is None else embedding
        added = {**inputs.get("added_cond_kwargs", {}), "image_embeds": [embedding[:, None].to(x)]}
        return {**inputs, "added_cond_kwargs": added}


# ---- files ------------------------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of an IP-Adapter's file: its image projection, and its layers."""
    _, tensors = read_safetensors(path)
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise InputError(f"{path.name} is no IP-Adapter: it holds {key}.")
        parts[part][name] = tensor
    projection = parts["image_proj"]
    if not parts["ip_adapter"] or not ({"proj.weight", "latents"} & projection.keys()):
        raise InputError(f"{path.name} is no IP-Adapter of a supported kind: plain ones and those named plus are.")
    return parts


def _width(projection: Mapping[str, Tensor]) -> tuple[str, int]:
    """Which width of the image encoder it takes, as its configuration calls it, and how much that is."""
    if "latents" in projection:
        return "hidden_size", int(projection["proj_in.weight"].shape[1])
    return "projection_dim", int(projection["proj.weight"].shape[1])


def _encoder(path: Path, chosen: str | Path | None, family: Family, name: str, width: int) -> ImageEncoder:
    """The image encoder that goes with an adapter, by its width."""
    try:
        import transformers
    except ImportError:
        raise missing("An IP-Adapter", "diffusers and transformers", "sd") from None
    if chosen is not None:
        places = [place if (place := Path(os.path.expanduser(chosen))).is_dir() else place.parent]
    else:  # as the hub's repositories have them
        around = (path.parent, path.parent.parent, path.parent.parent / "models", family.checkpoint.path)
        places = [place / "image_encoder" for place in around]
    present = [place for place in places if (place / "config.json").is_file()]
    fitting = [place for place in present if read_json(place / "config.json").get(name) == width]
    if not fitting:
        have = f"{present[0]} has another" if present else "none is beside it"
        raise CheckpointError(
            f"{path.name} needs an image encoder with a {name} of {width}, and {have}. "
            "Name its folder: --image-encoder."
        )
    config = fitting[0] / "preprocessor_config.json"
    net = Network(fitting[0]).module("", transformers.CLIPVisionModelWithProjection, family.net.dtype)
    return ImageEncoder(net.to(family.net.device), read_json(config) if config.is_file() else None)


def _install(net: Any, parts: Mapping[str, Mapping[str, Tensor]], scale: float, path: Path) -> None:
    """Put an adapter's layers into a network, which is changed."""
    dtype, device = net.dtype, net.device
    try:
        net._load_ip_adapter_weights([parts], low_cpu_mem_usage=False)
    except (KeyError, RuntimeError, ValueError, IndexError) as error:
        raise InputError(
            f"{path.name} is an IP-Adapter for another model ({str(error).splitlines()[-1].strip()})."
        ) from None
    if sum(key.endswith("to_k_ip.weight") for key in parts["ip_adapter"]) != sum(
        hasattr(processor, "scale") for processor in net.attn_processors.values()
    ):
        raise InputError(f"{path.name} is an IP-Adapter for another model: it has another number of layers.")
    for processor in net.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [scale]
    net.to(device, dtype).eval().requires_grad_(False)


def _checked_level(level: int) -> int:
    if not (type(level) is int and 0 <= level < 1000):
        raise InputError(f"noise_level must be a whole number from 0 to 999, got {level!r}. 0 is usual.")
    return level
