"""Between images and the latents that a family's network was trained on."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


class Vae:
    """A variational autoencoder: latents are the mode of the posterior, shifted and scaled for the network."""

    network: ClassVar[str | tuple[str, ...]] = "AutoencoderKL"  # class of diffusers

    def __init__(self, net: Any):
        self.net = net
        self.factor = 2 ** (len(net.config.block_out_channels) - 1)
        self.image_channels, self.latent_channels = int(net.config.in_channels), int(net.config.latent_channels)

    def encode(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b d *t"]:
        """The latents of images in [-1, 1]."""
        return self.normalize(self.net.encode(self._cast(x)).latent_dist.mode().to(x.dtype))

    def decode(self, z: Float[Tensor, "b d *t"]) -> Float[Tensor, "b c *s"]:
        """The images, in about [-1, 1], of latents."""
        return self.net.decode(self._cast(self.denormalize(z))).sample.to(z.dtype)

    def _cast(self, x: Tensor) -> Tensor:
        """In the VAE's precision, which is float32 from its first use on, where its configuration says so."""
        if self.net.dtype != torch.float32 and getattr(self.net.config, "force_upcast", True):
            self.net.float()
        return x.to(self.net.dtype)

    def normalize(self, z: Tensor) -> Tensor:
        """From what the VAE makes to what the network takes."""
        shift, std = self._moments(z)
        return (z - shift) / std * self._scaling

    def denormalize(self, z: Tensor) -> Tensor:
        """The inverse of :meth:`normalize`."""
        shift, std = self._moments(z)
        return z / self._scaling * std + shift

    @property
    def _scaling(self) -> float:
        return getattr(self.net.config, "scaling_factor", None) or 1.0

    def _moments(self, z: Tensor) -> tuple[Any, Any]:
        """What is subtracted from latents, and what they are divided by before they are scaled.

        Films and some fine-tunes of SDXL have both channel by channel; the others one shift, or none.
        """
        config = self.net.config
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is None or std is None:
            return getattr(config, "shift_factor", None) or 0.0, 1
        shape = (-1, *[1] * (z.ndim - 2))
        return torch.tensor(mean).to(z).view(shape), torch.tensor(std).to(z).view(shape)


class ChannelVae(Vae):
    """One of images as films of one frame, whose latents are normalised channel by channel (Qwen-Image, Wan)."""

    network = "AutoencoderKLQwenImage"

    def __init__(self, net: Any):
        self.net, self.factor = net, int(net.spatial_compression_ratio)
        self.image_channels, self.latent_channels = 3, int(net.config.z_dim)

    def encode(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b d *t"]:
        return super().encode(x[:, :, None])[:, :, 0] if x.ndim == 4 else super().encode(x)

    def decode(self, z: Float[Tensor, "b d *t"]) -> Float[Tensor, "b c *s"]:
        return super().decode(z[:, :, None])[:, :, 0] if z.ndim == 4 else super().decode(z)


class PatchVae(Vae):
    """One whose latents are stacked as patches of 2x2, and normalised by a batch norm's statistics (FLUX.2)."""

    network = "AutoencoderKLFlux2"

    def __init__(self, net: Any):
        super().__init__(net)
        self.factor, self.latent_channels = 2 * self.factor, 4 * self.latent_channels

    def _moments(self, z: Tensor) -> tuple[Tensor, Tensor]:
        norm = self.net.bn
        return norm.running_mean.to(z)[:, None, None], (norm.running_var.to(z) + norm.eps).sqrt()[:, None, None]

    def normalize(self, z: Tensor) -> Tensor:
        mean, std = self._moments(z)
        return (functional.pixel_unshuffle(z, 2) - mean) / std

    def denormalize(self, z: Tensor) -> Tensor:
        mean, std = self._moments(z)
        return functional.pixel_shuffle(z * std + mean, 2)
