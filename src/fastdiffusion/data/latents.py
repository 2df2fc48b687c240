"""Images as latents of an autoencoder, encoded once, for latent diffusion models (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, InputError
from ..io.checkpoints import fingerprint, load_tensors, save_tensors
from ..io.images import as_input
from ..progress import Progress
from . import Batch, Dataset, cache_folder
from .dataset import Annotations, digest

BATCH = 32


class Latents(Dataset):
    """Another data set in the latents of an autoencoder, kept in the user's cache; labels, captions and names stay.

    Args:
        parent: Images of one size.
        autoencoder: A net with ``encode``, which is put in eval mode; or the autoencoder of another program's model.
        model_id: Of that model, which says what its latents are; by default the net's own weights say so.
        device: Where it encodes; by default where the net's weights are.

    Raises:
        InputError: Images of several sizes, or pairs.
    """

    def __init__(
        self, parent: Dataset, autoencoder: Any, model_id: str | None = None, device: torch.device | None = None
    ):
        if len(parent.groups) != 1:
            raise InputError("Latents need images of one size. Load the folder with aspect='crop'.")
        if parent.cond_channels:
            raise InputError(
                f"{parent.name} is made of pairs: a model learns these from pixels. Leave out autoencoder."
            )
        channels = getattr(autoencoder, "image_channels", parent.shape[0])
        if channels != parent.shape[0]:
            raise InputError(
                f"This autoencoder takes images of {channels} channels, those of {parent.name} have "
                f"{parent.shape[0]}. Load the folder with mode={'L' if channels == 1 else 'RGB'!r}, or train another."
            )
        self.parent, self.name, self.classes, self.report = parent, parent.name, parent.classes, parent.report
        self.options = parent.options
        encoded_by = fingerprint(autoencoder.state_dict()) if model_id is None else model_id
        self.fingerprint = digest("latents", parent.fingerprint, encoded_by)
        self.rows = [parent.source(i) for i in range(len(parent))]  # an image that is listed twice is encoded once
        if isinstance(autoencoder, nn.Module):
            autoencoder.eval()
        self.values = self._cached(autoencoder, device or next(autoencoder.parameters()).device)
        _, c, h, w = self.values.shape
        self.shape = (c, h, w)
        at = {row: i for i, row in enumerate(sorted(set(self.rows)))}
        self.place = torch.tensor([at[row] for row in self.rows])

    def _cached(self, autoencoder: Any, device: torch.device) -> Tensor:
        path = cache_folder() / "latents" / f"{self.fingerprint}.safetensors"
        try:
            return load_tensors(path)[1]["latents"]
        except (CheckpointError, KeyError):
            values = self._encoded(autoencoder, device)
            save_tensors(path, {"latents": values}, {})
            return values

    @torch.no_grad()
    def _encoded(self, autoencoder: Any, device: torch.device) -> Tensor:
        rows, parts = sorted(set(self.rows)), []
        for start in Progress(range(0, len(rows), BATCH), "encoding"):
            images = self.parent.batch(rows[start : start + BATCH]).images
            x = as_input(images).to(device)
            parts.append(autoencoder.encode(x.contiguous(memory_format=torch.channels_last)).cpu())
        return torch.cat(parts).contiguous()

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        """See :meth:`Dataset.batch`; the images are latents in float32."""
        return Batch(self.values[self.place[list(indices)]], *self.parent.annotations(indices, generator))

    def annotations(self, indices: Sequence[int], generator: torch.Generator | None = None) -> Annotations:
        """See :meth:`Dataset.annotations`."""
        return self.parent.annotations(indices, generator)

    def texts(self, indices: Sequence[int] | None = None) -> list[str]:
        """See :meth:`Dataset.texts`."""
        return self.parent.texts(indices)

    def key(self, index: int) -> str:
        """See :meth:`Dataset.key`."""
        return self.parent.key(index)

    @cached_property
    def groups(self) -> list[list[int]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """See :attr:`Dataset.groups`."""
        return [list(range(len(self)))]
