"""Between images and the latents that a family's network was trained on."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor


class Vae:
    """A variational autoencoder: latents are the mode of the posterior, shifted and scaled for the network."""

    network: ClassVar[str | tuple[str, ...]] = "AutoencoderKL"  # class of diffusers

    def __init__(self, net: Any):
        self.net = net
        self.factor = 2 ** (len(net.config.block_out_channels) - 1)
        self.image_channels, self.latent_channels = int(net.config.in_channels), int(net.config.latent_channels)

    def encode(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b d *t"]:
        """The latents of images in [-1, 1]."""
        return self.normalize(self.net.encode(x.to(self.net.dtype)).latent_dist.mode().to(x.dtype))

    def decode(self, z: Float[Tensor, "b d *t"]) -> Float[Tensor, "b c *s"]:
        """The images, in about [-1, 1], of latents."""
        return self.net.decode(self.denormalize(z).to(self.net.dtype)).sample.to(z.dtype)

    def normalize(self, z: Tensor) -> Tensor:
        """From what the VAE makes to what the network takes."""
        config = self.net.config
        return (z - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor

    def denormalize(self, z: Tensor) -> Tensor:
        """The inverse of :meth:`normalize`."""
        config = self.net.config
        return z / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
