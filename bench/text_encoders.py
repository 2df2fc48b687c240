"""Where words come from: an encoder that learns from nothing, or the frozen embeddings of a large language model.

    pip install wordllama                                # 32,000 token embeddings of 256 numbers, MIT licence
    python bench/text_encoders.py --minutes 4

Every encoder learns the draft, E[latents | words], for the same CPU minutes (steps are set by timing all in turns). The
number is its squared error as a part of the latents' variance, so 1 is "knows nothing", on captions that were taught,
on compositions of taught words, and on designs whose names were never read: what only a frozen encoder could know.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastdiffusion import data
from fastdiffusion.data.latents import Latents
from fastdiffusion.models import load_autoencoder
from fastdiffusion.models.registry import shipped
from fastdiffusion.nets import tokenizer as tokenizers
from fastdiffusion.nets.text import CaptionMean, Layer, TextEncoder, normalized
from fastdiffusion.noise import generator
from fastdiffusion.training.options import TrainingOptions
from fastdiffusion.training.task import Part, Task
from fastdiffusion.training.trainer import train

WIDTH, HEAD, DEPTH = 128, 32, 3


class Ours(nn.Module):
    """The library's encoder with a tokenizer of these captions, and a draft on its vector."""

    def __init__(self, texts: list[str]):
        super().__init__()
        tokenizer = tokenizers.train([normalized(text) for text in texts], 4096)
        self.text_encoder = TextEncoder(len(tokenizer), WIDTH, DEPTH, HEAD)
        self.text_encoder.set_vocabulary(tokenizer, texts)
        self.caption_mean = CaptionMean(WIDTH)

    def forward(self, texts: list[str]) -> Tensor:
        return self.caption_mean(self.text_encoder(self.text_encoder.tokens(texts))[2])


class Frozen(nn.Module):
    """wordllama's embeddings as they are: their mean, or a transformer of ``depth`` layers over them."""

    def __init__(self, depth: int):
        import wordllama
        from tokenizers import Tokenizer

        super().__init__()
        place = Path(wordllama.__file__).parent
        self.tokenizer = Tokenizer.from_file(str(place / "tokenizers" / "l2_supercat_tokenizer_config.json"))
        (table,) = load_file(place / "weights" / "l2_supercat_256.safetensors").values()
        self.table = table.float()
        self.scale = self.table.std()
        self.inside = nn.Linear(self.table.shape[1], WIDTH)
        self.position = nn.Parameter(torch.zeros(24, WIDTH))
        self.layers = nn.ModuleList(Layer(WIDTH, HEAD) for _ in range(depth))
        self.caption_mean = CaptionMean(WIDTH)

    def forward(self, texts: list[str]) -> Tensor:
        ids = [e.ids[:24] for e in self.tokenizer.encode_batch([t.lower() for t in texts], add_special_tokens=False)]
        longest = max(map(len, ids))
        mask = torch.tensor([[i < len(row) for i in range(longest)] for row in ids])
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        x = self.inside(self.table[tokens] / self.scale)
        if self.layers:
            x = x + self.position[:longest]
        for layer in self.layers:
            x = layer(x, mask)
        return self.caption_mean((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


ENCODERS = {
    "ours, from nothing": Ours,
    "wordllama, mean": lambda texts: Frozen(0),
    "wordllama, 3 layers": lambda texts: Frozen(3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4, help="CPU minutes of each encoder")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/text-encoders"))
    args = parser.parse_args()
    place = shipped("emoji")
    assert place is not None
    autoencoder = load_autoencoder(place)
    rows = Latents(data.load("emoji-scenes"), autoencoder)
    sets = {"taught": rows} | {
        part: Latents(data.load("emoji-scenes", part=part), autoencoder) for part in ("compositions", "designs")
    }

    def draw(seed: int, step: int) -> tuple[Sequence[str], Tensor]:
        some = torch.randint(len(rows), (256,), generator=generator(seed, 0, step)).tolist()
        batch = rows.batch(some, generator(seed, 1, step))
        return batch.captions, batch.images

    def loss(encoder: nn.Module, batch: tuple[Sequence[str], Tensor]) -> Tensor:
        return (encoder(batch[0]) - batch[1]).square().mean()

    def made(name: str, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return ENCODERS[name](rows.texts())

    cost: dict[str, list[float]] = {name: [] for name in ENCODERS}
    tried = {name: made(name, 0) for name in ENCODERS}
    for step in range(6):
        for name, encoder in tried.items():
            begun = time.process_time()
            loss(encoder, draw(0, step)).backward()
            cost[name].append(time.process_time() - begun)
    results: dict[str, Any] = {}
    for name in ENCODERS:
        seconds = sorted(cost[name])[3]
        for seed in range(args.seeds):
            encoder, steps, begun = made(name, seed), round(60 * args.minutes / seconds), time.process_time()
            task = Task({"encoder": Part(encoder, partial(loss, encoder), "muon", 1e-2)}, partial(draw, seed), {})
            train(task, TrainingOptions(steps=steps, seed=seed, batch_size=256, device="cpu"))
            row: dict[str, Any] = {"steps": steps, "CPU s": round(time.process_time() - begun)}
            with torch.no_grad():
                for kind, held in sets.items():
                    some = torch.randperm(len(held), generator=generator(9))[:1024].tolist()
                    batch = held.batch(some)
                    error = (encoder(batch.captions) - batch.images).square().mean()
                    row[kind] = round(float(error / batch.images.square().mean()), 4)
            results[f"{name}, seed {seed}"] = row
            print(name, seed, row, flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "text-encoders.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
