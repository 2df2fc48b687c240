"""Codecs between pictures and latents: a variational autoencoder, and one whose latents are words of a codebook.

Both speak one language: ``encode(x) -> z`` gives standardized latents (mean 0, variance 1 over the data, by channel),
``decode(z) -> x`` pictures in [-1, 1]; both are convolutions, so any height and width will do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .layers import Shuffle, conv, keywords, norm, pad_to, zero


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, n: int):
        super().__init__()
        self.norm1, self.conv1, self.norm2, self.conv2 = norm(n), conv(n, n), norm(n), zero(conv(n, n))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Encoder(nn.Module):
    """Pixels to features of ``out`` channels at 1 / (2 ** levels) of the size."""

    def __init__(self, channels: int, out: int, width: int, multiples: Sequence[int], blocks: int):
        super().__init__()
        layers: list[nn.Module] = []
        n = channels
        for multiple in multiples:  # 2x2 pixels become one with four times the channels, then a convolution
            layers += [nn.PixelUnshuffle(2), conv(4 * n, width * multiple)]
            n = width * multiple
            layers += [Residual(n) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, norm(n), nn.SiLU(), conv(n, out))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o H W"]:
        return self.layers(x)


class Decoder(nn.Module):
    """Features back to pixels; the last convolution works at full size and hides the seams of the one before it."""

    def __init__(self, channels: int, n_in: int, width: int, multiples: Sequence[int], blocks: int):
        super().__init__()
        widths = [width * m for m in reversed(multiples)]
        layers: list[nn.Module] = [conv(n_in, widths[0])]
        for n, after in zip(widths, [*widths[1:], max(width // 2, 8)], strict=True):
            layers += [Residual(n) for _ in range(blocks)]
            layers += [norm(n), nn.SiLU(), Shuffle(n, after, 2)]
        self.layers = nn.Sequential(*layers, nn.SiLU(), conv(max(width // 2, 8), channels))

    def forward(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c H W"]:
        return self.layers(z)


class Codec(nn.Module):
    """What all autoencoders share: standardized latents."""

    def __init__(self, latent: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("std", torch.ones(latent))

    mean: Tensor
    std: Tensor

    def standardize(self, z: Float[Tensor, "n d h w"]) -> None:
        """Take mean and standard deviation of these latents, by channel, as those of the data."""
        self.mean.copy_(z.mean((0, 2, 3)))
        self.std.copy_(z.std((0, 2, 3)).clamp(min=1e-6))

    def _in(self, z: Tensor) -> Tensor:
        return (z - self.mean[:, None, None]) / self.std[:, None, None]

    def _out(self, z: Tensor) -> Tensor:
        return z * self.std[:, None, None] + self.mean[:, None, None]


class KL(Codec):
    """A variational autoencoder (Kingma & Welling 2014) as latent diffusion uses it (Rombach et al. 2022).

    Args:
        channels: Of the pictures.
        latent: Channels of the latents.
        width: Channels of the first level.
        multiples: Channels of each level in units of ``width``; each level halves the size.
        blocks: Residual blocks of each level, on either side.
    """

    def __init__(
        self, channels: int = 3, latent: int = 4, width: int = 32, multiples: Sequence[int] = (1, 2), blocks: int = 1
    ):
        self.config = keywords(locals())
        super().__init__(latent)
        self.factor = 2 ** len(multiples)
        self.encoder = Encoder(channels, 2 * latent, width, multiples, blocks)
        self.decoder = Decoder(channels, latent, width, multiples, blocks)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def posterior(self, x: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x)."""
        mean, log_var = self.encoder(pad_to(x, self.factor)).chunk(2, 1)
        return mean, log_var.clamp(-30, 20)

    def encode(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d H W"]:
        """The mean of q(z | x), standardized."""
        return self._in(self.posterior(x)[0])

    def decode(self, z: Float[Tensor, "b d H W"]) -> Float[Tensor, "b c h w"]:
        """The picture of standardized latents."""
        return self.decoder(self._out(z))

    def forward(self, x: Float[Tensor, "b c h w"], noise: Float[Tensor, "b d H W"]) -> tuple[Tensor, Tensor, Tensor]:
        """(reconstruction from a sample of q(z | x), mean, log-variance): what training needs (sec. 2.4)."""
        mean, log_var = self.posterior(x)
        return self.decoder(mean + noise * (log_var / 2).exp())[..., : x.shape[-2], : x.shape[-1]], mean, log_var
