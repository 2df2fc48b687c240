"""Guidance that only some families have."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..denoisers import from_x0, to_x0
from ..guidance import Scale, guidance, replace_text, scale_at
from ..types import Cond, Denoise, Run


@guidance
def norm_rescaled(
    denoise: Denoise,
    scale: Scale,
    uncond: Cond | None = None,
    packed: Callable[..., Tensor] = lambda v: v,
    unpacked: Callable[..., Tensor] = lambda v, shape: v,
    *,
    run: Run,
) -> Denoise:
    """Classifier-free guidance that keeps the length of the conditional estimate's velocity, token by token.

    ``packed`` has the numbers of one token in its last axis; ``unpacked(v, shape)`` is its inverse. 1 is off and costs
    one evaluation. As Qwen-Image and Lumina 2 are guided.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        now = scale_at(scale, run)
        if now == 1 or cond is None:
            return denoise(x, sigma, cond)
        both = Cond.cat([cond, replace_text(cond, uncond, len(x))])
        estimates = denoise(x.repeat(2, *[1] * (x.ndim - 1)), sigma.repeat(2), both).chunk(2)
        positive, negative = (packed(from_x0("flow", x0, x, sigma)) for x0 in estimates)
        v = negative + now * (positive - negative)
        v = v * (positive.norm(dim=-1, keepdim=True) / v.norm(dim=-1, keepdim=True))
        return to_x0("flow", unpacked(v, x.shape), x, sigma)

    return guided
