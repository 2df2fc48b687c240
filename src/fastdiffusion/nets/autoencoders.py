"""Autoencoders between images and latents: a variational one, and three whose latents are tokens of a codebook.

All have one interface: ``encode(x) -> z`` gives standardized latents (mean 0, variance 1 over the data, by channel),
``decode(z) -> x`` images in [-1, 1]; all are convolutions, so any height and width will do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from .layers import Shuffle, conv, norm, pad_to, records_config, zero


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


class Autoencoder(nn.Module):
    """What all autoencoders share: an encoder, a decoder, and latents standardized between them."""

    config: dict[str, Any]
    encoder: Encoder
    decoder: Decoder
    factor: int  # pixels a side of one latent
    mean: Tensor
    std: Tensor

    def __init__(self, latent: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("std", torch.ones(latent))

    @property
    def noise_channels(self) -> int:
        """Of the noise that ``forward`` takes."""
        return len(self.mean)

    @property
    def image_channels(self) -> int:
        """Channels of an image."""
        return self.config["channels"]

    @property
    def latent_channels(self) -> int:
        """Channels of its latents."""
        return len(self.mean)

    def encode(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d H W"]:
        """The standardized latents of images."""
        raise NotImplementedError

    def decode(self, z: Float[Tensor, "b d H W"]) -> Float[Tensor, "b c h w"]:
        """The images of standardized latents."""
        raise NotImplementedError

    def anneal(self, progress: float) -> None:
        """Take the progress of the training, 0 to 1, before each of its steps."""

    @property
    def last(self) -> Tensor:
        """The weight of the last layer, where an adversarial loss is balanced."""
        return self.decoder.layers[-1].weight  # pyright: ignore[reportReturnType]

    def standardize(self, z: Float[Tensor, "n d h w"]) -> None:
        """Take mean and standard deviation of these latents, by channel, as those of the data."""
        self.mean.copy_(z.mean((0, 2, 3)))
        self.std.copy_(z.std((0, 2, 3), correction=0).clamp(min=1e-6))

    def _in(self, z: Tensor) -> Tensor:
        return (z - self.mean[:, None, None]) / self.std[:, None, None]

    def _out(self, z: Tensor) -> Tensor:
        return z * self.std[:, None, None] + self.mean[:, None, None]


class KL(Autoencoder):
    """A variational autoencoder (Kingma & Welling 2014) as latent diffusion uses it (Rombach et al. 2022).

    Args:
        channels: Of the images.
        latent: Channels of the latents.
        width: Channels of the first level.
        multiples: Channels of each level in units of ``width``; each level halves the size.
        blocks: Residual blocks of each level, on either side.
    """

    @records_config
    def __init__(
        self, channels: int = 3, latent: int = 4, width: int = 32, multiples: Sequence[int] = (1, 2), blocks: int = 1
    ):
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
        """The image of standardized latents."""
        return self.decoder(self._out(z))

    def forward(
        self, x: Float[Tensor, "b c h w"], noise: Float[Tensor, "b d H W"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b d"]]:
        """(reconstruction from a sample of q(z | x), its divergence in nats a number of each channel): sec. 2.4."""
        mean, log_var = self.posterior(x)
        y = self.decoder(mean + noise * (log_var / 2).exp())[..., : x.shape[-2], : x.shape[-1]]
        return y, divergence(mean.float(), log_var.float()).mean((2, 3))


def divergence(mean: Float[Tensor, "b *d"], log_var: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
    """KL(q(z | x) || N(0, 1)) of each latent number, in nats (Kingma & Welling 2014, app. B)."""
    return (mean.square() + log_var.exp() - 1 - log_var) / 2


# ---- latents that are tokens ------------------------------------------------------------------------------------


class Discrete(Autoencoder):
    """An autoencoder whose latents are tokens of a codebook; ``decode`` goes to the nearest tokens first."""

    codebook_size: int  # size of the codebook
    book: Tensor  # the vector of each

    def quantize(self, z: Float[Tensor, "b d H W"]) -> tuple[Float[Tensor, "b d H W"], Int64[Tensor, "b H W"]]:
        """The tokens nearest to ``z``, as vectors and as numbers."""
        rows = z.permute(0, 2, 3, 1).float()
        tokens = (self.book.square().sum(1) - 2 * rows @ self.book.T).argmin(-1)
        return self.book[tokens].permute(0, 3, 1, 2), tokens

    def vectors(self, tokens: Int64[Tensor, "b H W"]) -> Float[Tensor, "b d H W"]:
        """The vectors of tokens, standardized as ``encode`` gives them."""
        return self._in(self.book[tokens].permute(0, 3, 1, 2))

    def tokens(self, x: Float[Tensor, "b c h w"]) -> Int64[Tensor, "b H W"]:
        """The tokens of images, as numbers below ``codebook_size``."""
        return self.quantize(self.encoder(pad_to(x, self.factor)))[1]

    def encode(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d H W"]:
        """The tokens of images, as standardized vectors."""
        return self.vectors(self.tokens(x))

    def decode(self, z: Float[Tensor, "b d H W"]) -> Float[Tensor, "b c h w"]:
        """The image of standardized latents."""
        return self.decoder(self.quantize(self._out(z))[0])


def rotated(z: Float[Tensor, "b d H W"], to: Float[Tensor, "b d H W"]) -> Float[Tensor, "b d H W"]:
    """``z`` turned and stretched to ``to``, as if both were fixed (Fifty et al. 2024, arXiv:2410.06424, sec. 4).

    The value is ``to``. The gradient is turned along with it: what pushes a token's vector away pushes each that is
    quantized to it its own way, where the straight-through estimator pushes all alike.
    """
    lengths = [x.detach().norm(dim=1, keepdim=True).clamp(min=1e-6) for x in (z, to)]
    e, f = (x.detach() / length for x, length in zip((z, to), lengths, strict=True))
    half = F.normalize(e + f, dim=1)  # the rotation is a reflection there, and one at ``to``: eq. 4
    return (z - 2 * half * (half * z).sum(1, keepdim=True) + 2 * f * (e * z).sum(1, keepdim=True)) * (
        lengths[1] / lengths[0]
    )


class VQ(Discrete):
    """VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937) with the codebook as moving averages (app. A.1).

    The gradient of a token's vector is turned to the encoder's (:func:`rotated`). Unused tokens start again at a random
    latent of the batch (Dhariwal et al. 2020, Jukebox, sec. 3.1).

    Args:
        channels, width, multiples, blocks: As in ``KL``.
        latent: Length of a token's vector.
        codebook: Number of tokens.
        decay: Of the moving averages.
    """

    @records_config
    def __init__(
        self,
        channels: int = 3,
        latent: int = 4,
        width: int = 32,
        multiples: Sequence[int] = (1, 2),
        blocks: int = 1,
        codebook: int = 1024,
        decay: float = 0.99,
    ):
        super().__init__(latent)
        self.factor, self.codebook_size, self.decay = 2 ** len(multiples), codebook, decay
        self.encoder = Encoder(channels, latent, width, multiples, blocks)
        self.decoder = Decoder(channels, latent, width, multiples, blocks)
        self.register_buffer("book", torch.randn(codebook, latent))
        self.register_buffer("sums", torch.zeros(codebook, latent))
        self.register_buffer("uses", torch.zeros(codebook))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    sums: Tensor
    uses: Tensor

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(reconstruction, commitment of the encoder to its tokens, eq. 3); in training the codebook follows."""
        z = self.encoder(pad_to(x, self.factor)).float()
        q, tokens = self.quantize(z)
        if self.training:
            self._follow(z.detach().permute(0, 2, 3, 1).reshape(-1, z.shape[1]), tokens.flatten())
        turned = rotated(z, q)
        y = self.decoder(q + turned - turned.detach())
        return y[..., : x.shape[-2], : x.shape[-1]], (z - q.detach()).square().flatten(1).mean(1)

    @torch.no_grad()
    def _follow(self, rows: Float[Tensor, "n d"], tokens: Int64[Tensor, " n"]) -> None:
        uses = tokens.bincount(minlength=self.codebook_size).float()
        self.uses.lerp_(uses, 1 - self.decay)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, tokens, rows), 1 - self.decay)
        idle = self.uses < 0.01 * len(rows) / self.codebook_size
        chosen = rows[torch.randint(len(rows), (self.codebook_size,))]
        self.uses[idle] = len(rows) / self.codebook_size
        self.sums[idle] = chosen[idle] * len(rows) / self.codebook_size
        self.book.copy_(self.sums / self.uses.clamp(min=1e-8)[:, None])


class FSQ(Discrete):
    """Finite scalar quantization (Mentzer et al. 2023, arXiv:2309.15505): every channel is rounded to a few levels.

    No codebook is learned, so none can be left unused.

    Args:
        channels, width, multiples, blocks: As in ``KL``.
        levels: Number of values of each latent channel; their product is the number of tokens.
    """

    @records_config
    def __init__(
        self,
        channels: int = 3,
        width: int = 32,
        multiples: Sequence[int] = (1, 2),
        blocks: int = 1,
        levels: Sequence[int] = (8, 5, 5, 5),
    ):
        super().__init__(len(levels))
        self.factor, self.codebook_size = 2 ** len(multiples), math.prod(levels)
        self.encoder = Encoder(channels, len(levels), width, multiples, blocks)
        self.decoder = Decoder(channels, len(levels), width, multiples, blocks)
        n = torch.tensor(levels)
        self.register_buffer("levels", n[:, None, None])
        self.register_buffer("places", torch.tensor([1, *levels[:-1]]).cumprod(0)[:, None, None])
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    levels: Tensor
    places: Tensor

    def bound(self, z: Float[Tensor, "b d H W"]) -> Float[Tensor, "b d H W"]:
        """Into the range whose rounding has ``levels`` values (sec. 3.1)."""
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return (z + (offset / half).atanh()).tanh() * half - offset

    def quantize(self, z: Float[Tensor, "b d H W"]) -> tuple[Float[Tensor, "b d H W"], Int64[Tensor, "b H W"]]:
        """See :meth:`Discrete.quantize`; ``z`` is the encoder's output, or already rounded and scaled to [-1, 1]."""
        whole = torch.minimum((z * (self.levels // 2)).round(), (self.levels - 1) // 2).maximum(-(self.levels // 2))
        tokens = ((whole + self.levels // 2).long() * self.places).sum(1)
        return whole / (self.levels // 2), tokens

    def tokens(self, x: Float[Tensor, "b c h w"]) -> Int64[Tensor, "b H W"]:
        """See :meth:`Discrete.tokens`."""
        return self.quantize(self._bounded(x))[1]

    def vectors(self, tokens: Int64[Tensor, "b H W"]) -> Float[Tensor, "b d H W"]:
        """See :meth:`Discrete.vectors`."""
        whole = tokens[:, None] // self.places % self.levels - self.levels // 2
        return self._in(whole / (self.levels // 2))

    def _bounded(self, x: Tensor) -> Tensor:
        return self.bound(self.encoder(pad_to(x, self.factor)).float()) / (self.levels // 2)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(reconstruction, 0): there is no other loss."""
        z = self._bounded(x)
        y = self.decoder(z + (self.quantize(z)[0] - z).detach())
        return y[..., : x.shape[-2], : x.shape[-1]], torch.zeros(len(x), device=x.device)


class Gumbel(Discrete):
    """A discrete VAE (dVAE; Ramesh et al. 2021, arXiv:2102.12092, sec. 2.1): a posterior over the tokens of each place.

    In training, noise draws from it by the Gumbel-softmax (Jang et al. 2017; Maddison et al. 2017): a blend of tokens,
    which hardens as the temperature falls. Afterwards the likeliest token is taken. Tokens are likely by how near their
    vectors are (Takida et al. 2022, SQ-VAE, arXiv:2205.07547): with logits of their own, most tokens stay idle.

    Args:
        channels, width, multiples, blocks: As in ``KL``.
        latent: Length of a token's vector.
        codebook: Number of tokens.
    """

    @records_config
    def __init__(
        self,
        channels: int = 3,
        latent: int = 4,
        width: int = 32,
        multiples: Sequence[int] = (1, 2),
        blocks: int = 1,
        codebook: int = 1024,
    ):
        super().__init__(latent)
        self.factor, self.codebook_size, self.temperature = 2 ** len(multiples), codebook, 1.0
        self.encoder = Encoder(channels, latent, width, multiples, blocks)
        self.decoder = Decoder(channels, latent, width, multiples, blocks)
        self.book = nn.Parameter(torch.randn(codebook, latent))
        self.log_precision = nn.Parameter(torch.zeros(()))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def anneal(self, progress: float) -> None:
        """The temperature falls from 1 to 1/16 in the first half of the training, as a cosine (app. A.2)."""
        self.temperature = 1 / 16 + 15 / 32 * (1 + math.cos(math.pi * min(2 * progress, 1)))

    def logits(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b H W k"]:
        """Of each word at each place: minus half the squared distance, in units of a width that is learned."""
        rows = self.encoder(pad_to(x, self.factor)).permute(0, 2, 3, 1).float()
        return self.log_precision.exp() * (rows @ self.book.T - self.book.square().sum(1) / 2)

    @property
    def noise_channels(self) -> int:
        """Of the noise that ``forward`` takes: a number for each token."""
        return self.codebook_size

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(reconstruction from a draw, divergence of the posterior from the uniform distribution, in nats a place).

        ``noise`` is Gaussian, (b, codebook, H, W), so that a draw is of its example, whatever the batch; or fresh.
        """
        logits = self.logits(x)
        if noise is None:
            exponential = torch.empty(logits.shape).exponential_()  # drawn on the CPU, whatever the device
        else:
            exponential = -torch.special.log_ndtr(noise.permute(0, 2, 3, 1))  # -log of an even number
        gumbels = -exponential.log().to(logits)
        soft = ((logits + gumbels) / self.temperature).softmax(-1)
        y = self.decoder((soft @ self.book).permute(0, 3, 1, 2))
        log_q = logits.log_softmax(-1)
        penalty = (log_q.exp() * log_q).sum(-1) + math.log(self.codebook_size)
        return y[..., : x.shape[-2], : x.shape[-1]], penalty.flatten(1).mean(1)
