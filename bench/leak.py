"""Does augmentation leak into the samples? Share of samples that a judge takes for augmented, over three seeds.

The judge is a classifier that learned to tell digits that were turned over or rotated from digits as they are; it calls
a picture augmented when it is surer than it is of all but 1 % of real ones. Three models: trained without augmentation,
with augmentation that the net is told of (EDM's, ours), and on a data set of which as many pictures were augmented
beforehand, of which it was told nothing.

    python bench/leak.py [--seeds 3] [--steps 400] [--p 0.3] [--variants told] [-n 1000] [--out out/leak]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from fastdiffusion import metrics
from fastdiffusion.data import Dataset, Images, augment, digits, selection
from fastdiffusion.io.images import grid, to_tensor, to_uint8
from fastdiffusion.noise import generator
from fastdiffusion.tasks.generation.sample import sample
from fastdiffusion.training.learner import Learner

NAMES = ("flip_x", "flip_y", "rotate")


def augmented(images: Tensor, seed: int, p: float) -> tuple[Tensor, Tensor]:
    """Pictures changed as in training, and which of them were changed at all."""
    plan = augment.draw(len(images), generator(seed), NAMES, p)
    return to_uint8(augment.apply(to_tensor(images), plan)), plan.vector.abs().sum(1) > 0


def discriminator(data: Dataset) -> tuple[metrics.Classifier, float]:
    """(a classifier of "plain" and "augmented", the threshold that 1 % of real pictures pass)."""
    images, _ = selection.load_images(data, range(len(data)))
    half = len(images) // 2
    shown = [augmented(images[:half], seed, 1.0) for seed in range(4)]
    changed = torch.cat([x[which] for x, which in shown])
    both = torch.cat([images[:half].repeat(4, 1, 1, 1)[: len(changed)], changed])
    order = torch.randperm(len(both), generator=generator(0))
    labels = (order >= len(both) - len(changed)).long().tolist()
    classes = ("plain", "augmented")
    net = metrics.train_classifier(Images("augmented or not", [both[order].numpy()], labels, classes=classes))
    return net, float(suspicion(net, images[half:]).quantile(0.99))


@torch.no_grad()
def suspicion(net: metrics.Classifier, images: Tensor) -> Tensor:
    """Log odds that each picture is an augmented one."""
    logits = torch.cat([net(to_tensor(part)) for part in images.split(256)])
    return logits[:, 1] - logits[:, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--p", type=float, default=0.3, help="probability of each change")
    parser.add_argument("--variants", nargs="+", default=["none", "told", "not told"])
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("out/leak"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data = digits()
    net, threshold = discriminator(data)
    images, labels = selection.load_images(data, range(len(data)))
    changed, which = augmented(images, 99, args.p)
    caught = float((suspicion(net, changed[which]) > threshold).float().mean())
    print(f"judge: accuracy {net.info['accuracy']}, catches {caught:.1%} of augmented pictures at 1 % of real ones")
    baked = Images("digits-augmented", [changed.numpy()], labels.tolist(), classes=data.classes)
    variants = {"none": (data, {}), "told": (data, {"augment": NAMES, "augment_p": args.p}), "not told": (baked, {})}
    result: dict[str, list[float]] = {}
    for name in args.variants:
        source, options = variants[name]
        for seed in range(args.seeds):
            model = Learner(source, net="unet-tiny", seed=seed, verbose=False, **options).fit(steps=args.steps).model
            made = sample(model, n=args.n, seed=1000 * seed, batch_size=250)
            flagged = suspicion(net, to_uint8(made.images)) > threshold
            result.setdefault(name, []).append(float(flagged.float().mean()))
            print(f"{name}, seed {seed}: {result[name][-1]:.1%} of {args.n} samples look augmented", flush=True)
            if seed == 0:
                grid(made.images[:100], 10, 4).save(args.out / f"{name.replace(' ', '-')}.png")
    report = {"caught": caught, "judge": net.info["accuracy"], "steps": args.steps, "p": args.p, "flagged": result}
    (args.out / "leak.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
