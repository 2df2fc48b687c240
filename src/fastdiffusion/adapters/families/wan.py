"""Wan 2.1, from texts to films: latents have an axis of time."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...errors import InputError
from ...models import Size
from ...types import Cond
from ..autoencoders import ChannelVae
from ..family import T5, Family


class WanVae(ChannelVae):
    """A VAE of films: 1 + 4 n frames are 1 + n frames of latents."""

    network = "AutoencoderKLWan"

    @property
    def temporal_factor(self) -> int:
        """Frames of a film for each of the latents after the first."""
        return int(self.net.config.scale_factor_temporal)


class Wan(Family):
    """The states of UMT5, zeros for padding, up to 512 tokens; a usual film has 81 frames of 480 x 832 pixels."""

    name, scale, patch, vae, time = "wan", 5.0, 2, WanVae, "1000 t"
    network = "WanTransformer3DModel"
    encoders = (T5._replace(network="UMT5EncoderModel"),)
    frames = 21  # of latents

    def check(self) -> None:
        settings = self.checkpoint.settings
        if settings.get("boundary_ratio") is not None or settings.get("expand_timesteps"):
            raise InputError(
                f"{self.checkpoint.path} is a Wan 2.2, whose two networks, or smaller latents, are not supported. "
                "Take a Wan 2.1."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.autoencoder.latent_channels, self.frames, 60, 104)

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        states, (_, real) = self.main(prompts, masked=True)[0], self.main.tokens(prompts)
        return Cond(emb=(states * real[:, :, None]).float())

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.net(hidden_states=x, timestep=t, encoder_hidden_states=cond.emb, return_dict=False)[0]
