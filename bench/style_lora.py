"""A style from ten images: what a LoRA of them makes of other things, and whether these stay where they were.

    python bench/style_lora.py                                          # about 2 CPU minutes
    python bench/style_lora.py --way token --strength 0.7 0.85 1        # by a new word, from a person's image

The style is drawn here, so it is nobody's: emoji in cream on blue paper, as a blueprint. Ten of them are trained on; of
others the bundled model draws an image, which is then drawn again in the style: from the noise that it came from, or
from its own noisy copy (``sample(image=..., strength=...)``). Two ways to train:
plain    ``finetune --retain 0 --floor 0``, each print under its plain name: whatever the LoRA draws is in the style
token    ``personalize --subject style``: what "in the style of <blueprint>" says is, all else is held to what it was
In features of the evaluator, which nothing was trained in:
style    distance of textures (roots of Gram distances) to the ten images: before, after, their ratio; and that of each
         of the ten to the others, and of others that are printed exactly, which is what can be hoped for
edges    SSIM of the gradients before and after
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from style import evaluator_maps

import fastdiffusion
from fastdiffusion import metrics
from fastdiffusion.data import load
from fastdiffusion.io.images import grid, save_png, to_pil, to_tensor
from fastdiffusion.nets.perceptual import style_distance
from fastdiffusion.tasks.personalization.result import PersonalizationResult
from fastdiffusion.tasks.stylization.statistics import edge_similarity

TRAINED = ("cat face", "red apple", "house", "bicycle", "tulip", "fish", "key", "umbrella", "cactus", "sailboat")
OTHERS = (
    "dog face", "banana", "star", "bus", "sunflower", "whale", "bell", "guitar", "mushroom", "rocket", "pizza",
    "red heart", "crown", "cow face", "palm tree", "hot beverage",
)  # fmt: skip
INK, PAPER = np.array([255.0, 236.0, 190.0]), np.array([28.0, 62.0, 140.0])
TOKEN = "<blueprint>"


def printed(image: torch.Tensor) -> Image.Image:
    """An image (3, h, w) in the style: light becomes paper, dark becomes ink, and outlines are drawn."""
    pixels = np.asarray(to_pil(image).resize((256, 256), Image.Resampling.LANCZOS)).astype(float)
    gray = pixels @ np.array([0.299, 0.587, 0.114]) / 255
    slope = np.hypot(*np.gradient(gray))
    ink = np.clip(np.maximum(1.1 * (1 - gray), 5 * slope), 0, 1)[..., None]
    made = Image.fromarray((ink * INK + (1 - ink) * PAPER).round().astype(np.uint8))
    return made.resize((64, 64), Image.Resampling.LANCZOS)


def emoji(names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The image of each name."""
    data = load("emoji")
    rows: dict[str, int] = {}
    for i in range(len(data)):
        for name in data.texts([i]):
            rows.setdefault(name, i)
    return {name: to_tensor(data.batch([rows[name]]).images[0]) for name in names if name in rows}


def trained(args: argparse.Namespace, folder: Path) -> PersonalizationResult:
    """The LoRA, and the model with it."""
    shared: dict = {"steps": args.steps, "seed": args.seed, "device": "cpu"}
    shared["folder"] = args.out / f"{args.way}-{args.seed}"
    if args.way == "token":
        return fastdiffusion.personalize(args.model, folder, token=TOKEN, subject="style", **shared)
    return fastdiffusion.finetune(args.model, folder, retain=0, floor=0.0, holdout=0.2, batch_size=4, **shared)


def main() -> None:
    """Train and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--way", choices=("plain", "token"), default="plain")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--scale", type=float, nargs="+", default=[1.0], help="of the LoRA")
    parser.add_argument("--strength", type=float, nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/bench/style-lora"))
    args = parser.parse_args()
    folder = args.out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for i, (name, image) in enumerate(emoji(TRAINED).items()):
        printed(image).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(name)
    ten = torch.stack([to_tensor(Image.open(path)) for path in sorted(folder.glob("*.png"))])
    begun = time.process_time()
    made = trained(args, folder)
    kept = next(look.retention for look in made.looks if look.step == made.step)
    result: dict = {
        "images": len(ten),
        "step": made.step,
        "retention": kept,
        "cpu seconds": time.process_time() - begun,
    }
    maps, n = evaluator_maps(), len(OTHERS)
    before = fastdiffusion.sample(args.model, list(OTHERS), n=n, seed=300, steps=12).images

    @torch.no_grad()
    def style(images: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        return torch.stack([style_distance(to, one[None].expand(len(to), -1, -1, -1), maps).mean() for one in images])

    own = torch.stack([style(ten[[i]], ten[[j for j in range(len(ten)) if j != i]])[0] for i in range(len(ten))])
    result["of the ten to each other"] = float(own.mean())
    exact = torch.stack([to_tensor(printed(image)) for image in before])
    result["printed exactly"] = {
        "style": float(style(exact, ten).mean()),
        "edges": float(edge_similarity(before, exact).mean()),
    }
    was, sheet = style(before, ten), [ten[:8], before[:8]]
    prompts = [f"{name} in the style of {TOKEN}" if args.way == "token" else name for name in OTHERS]
    for scale in args.scale:
        model = fastdiffusion.load(args.model, lora=f"{made.file}:{scale}", device="cpu")
        for strength in (None, *args.strength):
            if strength is None:
                drawn = fastdiffusion.sample(model, prompts, n=n, seed=300, steps=12).images
            else:
                drawn = torch.cat([
                    fastdiffusion.sample(
                        model, prompt, image=to_pil(image), strength=strength, n=1, seed=300, steps=12
                    ).images
                    for prompt, image in zip(prompts, before, strict=True)
                ])  # fmt: skip
            now, edges = style(drawn, ten), edge_similarity(before, drawn)
            found: dict = {"before": float(was.mean()), "after": float(now.mean())}
            for key, statistic, samples in (
                ("ratio", lambda a, b: float(a.mean() / b.mean()), (now, was)),
                ("edges", lambda e: float(e.mean()), (edges,)),
            ):
                found[key] = [round(v, 3) for v in (statistic(*samples), *metrics.interval(statistic, *samples))]
            where = "the same noise" if strength is None else f"strength {strength}"
            result[f"{where}, scale {scale}"] = found
            sheet.append(drawn[:8])
    print(json.dumps(result, indent=1))
    (args.out / "numbers.json").write_text(json.dumps(result, indent=1))
    save_png(grid(torch.cat(sheet), 8, 2), args.out / "sheet.png")


if __name__ == "__main__":
    main()
