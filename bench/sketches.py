"""How far a ControlNet keeps to the edges that it is shown, and whether the prompt still counts.

    python bench/sketches.py CHECKPOINT CONTROL -n 48 --corner --strength 1 1.5 --sheet sketches.png

For captions and glyphs of the emoji data: edge agreement is the F1 of the edges of a sample against those of the glyph
whose edges steered it, within one pixel; R-precision is the evaluator's, of the caption, and knows glyphs in the middle
only. So it is stated twice: of the whole image, and of what is where the glyph should be, put back (cut out and
enlarged, or mirrored again). Both with the control and without it, from the same noise; differences are those of the
control's image, put back, from the whole one without.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import fastdiffusion
from fastdiffusion import data, guidance, samplers
from fastdiffusion.adapters.conditioners import Controlled, edge_map, with_controls
from fastdiffusion.data.emoji.holdout import skinless
from fastdiffusion.io.images import as_input, grid, to_pil
from fastdiffusion.metrics import retrieval
from fastdiffusion.noise import initial
from fastdiffusion.tasks.evaluation import evaluator
from fastdiffusion.types import Cond

PART = 0.7  # side of a glyph in a corner, as part of the image's
HELD_OUT = 0.05  # as in scripts/train-sketch-control


def agreement(images: Tensor, maps: Tensor) -> Tensor:
    """F1 of edges, one number for each image: a pixel counts where the other has an edge within one pixel."""
    made = edge_map(images.clamp(-1, 1))[:, :1]
    near_made, near_map = (functional.max_pool2d(edges, 3, 1, 1) for edges in (made, maps))
    precision = (made * near_map).sum((1, 2, 3)) / made.sum((1, 2, 3)).clamp(min=1)
    recall = (maps * near_made).sum((1, 2, 3)) / maps.sum((1, 2, 3)).clamp(min=1)
    return 2 * precision * recall / (precision + recall).clamp(min=1e-9)


def corners(n: int, height: int) -> list[tuple[int, int]]:
    """The top left of n images of ``PART`` of the size, each in the next corner."""
    free = height - round(PART * height)
    return [((0, free)[i // 2 % 2], (0, free)[i % 2]) for i in range(n)]


def in_corners(glyphs: Tensor) -> Tensor:
    """Each smaller, on white, in a corner of its own: places and sizes that no name tells."""
    side = round(PART * glyphs.shape[-1])
    out = torch.ones_like(glyphs)
    for i, (top, left) in enumerate(corners(len(glyphs), glyphs.shape[-1])):
        small = functional.interpolate(glyphs[i : i + 1], (side, side), mode="bicubic", antialias=True)
        out[i, :, top : top + side, left : left + side] = small[0].clamp(-1, 1)
    return out


def out_of_corners(images: Tensor) -> Tensor:
    """What is in the corner where the map has its glyph, at the whole size."""
    size = images.shape[-1]
    side = round(PART * size)
    cut = [
        images[i, :, top : top + side, left : left + side] for i, (top, left) in enumerate(corners(len(images), size))
    ]
    return functional.interpolate(torch.stack(cut), (size, size), mode="bicubic").clamp(-1, 1)


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
    """Measure, print, and draw a sheet for each kind of maps."""
    args = arguments()
    model, net = fastdiffusion.load(args.checkpoint, precision="float32"), evaluator.load()
    glyphs, names = chosen(args.n, args.seed, args.held_out, set(net.names))
    without = drawn(model, names, None, args.scale, args.steps, args.batch)
    kept = retrieval.chances(net, without, names)
    for kind in [kind for kind in KINDS if getattr(args, kind)] or ["plain"]:
        place, put_back = KINDS[kind]
        placed = place(glyphs)
        maps = edge_map(placed)[:, :1]
        with torch.no_grad():
            results = {"glyphs": placed, "autoencoder": model.decode(model.encode(placed)).clamp(-1, 1)}
        results["without"], before = without, agreement(without, maps)
        for strength in args.strength:
            control = Controlled(args.control, to_pil(placed[0]), strength, (0.0, args.until), edges=True)
            one = with_controls(model, [control], model.pixels)
            results[f"control {strength:g}"] = drawn(one, names, maps, args.scale, args.steps, args.batch)
        for what, images in results.items():
            back, f1 = put_back(images), agreement(images, maps)
            r_whole, r_back = (retrieval.r_precision(net, shown, names) for shown in (images, back))
            print(f"{kind}, {what}: edge agreement {mean(f1)}, R-precision {r_whole}, put back {r_back}", flush=True)
            if what.startswith("control"):
                won = retrieval.chances(net, back, names) - kept
                print(f"  against without: edge agreement {mean(f1 - before)}, R-precision {mean(won)}", flush=True)
        if args.sheet is not None:
            some = min(12, args.n)
            shown = [placed, 2 * maps.expand(-1, 3, -1, -1) - 1, *(results[k] for k in results if k[0] in "wc")]
            sheet = args.sheet.with_stem(f"{args.sheet.stem}-{kind}")
            grid(torch.cat([row[:some] for row in shown]), some).save(sheet)


def arguments() -> argparse.Namespace:
    """What is to be measured."""
    parser = argparse.ArgumentParser(description="Edge agreement of a ControlNet.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("control", type=Path)
    parser.add_argument("-n", type=int, default=48)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--scale", type=float, default=3.0)
    parser.add_argument("--strength", type=float, nargs="+", default=[1.0], help="scales of the control")
    parser.add_argument("--until", type=float, default=1.0, help="part of the run in which the control counts")
    parser.add_argument("--plain", action="store_true", help="maps of the glyphs as they are; so without the next two")
    parser.add_argument("--mirror", action="store_true", help="mirrored maps")
    parser.add_argument("--corner", action="store_true", help="glyphs of 70 %% of the size, in a corner each")
    parser.add_argument("--held-out", action="store_true", help="glyphs that the model knows and the control does not")
    parser.add_argument("--seed", type=int, default=0, help="which glyphs")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--sheet", type=Path, help="a PNG file; the kind of maps is added to its name")
    return parser.parse_args()


# what is done to the glyphs whose edges are shown, and what undoes it
KINDS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "plain": (lambda images: images, lambda images: images),
    "mirror": (lambda images: images.flip(-1), lambda images: images.flip(-1)),
    "corner": (in_corners, out_of_corners),
}


def chosen(n: int, seed: int, held_out: bool, known: set[str]) -> tuple[Tensor, list[str]]:
    """Glyphs that the evaluator knows, and their names."""
    emoji = data.load("emoji")
    rows = [i for i in range(len(emoji)) if emoji.batch([i]).captions[0] in known]
    if held_out:
        held = data.load("emoji-scenes").split(HELD_OUT)[1]
        keys = {held.key(i) for i in range(len(held))}
        rows = [i for i in rows if skinless(emoji.names[i]) in keys]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:n].tolist()
    some = [emoji.batch([rows[i]]) for i in order]
    return torch.cat([as_input(one.images) for one in some]), [one.captions[0] for one in some]


def mean(values: Tensor) -> str:
    """The mean and its standard error."""
    return f"{float(values.mean()):.3f} +- {float(values.std() / len(values) ** 0.5):.3f}"


if __name__ == "__main__":
    main()
