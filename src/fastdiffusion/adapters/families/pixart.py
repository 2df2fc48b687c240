"""PixArt-Sigma."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ...errors import InputError
from ...models import Size
from ...types import Cond
from ..family import T5, Family
from ..levels import TrainedLevels
from ..texts import Text, rows_of


class PixArtSigma(Family):
    """A transformer with cross-attention to the real tokens of T5; half of its channels predict noise."""

    name, scale, masks, patch = "pixart-sigma", 4.5, True, 2
    network, encoders = "PixArtTransformer2DModel", (T5._replace(limit=300),)

    def noise_levels(self, scheduler: Mapping[str, Any]) -> TrainedLevels:
        return TrainedLevels(scheduler)

    def reader(self, encoder: Any, tokenizer: Any, limit: int) -> Text:
        return Text(encoder, tokenizer, limit, "longest", lowered)

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        return rows_of(self.main(prompts, masked=True)[0], self.main.tokens(prompts)[1])

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        out = self.net(
            x,
            encoder_hidden_states=cond.emb,
            encoder_attention_mask=None if cond.mask is None else cond.mask.to(x),
            timestep=t,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return out[:, : x.shape[1]]  # the rest predicts variances

    def check(self) -> None:
        if self.net.use_additional_conditions:
            raise InputError(f"{self.checkpoint.path} is a PixArt-alpha, which is not supported. Take a PixArt-Sigma.")

    def pipeline_options(self, scale: float) -> dict[str, Any]:
        return {"guidance_scale": scale, "use_resolution_binning": False, "clean_caption": False}


def lowered(text: str) -> str:
    """A text in small letters, as PixArt and SANA are trained; without spaces at its end."""
    return text.lower().rstrip()
