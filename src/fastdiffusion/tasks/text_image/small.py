"""Checkpoints of other programs' classes, trained from nothing: what the text encoder learns before the denoiser."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data import Dataset
from ...noise import Stream, generator
from ...training.batches import title
from ...training.options import TrainingOptions
from ...training.task import Part, Task


class MeanOfStates(nn.Module):
    """E[latents | caption] from the states of its tokens: one query for each of 4x4 patches (thrown away afterwards)."""

    def __init__(self, width: int, channels: int = 4, side: int = 16, grid: int = 4, hidden: int = 1024):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(grid * grid, width))
        self.attention = nn.MultiheadAttention(width, 6, batch_first=True)
        self.norm = nn.LayerNorm(width)
        patch = side // grid
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, channels * patch * patch))
        self.grid, self.patch = grid, patch

    def forward(self, states: Tensor) -> Tensor:
        q = self.queries.expand(len(states), -1, -1)
        x = q + self.attention(q, states, states, need_weights=False)[0]
        x = x + self.mlp(self.norm(x))
        patches = self.out(x).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return F.pixel_shuffle(patches, self.patch)


def text_task(encoder: nn.Module, words: Any, head: nn.Module, data: Dataset, encode: Any, options: TrainingOptions, held: Dataset | None = None) -> Task:
    """The text encoder and a head learn the mean latents of each caption."""
    seed, n = options.seed, options.batch_size
    both = nn.ModuleDict({"encoder": encoder, "head": head})

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, target = batch
        return (head(encoder(tokens)[0]) - target).square().mean((1, 2, 3))

    def stream(data: Dataset, seed: int) -> Any:
        def draw(step: int) -> tuple[Tensor, Tensor]:
            some = torch.randint(len(data), (n,), generator=generator(seed, Stream.CAPTION_MEAN_ROWS, step)).tolist()
            batch = data.batch(some, generator(seed, Stream.CAPTION_MEAN_CAPTION, step))
            found = words(list(batch.captions), padding=True, truncation=True, max_length=words.model_max_length, return_tensors="pt")
            return found["input_ids"], encode(batch.images)

        return draw

    return Task({"words": Part(both, loss, options.optimizer, options.lr)}, stream(data, seed), {"words": data.fingerprint, "n": n}, title(data),
                held_out=[stream(data, -1)(0)])


class MeanOfLevels(nn.Module):
    """E[latents | caption] by a UNet's own lower levels on the way up, with constants where its way down would be."""

    def __init__(self, unet: Any):
        super().__init__()
        self.mid, self.up = unet.mid_block, nn.ModuleList(unet.up_blocks[:2])
        self.time_proj, self.time_embedding = unet.time_proj, unet.time_embedding
        a, b, c = unet.config.block_out_channels
        side = unet.config.sample_size // 4
        shapes = [(c, side), (b, side), (c, side), (a, 2 * side), (b, 2 * side)]
        self.constants = nn.ParameterList(nn.Parameter(torch.randn(1, d, s, s)) for d, s in shapes)
        self.out = nn.Sequential(nn.GroupNorm(8, b), nn.SiLU(), nn.Conv2d(b, unet.config.out_channels, 3, padding=1))

    def forward(self, states: Tensor) -> Tensor:
        n = len(states)
        emb = self.time_embedding(self.time_proj(states.new_full((n,), 950.0)))
        start, *skips = (c.expand(n, -1, -1, -1) for c in self.constants)
        h = self.mid(start, emb, encoder_hidden_states=states)
        h = self.up[0](hidden_states=h, temb=emb, res_hidden_states_tuple=(skips[0], skips[1]), encoder_hidden_states=states)
        h = self.up[1](hidden_states=h, temb=emb, res_hidden_states_tuple=(skips[2], skips[3]), encoder_hidden_states=states)
        return self.out(h)
