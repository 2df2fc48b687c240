"""Networks that read a map of an image, such as its edges, depth or pose, and steer another network by it.

A ControlNet (Zhang et al. 2023, arXiv:2302.05543) computes its residuals anew at every noise level; a T2I-Adapter (Mou
et al. 2023, arXiv:2302.08453) once for the whole run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from ...errors import InputError, missing
from ...guidance.core import to_rows
from ...io.images import flatten, open_image, to_tensor
from ...io.inputs import fit_image
from ...models import Model, Size, folder
from ...nets.translators import edges
from ...types import Cond
from ..families.stable_diffusion import StableDiffusion
from ..family import Control, Family
from ..texts import grouped
from .common import changed, checked_scale, copied_family, family_of, of_image, open_network

Window = tuple[float, float]
WHOLE: Window = (0.0, 1.0)
SHAPES = 0.02  # by how much the ratio of a map's sides may differ from the run's


@dataclass(frozen=True)
class Controlled:
    """What steers a run: a network and its map.

    Attributes:
        network: The folder of a ControlNet or T2I-Adapter, or its weights' file in it.
        image: The map, or its file; or what it is made of.
        scale: How strongly it counts: 1 is what was trained, 0 is off.
        window: Part of the run in which it does, from 0 to 1.
        edges: Whether the map is to be made of the image: white lines on black where brightness or color changes.
    """

    network: str | Path
    image: str | Path | Image.Image
    scale: float = 1.0
    window: Window = WHOLE
    edges: bool = False


def with_controls(model: Model, controls: Sequence[Controlled], size: Size | None = None) -> Model:
    """A new model whose network is steered by maps; of several, all add up.

    Args:
        model: Of Stable Diffusion 1, 2 or XL.
        controls: The networks and their maps.
        size: Height and width of the images; the model's own by default.

    Raises:
        CheckpointError: A network that is missing or damaged.
        InputError: One for another family; a map of another shape than the images; a scale or window that is no number.
    """
    made = model
    for one in controls:
        family = family_of(made, "A ControlNet")
        if not isinstance(family, StableDiffusion):
            raise InputError(f"ControlNets for {family.name} are not supported: Stable Diffusion 1, 2 and XL are.")
        what = Path(one.network).name
        scale, window = checked_scale(one.scale, what), _checked_window(one.window, what)
        net, weights = open_network(Path(one.network), _kinds(), "ControlNet or T2I-Adapter", family.net.dtype)
        net.to(model.device)
        _check(net, family, what)
        image = control_map(one, _channels(net, what), size or model.pixels).to(model.device)
        other = copied_family(family)
        kind = T2IAdapter if type(net).__name__ == "T2IAdapter" else ControlNet
        other.controls = (*family.controls, kind(net, image, scale, window))
        settings = [folder.digest(weights), of_image(image), scale, *window]
        made = changed(made, other, {"control": net}, settings)
    return made


def new_control(model: Model, start: str | Path | None = None) -> Model:
    """A new model under a ControlNet to train, ``modules["control"]``, whose maps are in ``cond.extra["control"]``.

    It begins as a copy of the encoder of the network (Zhang et al. 2023, sec. 3.1), and as yet changes nothing; or as
    the ControlNet in the folder ``start``, such as that of an earlier version of this model. Maps have three channels
    in [0, 1].
    """
    family = family_of(model, "A ControlNet")
    if not isinstance(family, StableDiffusion):
        raise InputError(f"ControlNets for {family.name} are not supported: Stable Diffusion 1, 2 and XL are.")
    known = _kinds()["ControlNetModel"]
    if start is None:
        widths = tuple(16 * 2**level for level in range(family.autoencoder.factor.bit_length()))
        net, settings = known.from_unet(family.net, conditioning_embedding_out_channels=widths), ["untrained"]
        # zero convolutions at the way out suffice: with a second one behind the map, neither would learn for long
        net.controlnet_cond_embedding.conv_out.reset_parameters()
    else:
        kinds = {"ControlNetModel": known}
        net, weights = open_network(Path(start), kinds, "ControlNet", torch.float32)
        _check(net, family, Path(start).name)
        settings = [folder.digest(weights)]
    net = net.to(family.net.device, torch.float32)
    other = copied_family(family)
    blank = torch.zeros(1, 3, *model.pixels, device=family.net.device)
    other.controls = (*family.controls, ControlNet(net, blank, 1.0, WHOLE))
    return changed(model, other, {"control": net}, settings)


def edge_map(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:
    """White lines on black where brightness or color changes, in [0, 1], of images in [-1, 1]."""
    return ((1 - edges(images)) / 2).expand(-1, 3, -1, -1)


def control_map(control: Controlled, channels: int, size: Size) -> Float[Tensor, "1 c h w"]:
    """The map of a run, in [0, 1], as the network takes it."""
    image = open_image(control.image, "control image")
    width, height = image.size
    if abs(width * size[0] / (height * size[1]) - 1) > SHAPES:
        raise InputError(
            f"The control image has {width}x{height} pixels and the images {size[1]}x{size[0]}, another shape. "
            f"Crop it, or make images of its shape: size='{width // 8 * 8}x{height // 8 * 8}'."
        )
    if control.edges:
        drawn = edge_map(to_tensor(flatten(image).convert("RGB"))[None])  # at its own size, where they are sharp
        drawn = functional.adaptive_max_pool2d(drawn, size) if height > size[0] else functional.interpolate(drawn, size)
        return drawn[:, :channels]
    return (fit_image(image, (channels, *size))[None] + 1) / 2


def _kinds() -> dict[str, Any]:
    try:
        import diffusers
    except ImportError:
        raise missing("A ControlNet", "diffusers and transformers", "sd") from None
    return {name: getattr(diffusers, name) for name in ("ControlNetModel", "T2IAdapter")}


def _checked_window(window: Window, what: str) -> Window:
    start, end = window
    if not 0 <= start < end <= 1:
        raise InputError(f"{what} holds from {start:g} to {end:g} of the run, which is no part of it. Example: 0-0.5.")
    return float(start), float(end)


def _channels(net: Any, what: str) -> int:
    """Of the map: 1 or 3."""
    channels = net.config.get("conditioning_channels", net.config.get("in_channels"))
    if channels not in (1, 3) or net.config.get("global_pool_conditions", False):
        raise InputError(f"{what} takes {channels} channels or pools them, which is not supported. Take one for maps.")
    return int(channels)


def _check(net: Any, family: Family, what: str) -> None:
    """Raise InputError for a network of another family."""
    own, other = family.net.config, net.config
    if type(net).__name__ == "T2IAdapter":
        fits = list(other.channels)[: len(own.block_out_channels)] == list(own.block_out_channels)
        fits = fits and (other.adapter_type == "full_adapter_xl") == (own.addition_embed_type is not None)
        is_for = f"{len(other.channels)} levels of {', '.join(map(str, other.channels))} channels"
        has = ", ".join(map(str, own.block_out_channels))
    else:
        names = ("block_out_channels", "cross_attention_dim", "down_block_types", "layers_per_block")
        values = [(list(c[n]) if isinstance(c[n], tuple) else c[n] for n in names) for c in (other, own)]
        fits = (
            all(a == b for a, b in zip(*values, strict=True))
            and other.in_channels == family.autoencoder.latent_channels
        )
        fits = fits and other.get("addition_embed_type") == own.get("addition_embed_type")
        is_for, has = f"texts of width {other.cross_attention_dim}", str(own.cross_attention_dim)
    if not fits:
        raise InputError(
            f"{what} is for another model: for {is_for}, and this one, {family.name}, has {has}, or other layers. "
            f"Take one for {family.name}."
        )


@dataclass(frozen=True, eq=False)
class _Steering(Control):
    """A network, its map in [0, 1], and when it counts."""

    net: Any
    image: Float[Tensor, "1 c h w"]
    scale: float
    window: Window

    def holds(self, family: Family, size: Size) -> bool:
        """Whether it counts at the present evaluation."""
        if self.image.shape[-2:] != size:
            height, width = self.image.shape[-2:]
            raise InputError(f"The control image is for images of {width}x{height}, and these are {size[1]}x{size[0]}.")
        if self.window == WHOLE:
            return self.scale != 0
        if family.run is None or not family.run.sigmas:
            raise InputError(
                "A part of the run needs a sampler with a fixed number of evaluations. Take one of samplers.SAMPLERS."
            )
        return self.scale != 0 and self.counts(family.run.index, len(family.run.sigmas))

    def counts(self, index: int, evaluations: int) -> bool:
        """Whether an evaluation lies within the window, from its beginning to its end."""
        return index / evaluations >= self.window[0] and (index + 1) / evaluations <= self.window[1]


class ControlNet(_Steering):
    """Adds a residual to each skip connection, and one to the middle.

    ``cond.extra["control"]`` has a map for each image in the place of the one for all, as in training.
    """

    def inputs(
        self, family: Family, inputs: Mapping[str, Any], x: Tensor, t: Tensor, cond: Cond, size: Size
    ) -> dict[str, Any]:
        inputs = dict(inputs)
        if not self.holds(family, size):
            return inputs
        image = to_rows(cond.extra.get("control", self.image), len(x)).to(x)
        down, mid = self._residuals(inputs, x, t, image)
        before = inputs.get("down_block_additional_residuals")
        inputs["down_block_additional_residuals"] = (
            down if before is None else [a + b for a, b in zip(before, down, strict=True)]
        )
        inputs["mid_block_additional_residual"] = mid + inputs.get("mid_block_additional_residual", 0)
        return inputs

    def _residuals(self, inputs: Mapping[str, Any], x: Tensor, t: Tensor, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """What it adds; it takes no mask, so that rows whose texts differ in length go one after the other."""
        emb, mask = inputs["encoder_hidden_states"], inputs.get("encoder_attention_mask")
        others = {name: inputs[name] for name in ("timestep_cond", "added_cond_kwargs") if inputs.get(name) is not None}
        found: list[list[Tensor]] = []
        order: list[int] = []
        for rows, some in grouped(Cond(emb=emb), mask):
            own = pytree.tree_map(lambda v, rows=rows: v[rows], others)
            down, mid = self.net(
                x[rows], t[rows], some.emb, image[rows], conditioning_scale=self.scale, **own, return_dict=False
            )
            found.append([*down, mid])
            order += rows
        inverse = torch.tensor(order).argsort().to(x.device)
        *down, mid = (torch.cat(parts)[inverse] if len(found) > 1 else parts[0] for parts in zip(*found, strict=True))
        return down, mid


class T2IAdapter(_Steering):
    """Adds its features, computed once, after each level of the network's encoder."""

    def __init__(self, net: Any, image: Tensor, scale: float, window: Window):
        super().__init__(net, image, scale, window)
        step = net.total_downscale_factor
        if any(side % step for side in image.shape[-2:]):
            height, width = image.shape[-2:]
            raise InputError(f"This T2I-Adapter takes sizes that divide by {step}, got {width}x{height}.")
        with torch.no_grad():
            object.__setattr__(self, "features", [scale * f for f in net(image.to(net.dtype))])

    def inputs(
        self, family: Family, inputs: Mapping[str, Any], x: Tensor, t: Tensor, cond: Cond, size: Size
    ) -> dict[str, Any]:
        inputs = dict(inputs)
        if not self.holds(family, size):
            return inputs
        name, features = "down_intrablock_additional_residuals", self.features  # type: ignore[attr-defined]
        before = inputs.get(name)
        added = [f.to(x).expand(len(x), -1, -1, -1) for f in features]
        inputs[name] = added if before is None else [a + b for a, b in zip(before, added, strict=True)]
        return inputs
