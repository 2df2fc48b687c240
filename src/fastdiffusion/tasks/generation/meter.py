"""What an evaluation costs: its time, and how often the network is evaluated in it."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from time import perf_counter
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ...guidance import guidance
from ...models import Model
from ...types import Cond, Denoise


class Meter:
    """Measures the evaluations of a guided denoiser, one at a time.

    On a GPU they are queued: a single time may say little there, the mean of a run is right.
    """

    def __init__(self, model: Model):
        self.nets = [module for name, module in model.modules.items() if name.startswith("net")]
        self.rows = self.thread = 0
        self.per_image, self.started = 0.0, perf_counter()

    def around(self, denoise: Denoise) -> Denoise:
        """The same denoiser, measured. It is given to one run."""
        return _measured(denoise, self)

    def cost(self) -> tuple[float, float]:
        """Seconds since the last evaluation began, and evaluations of the network for each image in it."""
        return perf_counter() - self.started, self.per_image

    def evaluate(self, denoise: Denoise, x: Tensor, sigma: Tensor, cond: Cond | None) -> Tensor:
        """The estimate, while the rows that the networks see in this thread are counted."""
        self.rows, self.thread, self.started = 0, threading.get_ident(), perf_counter()
        with ExitStack() as hooks:
            for net in self.nets:
                hooks.callback(net.register_forward_pre_hook(self._count, with_kwargs=True).remove)
            x0 = denoise(x, sigma, cond)
        self.per_image = self.rows / len(x)
        return x0

    def _count(self, net: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == self.thread:
            self.rows += len(next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor | list)))


@guidance
def _measured(denoise: Denoise, meter: Meter) -> Denoise:
    def measured(
        x: Float[Tensor, "b *d"], sigma: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b *d"]:
        return meter.evaluate(denoise, x, sigma, cond)

    return measured
