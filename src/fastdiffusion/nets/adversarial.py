"""The parts of adversarial training: a critic of patches, its losses, and what keeps the game stable.

d_loss, g_loss = LOSSES["hinge"]
d_loss(critic(real), critic(fake.detach())) + 5 * r1(critic, real)     # the critic's turn
weight = adaptive_weight(reconstruction, g_loss(critic(fake)), last)   # the generator's
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from .layers import Down, norm, records_config


class PatchDiscriminator(nn.Module):
    """One logit for each patch of an image: real or made (Isola et al. 2017, arXiv:1611.07004, sec. 3.2.2).

    Group norm instead of batch norm, so that each image is classified alone; blur-pool instead of strides, so that the
    gradient that the generator follows has no checkerboard.

    Args:
        channels: Of the images.
        condition: Channels of an image that they are conditioned on (pix2pix's input); 0 = none.
        width: Channels of the first layer; they double with each, up to eight times.
        depth: Halvings; a logit sees 9 * 2**depth - 4 pixels a side: 32 at 2, 68 at 3 (the paper's has 70).
    """

    config: dict[str, Any]

    @records_config
    def __init__(self, channels: int = 3, condition: int = 0, width: int = 64, depth: int = 3):
        super().__init__()
        wide = [width * min(2**i, 8) for i in range(depth + 1)]
        layers: list[nn.Module] = [nn.Conv2d(channels + condition, width, 3, padding=1), nn.LeakyReLU(0.2)]
        for n_in, n_out in pairwise(wide):
            layers += [Down(1.0), nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), norm(n_out), nn.LeakyReLU(0.2)]
        self.condition = condition
        self.layers = nn.Sequential(*layers, nn.Conv2d(wide[-1], 1, 3, padding=1))

    def forward(
        self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b k h w"] | None = None
    ) -> Float[Tensor, "b 1 H W"]:
        """Logits, high for real."""
        if (condition is None) == (self.condition > 0):
            raise InputError(f"This critic takes images {'with' if self.condition else 'without'} a condition.")
        # contiguous: where the first norm is the first to learn, its backward in channels-last memory is broken
        return self.layers((x if condition is None else torch.cat([x, condition], 1)).contiguous())


# ---- losses ---------------------------------------------------------------------------------------------------


class Losses(NamedTuple):
    """``discriminator(real, fake)`` of logits, and ``generator(fake)``; both are means over all patches."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


LOSSES: dict[str, Losses] = {
    # LSGAN (Mao et al. 2017, arXiv:1611.04076, eq. 9): never saturates; CycleGAN's choice
    "least_squares": Losses(
        lambda real, fake: ((real - 1).square().mean() + fake.square().mean()) / 2,
        lambda fake: (fake - 1).square().mean(),
    ),
    # Hinge (Lim & Ye 2017, arXiv:1705.02894): no gradient beyond the margin; VQGAN's choice
    "hinge": Losses(
        lambda real, fake: (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2,
        lambda fake: -fake.mean(),
    ),
    # The first GAN, in its non-saturating form (Goodfellow et al. 2014, sec. 3); goes with R1
    "logistic": Losses(
        lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
        lambda fake: F.softplus(-fake).mean(),
    ),
}


def r1(discriminator: Callable[[Tensor], Tensor], real: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """R1 (Mescheder et al. 2018, arXiv:1801.04406, eq. 9): half the squared gradient of the logit at real images.

    Multiply by gamma, 0.1 to 10. Of the patches' logits the mean is taken, as in the losses.
    """
    real = real.detach().requires_grad_()
    with torch.enable_grad():
        logits = discriminator(real).flatten(1).mean(1)
        (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean() / 2


def adaptive_weight(
    reconstruction: Float[Tensor, ""], adversarial: Float[Tensor, ""], last: Tensor, highest: float = 1e4
) -> Float[Tensor, ""]:
    """What to multiply the adversarial loss by, so that it pulls as hard as reconstruction does (VQGAN, eq. 7).

    lambda = |grad reconstruction| / (|grad adversarial| + 1e-6), both at ``last``, the weight of the generator's last
    layer (Esser et al. 2021, arXiv:2012.09841). Detached: it is a number, not a path for gradients.
    """
    pulls = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)]
    return (pulls[0] / (pulls[1] + 1e-6)).clamp(max=highest).detach()


class Pool(nn.Module):
    """Images made earlier, given to the critic again (Shrivastava et al. 2017; CycleGAN, Zhu et al. 2017, sec. 4).

    A critic that only sees the newest forgets what it has learned, and the two chase each other in circles. The pool
    is a module for its buffers' sake: with the state dict, a resumed run goes on bit for bit.

    Args:
        shape: (channels, height, width) of an image.
        size: How many are kept.
    """

    images: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, int, int], size: int = 50):
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def exchange(self, images: Float[Tensor, "b c h w"], source: torch.Generator) -> Float[Tensor, "b c h w"]:
        """Half of ``images``, at random, come back as older ones whose places they take; all until the pool is full."""
        shown = images.detach().clone()
        for i, image in enumerate(images.detach()):
            full = int(self.count) >= len(self.images)
            chance, place = torch.rand((), generator=source), torch.randint(len(self.images), (), generator=source)
            if not full:
                self.images[int(self.count)] = image
                self.count += 1
            elif chance < 0.5:
                shown[i] = self.images[place]
                self.images[place] = image
        return shown
