"""Convolutions on a torus: the left edge of an image continues on the right one, the top on the bottom.

    with seamless("xy"):
        x0 = net(x, c_noise)

While the context is entered, every convolution of this thread pads its input with what is at the other side, in place
of zeros. Nothing is changed in a network, so that nothing has to be put back. A network without positions (most U-Nets)
then commutes with rolling its input, by as many pixels as its strides allow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..errors import InputError, unknown
from .dit import DiT

AXES = ("x", "y", "xy")


@contextmanager
def seamless(axes: str) -> Iterator[None]:
    """Convolve on a torus in this thread until the context is left; ``axes`` are "x", "y" or "xy"."""
    if axes not in AXES:
        raise unknown("pair of edges", axes, AXES)
    with _Circular("x" in axes, "y" in axes):
        yield


def check_seamless(net: nn.Module) -> None:
    """Raise InputError for a network whose convolutions do not see over the edge: a transformer, or a compiled one."""
    padded = any(isinstance(m, nn.Conv2d) and m.padding not in ((0, 0), "valid") for m in net.modules())
    if not padded or any(isinstance(m, DiT) for m in net.modules()):
        raise InputError("seamless needs a network of convolutions, and this one is a transformer. Leave it out.")
    if any("forward" in vars(m) or getattr(m, "_compiled_call_impl", None) for m in net.modules()):
        raise InputError("seamless computes in torch, and this network runs in another engine. Leave --engine out.")


class _Circular(TorchFunctionMode):
    def __init__(self, x: bool, y: bool) -> None:
        super().__init__()
        self.x, self.y = x, y

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d:
            names = ("input", "weight", "bias", "stride", "padding")
            inputs = dict(zip(names, args, strict=False)) | kwargs
            padding = inputs.get("padding", 0)
            padding = (padding, padding) if isinstance(padding, int) else padding
            if padding == "same":
                padding = tuple((k - 1) // 2 for k in inputs["weight"].shape[-2:])
            if not isinstance(padding, str) and any(padding) and inputs["input"].ndim == 4:
                high, wide = padding[0], padding[-1]
                around = self._around(inputs["input"], (wide, wide, high, high), "constant")
                return func(around, inputs["weight"], inputs.get("bias"), inputs.get("stride", 1), 0, *args[5:], **{
                    name: value for name, value in kwargs.items() if name not in names
                })  # fmt: skip
        if func is functional.pad:
            image, sides, mode = args[0], tuple(args[1] if len(args) > 1 else kwargs["pad"]), _mode(args, kwargs)
            of_images = image.ndim == 4 and len(sides) == 4 and min(sides) >= 0
            if of_images and (mode == "replicate" or (mode == "constant" and sides == (0, 1, 0, 1))):
                return self._around(image, sides, mode)
        return func(*args, **kwargs)

    def _around(self, x: Tensor, sides: tuple[int, ...], mode: str) -> Tensor:
        """Padded left, right, top and bottom: circularly on the axes that are seamless, else by ``mode``."""
        left, right, top, bottom = sides
        for pad, circular in (((left, right, 0, 0), self.x), ((0, 0, top, bottom), self.y)):
            if any(pad):
                x = functional.pad(x, pad, "circular") if circular else functional.pad(x, pad, mode)
        return x


def _mode(args: Any, kwargs: Any) -> str:
    return args[2] if len(args) > 2 else kwargs.get("mode", "constant")
