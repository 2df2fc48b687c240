"""How far a ControlNet keeps to the edges that it is shown, and whether the prompt still counts.

    python bench/sketches.py CHECKPOINT CONTROL -n 48 --sheet sketches.png

For captions and glyphs of the emoji data: edge agreement is the F1 of the edges of a sample against those of the glyph
whose edges steered it, within one pixel; R-precision is the evaluator's, of the caption. Both with the control and
without it, from the same noise. One control for each image: 2 n runs of one image, or batches of equal cost.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import fastdiffusion
from fastdiffusion import data, guidance, samplers
from fastdiffusion.adapters.conditioners import Controlled, edge_map, with_controls
from fastdiffusion.io.images import as_input, grid, to_pil
from fastdiffusion.metrics import retrieval
from fastdiffusion.noise import initial
from fastdiffusion.tasks.evaluation import evaluator
from fastdiffusion.types import Cond


def agreement(images: Tensor, maps: Tensor) -> Tensor:
    """F1 of edges, one number for each image: a pixel counts where the other has an edge within one pixel."""
    made = edge_map(images.clamp(-1, 1))[:, :1]
    near_made, near_map = (functional.max_pool2d(edges, 3, 1, 1) for edges in (made, maps))
    precision = (made * near_map).sum((1, 2, 3)) / made.sum((1, 2, 3)).clamp(min=1)
    recall = (maps * near_made).sum((1, 2, 3)) / maps.sum((1, 2, 3)).clamp(min=1)
    return 2 * precision * recall / (precision + recall).clamp(min=1e-9)


def in_corners(glyphs: Tensor, part: float = 0.7) -> Tensor:
    """Each smaller, on white, in a corner of its own: places and sizes that no name tells."""
    side = round(part * glyphs.shape[-1])
    free = glyphs.shape[-1] - side
    small = functional.interpolate(glyphs, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
    corners = [(left, free - left, top, free - top) for top in (0, free) for left in (0, free)]
    return torch.stack([functional.pad(one, corners[i % 4], value=1.0) for i, one in enumerate(small)])


@torch.no_grad()
def drawn(model, prompts: list[str], maps: Tensor | None, scale: float, steps: int, batch: int) -> Tensor:
    """An image for each prompt, the same noise with maps and without."""
    images = []
    for first in range(0, len(prompts), batch):
        some = prompts[first : first + batch]
        cond, null = model.encode_prompt(some, model.pixels), model.null(len(some), model.pixels)
        if maps is not None:
            own = maps[first : first + batch].expand(-1, 3, -1, -1)
            cond, null = (Cond.of(c.parts() | {"extra.control": own}) for c in (cond, null))
        table = samplers.table("dpmpp_2m", model.schedule(steps, model.pixels))
        x = float(table.sigmas[0]) * initial(range(first, first + len(some)), model.shape)
        run = samplers.run(guidance.cfg(model.denoise, scale, null), x, table, cond, range(first, first + len(some)))
        images.append(model.decode(samplers.final(run)).clamp(-1, 1))
    return torch.cat(images)


def main() -> None:
    """Measure, print, and draw a sheet."""
    parser = argparse.ArgumentParser(description="Edge agreement of a ControlNet.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("control", type=Path)
    parser.add_argument("-n", type=int, default=48)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--scale", type=float, default=3.0)
    parser.add_argument("--strength", type=float, nargs="+", default=[1.0], help="scales of the control")
    parser.add_argument("--mirror", action="store_true", help="mirror the maps: shapes that no training image has")
    parser.add_argument("--corner", action="store_true", help="glyphs of 70 %% of the size, in a corner each")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    model, net, emoji = fastdiffusion.load(args.checkpoint, precision="float32"), evaluator.load(), data.load("emoji")
    known = [i for i in range(len(emoji)) if emoji.batch([i]).captions[0] in set(net.names)]
    chosen = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))[: args.n]
    rows = [emoji.batch([known[int(i)]]) for i in chosen]
    glyphs, names = torch.cat([as_input(row.images) for row in rows]), [row.captions[0] for row in rows]
    glyphs = glyphs.flip(-1) if args.mirror else glyphs
    glyphs = in_corners(glyphs) if args.corner else glyphs
    maps = edge_map(glyphs)[:, :1]
    results = {"without": drawn(model, names, None, args.scale, args.steps, args.batch)}
    for strength in args.strength:
        one = with_controls(model, [Controlled(args.control, to_pil(glyphs[0]), strength, edges=True)], model.pixels)
        results[f"control {strength:g}"] = drawn(one, names, maps, args.scale, args.steps, args.batch)
    for what, images in {"glyphs": glyphs, **results}.items():
        f1 = agreement(images, maps)
        error = float(f1.std() / len(f1) ** 0.5)
        print(f"{what}: edge agreement {float(f1.mean()):.3f} +- {error:.3f}, R-precision "
              f"{retrieval.r_precision(net, images, names)}", flush=True)  # fmt: skip
    if args.sheet is not None:
        shown = [glyphs, 2 * maps.expand(-1, 3, -1, -1) - 1, *results.values()]
        grid(torch.stack([row[i] for row in shown for i in range(min(12, args.n))]), min(12, args.n)).save(args.sheet)


if __name__ == "__main__":
    main()
