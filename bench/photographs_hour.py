"""Photographs, from nothing: 2,000 squares of 64 pixels of some photographs, and an hour of training.

    python bench/photographs.py photos
    python bench/photographs_hour.py photos [--minutes 60] [--seeds 0] [--out out/photographs-hour]

The squares are cut from the photographs of bench/photographs.txt that are no held-out ones, at 640 pixels on the
longest side. 500 images, by 12 evaluations, are compared with as many squares of the held-out photographs by the
Frechet distance in the bundled features and by the gradients' statistics; and so are other squares of the learned
photographs (what is as good as it gets), and noise of their mean and deviation.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from photographs import listed
from PIL import Image
from torch import Tensor

from fastdiffusion import metrics, sample
from fastdiffusion.data import Images
from fastdiffusion.io.images import grid, read_image, save_png, to_array, to_uint8
from fastdiffusion.nets import perceptual
from fastdiffusion.noise import generator
from fastdiffusion.training.learner import Learner

SIDE, LONGEST, LEARNED, MEASURED = 64, 640, 2000, 500


def squares(folder: Path, held_out: bool, n: int, seed: int) -> Tensor:
    """As many of each photograph, anywhere in it."""
    photos = []
    for name in sorted(p.name for p in listed() if (p.use == "held-out") == held_out and (folder / p.name).exists()):
        photo = read_image(folder / name).convert("RGB")
        photo.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        photos.append(torch.from_numpy(to_array(photo).copy()))
    source, cut = generator(seed), []
    for i in range(n):
        photo = photos[i % len(photos)]
        top, left = (int(torch.randint(side - SIDE + 1, (), generator=source)) for side in photo.shape[-2:])
        cut.append(photo[:, top : top + SIDE, left : left + SIDE])
    return torch.stack(cut)


@torch.no_grad()
def pooled(images: Tensor) -> Tensor:
    """Means and deviations of the bundled features' maps."""
    parts = []
    for some in images.split(100):
        maps = perceptual.maps(None, some.float() / 127.5 - 1)
        parts.append(torch.cat([torch.cat([f.mean((2, 3)), f.std((2, 3))], 1) for f in maps[-2:]], 1))
    return torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/photographs-hour"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    learned, real = squares(args.photos, False, LEARNED, 0), squares(args.photos, True, MEASURED, 1)
    others = squares(args.photos, False, MEASURED, 2)
    of_real, gradients = pooled(real), metrics.gradient_statistics(real.float() / 127.5 - 1)

    def far(images: Tensor) -> dict[str, float]:
        own = metrics.gradient_statistics(images.float() / 127.5 - 1)
        edges = metrics.gradient_distance(gradients, own)["all"]
        return {"features": round(metrics.frechet(of_real, pooled(images)), 2), "gradients": round(edges, 3)}

    x = learned.float()
    drawn = torch.randn(MEASURED, 3, SIDE, SIDE, generator=generator(3))
    noise = x.mean((0, 2, 3), keepdim=True) + x.std((0, 2, 3), keepdim=True) * drawn
    print(json.dumps({"others of the learned photographs": far(others), "noise": far(noise.clamp(0, 255).byte())}))
    save_png(grid(learned[:: LEARNED // 64][:64], columns=16), args.out / "learned.png")
    for seed in args.seeds:
        data, begun = Images("photographs", [learned.numpy()]), time.process_time()
        learner = Learner(data, seed=seed, augment="mirror", folder=args.out / str(seed)).fit(minutes=args.minutes)
        cpu = time.process_time() - begun
        made = to_uint8(sample(learner.model, n=MEASURED, steps=12, seed=0, batch_size=50).images)
        save_png(grid(made[:64], columns=16), args.out / f"{seed}.png")
        row = {"seed": seed, "cpu": round(cpu), "steps": learner.state.step, **far(made)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
