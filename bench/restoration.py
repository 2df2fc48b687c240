"""Restoration on photographs that no model has seen: every corruption, with its baselines, ceiling and intervals.

    python bench/restoration.py photographs/ --model src/fastdiffusion/weights/restorer.safetensors

``photographs/``: a folder of photographs that the restorer did not learn from, e.g. the "nature" images of Debian's
mate-backgrounds. "waifu2x" is a published network of 0.55 million parameters for photographs (``make peers`` gets it);
"features" is 1,000 times the distance in the eyes of the bundled features. Crops are cut after each photograph is
reduced to one megapixel; intervals are of the mean over crops, bootstrapped by photograph.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import resource
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from peers import waifu2x
from PIL import Image, ImageFilter
from torch import Tensor

from fastdiffusion.corruptions import parse
from fastdiffusion.corruptions.blurs import convolve
from fastdiffusion.data.crops import reduced
from fastdiffusion.io.images import read_image, save_png, to_array, to_pil, to_tensor, to_uint8
from fastdiffusion.models import Model, load
from fastdiffusion.nets.perceptual import perceptual_distance
from fastdiffusion.tasks.restoration.blind_deblurring import estimate_kernel, wiener
from fastdiffusion.tasks.restoration.colorization import luminance
from fastdiffusion.tasks.restoration.restore import bundled, restore
from fastdiffusion.tasks.restoration.watermarks import remove_watermark

SIZE = 128
MARGIN = 32  # pixels around what is blurred


def psnr(a: Tensor, b: Tensor) -> float:
    return 10 * math.log10(4 / max(float((a - b).square().mean()), 1e-10))


def ssim(a: Tensor, b: Tensor) -> float:
    """Wang et al. 2004, on luminance, with an 11x11 Gaussian of width 1.5."""
    a, b = ((luminance(v[None]) + 1) * 127.5 for v in (a, b))
    at = torch.arange(11.0) - 5
    k = torch.exp(-(at[:, None] ** 2 + at**2) / 4.5)[None, None]
    k = k / k.sum()
    ma, mb = F.conv2d(a, k), F.conv2d(b, k)
    va, vb, c = F.conv2d(a * a, k) - ma**2, F.conv2d(b * b, k) - mb**2, F.conv2d(a * b, k) - ma * mb
    return float(
        (((2 * ma * mb + 6.5025) * (2 * c + 58.5225)) / ((ma**2 + mb**2 + 6.5025) * (va + vb + 58.5225))).mean()
    )


def interval(values: list[float], groups: list[str]) -> tuple[float, float, float]:
    """Mean and 95 % interval, photographs drawn with replacement."""
    names, g = sorted(set(groups)), random.Random(0)
    by = {name: [v for v, group in zip(values, groups, strict=True) if group == name] for name in names}
    means = []
    for _ in range(1000):
        drawn = [v for name in g.choices(names, k=len(names)) for v in by[name]]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    return sum(values) / len(values), means[25], means[974]


def crops(folder: Path, each: int, margin: int = 0) -> tuple[list[Tensor], list[str]]:
    """The most detailed of random places, ``each`` of a photograph, with ``margin`` pixels of what lies around."""
    squares, names = [], []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".png")):
        pixels = torch.from_numpy(to_array(reduced(read_image(path).convert("RGB"), 1_000_000)))
        g = torch.Generator().manual_seed(len(names))
        places = [
            [int(torch.randint(n - SIZE - 2 * margin + 1, (1,), generator=g)) // 16 * 16 for n in pixels.shape[1:]]
            for _ in range(4 * each)
        ]
        side = SIZE + 2 * margin
        parts = [pixels[:, top : top + side, left : left + side] for top, left in places]
        parts.sort(key=lambda part: -float(part.float().diff(dim=1).abs().mean()))
        squares += [to_tensor(part) for part in parts[:each]]
        names += [path.name] * each
    return squares, names


def file_of(y: Tensor) -> Image.Image:
    """What a file would hold."""
    return to_pil(to_uint8(y))


def resized(y: Image.Image, how: Image.Resampling, factor: int) -> Tensor:
    return to_tensor(y.resize((y.width * factor, y.height * factor), how))


def deblocked(y: Image.Image) -> Tensor:
    """The classic: JPEG's blocks smoothed by averaging shifted re-encodings (Nosratinia 1999)."""
    x, total = to_tensor(y), torch.zeros(3, y.height, y.width)
    what = parse("jpeg 10")
    for dy in range(0, 8, 2):
        for dx in range(0, 8, 2):
            shifted = torch.roll(x, (dy, dx), (1, 2))[None]
            total += torch.roll(what(shifted)[0], (-dy, -dx), (1, 2))
    return total / 16


def measure(
    name: str, text: str, answers: dict, photos, names, show: Path | None, each=lambda a, b: psnr(a, b), margin: int = 0
) -> dict:
    """One table: mean and interval for every answer, of each minus the first, and as the features see it."""
    what = parse(text)
    scores: dict[str, list[float]] = {key: [] for key in answers}
    structure: dict[str, list[float]] = {key: [] for key in answers}
    perceptual: dict[str, list[float]] = {key: [] for key in answers}
    rows = []
    for x in photos:
        inner = (..., slice(margin, -margin or None), slice(margin, -margin or None))
        y = file_of(what.on(x.shape, [0]).forward(x[None])[0][inner])
        x = x[inner]
        op = what.on(x.shape, [0])
        made = {key: answer(y, op) for key, answer in answers.items()}
        for key, value in made.items():
            scores[key].append(each(value.clamp(-1, 1), x))
            structure[key].append(ssim(value.clamp(-1, 1), x))
            perceptual[key].append(float(perceptual_distance(value[None].clamp(-1, 1), x[None])))
        if len(rows) < 8 * len(made) + 8 and len(scores[key]) % max(len(photos) // 8, 1) == 0:
            rows += [*made.values(), x]
    if show is not None:
        from fastdiffusion.io.images import grid

        save_png(grid([v.clamp(-1, 1) for v in rows], len(answers) + 1), show / f"{name}.png")
    first = next(iter(scores))
    out = {}
    for key in scores:
        gain = [a - b for a, b in zip(scores[key], scores[first], strict=True)]
        out[key] = {"psnr": interval(scores[key], names), "gain": interval(gain, names),
                    "ssim": sum(structure[key]) / len(structure[key]),
                    "features": interval(perceptual[key], names)}  # fmt: skip
        m, lo, hi = out[key]["psnr"]
        d, dlo, dhi = out[key]["gain"]
        f, flo, fhi = out[key]["features"]
        print(f"{name:18} {key:14} {m:6.2f} [{lo:.2f}, {hi:.2f}] dB  gain {d:+.2f} [{dlo:+.2f}, {dhi:+.2f}]"
              f"  SSIM {out[key]['ssim']:.4f}  features {1000 * f:.1f} [{1000 * flo:.1f}, {1000 * fhi:.1f}]",
              flush=True)  # fmt: skip
    ours = next((key for key in ("ensemble", "mean", "zero-shot") if key in scores), None)
    for key in scores if ours else ():  # the same crops: the difference is surer than the means
        ahead = [a - b for a, b in zip(scores[ours], scores[key], strict=True)]
        out[key]["behind " + ours] = interval(ahead, names)
        print(f"{name:18} {ours} over {key}: {{:+.2f}} [{{:+.2f}}, {{:+.2f}}]".format(*out[key]["behind " + ours]))
    return out


def richardson_lucy(y: Tensor, kernel: Tensor, steps: int = 30) -> Tensor:
    """Richardson (1972) and Lucy's (1974) deconvolution of light."""
    light = (y + 1) / 2
    x = torch.full_like(light, 0.5)
    kernels = kernel[None].expand(len(y), -1, -1)
    for _ in range(steps):
        x = x * convolve(light / convolve(x, kernels).clamp(min=1e-4), kernels.flip(1, 2))
    return 2 * x - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--each", type=int, default=6, help="crops of each photograph")
    parser.add_argument(
        "--zero-shot", action=argparse.BooleanOptionalAction, default=True, help="its 20 evaluations a crop"
    )
    parser.add_argument("--only", default="", help="parts, with commas")
    parser.add_argument("--out", type=Path, default=Path("out/restoration"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = bundled() if args.model is None else load(args.model)
    photos, names = crops(args.folder, args.each)
    args.out.mkdir(parents=True, exist_ok=True)
    report, only = {}, [part for part in args.only.split(",") if part]

    def wanted(part: str) -> bool:
        return not only or part in only

    def answer(text: str, **options):
        return lambda y, op: restore(y, text, model, **options).images[0]

    def unchanged(y: Image.Image, op) -> Tensor:
        return op.lift(to_tensor(y)[None])[0].expand(3, -1, -1)

    def table(name: str, text: str, answers: dict, photos: list[Tensor] = photos, **options) -> None:
        answers = {key: f for key, f in answers.items() if args.zero_shot or key != "zero-shot"}
        if wanted(name) and len(answers) > 1:
            report[name] = {"corruption": text, **measure(name, text, answers, photos, names, args.out, **options)}
            (args.out / "report.json").write_text(json.dumps(report, indent=1))

    enlarge = waifu2x()
    for factor in (2, 4):
        text = f"downscale {factor}"
        table(f"upscale x{factor}", text, {
            "Lanczos": lambda y, op, f=factor: resized(y, Image.Resampling.LANCZOS, f),
            "bicubic": lambda y, op, f=factor: resized(y, Image.Resampling.BICUBIC, f),
            **({"waifu2x": lambda y, op: enlarge(to_tensor(y)[None])[0]} if factor == 2 and enlarge else {}),
            "mean": answer(text), "ensemble": answer(text, self_ensemble=True),
            "sample": answer(text, answer="sample", steps=12),
            "zero-shot": answer(text, method="zero-shot", steps=20),
        })  # fmt: skip
    for quality in (5, 10, 30, 50, 75):
        text = f"jpeg {quality}"
        table(f"jpeg {quality}", text, {
            "input": unchanged, "median filter": lambda y, op: to_tensor(y.filter(ImageFilter.MedianFilter(3))),
            "deblocked": lambda y, op: deblocked(y), "mean": answer(text), "ensemble": answer(text, self_ensemble=True),
            "blind": answer("jpeg 5..95"),
        })  # fmt: skip
    # a photograph is blurred before its border is cut: what lies beyond is blurred into it, and no mirror stands there
    wide = crops(args.folder, args.each, MARGIN)[0]
    for text in ("blur 1.5", "motion 9 30", "defocus 3"):
        kernel = _kernel(text)
        table(f"deblur {text}", text, {
            "input": unchanged,
            **{f"Wiener {r:g}": lambda y, op, k=kernel, r=r: wiener(to_tensor(y)[None], k, r)[0] for r in (2e-3, 1e-2)},
            **{f"RL {n}": lambda y, op, k=kernel, n=n: richardson_lucy(to_tensor(y)[None], k, n)[0] for n in (30, 100)},
            **({"mean": answer(text)} if text.startswith("blur") else {}),
            "zero-shot": answer(text, method="zero-shot", steps=20),
        }, wide, margin=MARGIN)  # fmt: skip
    for text in ("noise 0.1", "blur 1, noise 0.05, jpeg 50", "gray", "downscale 2, jpeg 50"):
        table(text, text, {"input": unchanged, "mean": answer(text), "ensemble": answer(text, self_ensemble=True)})
    for text in ("pixelate 4", "fade 0.5", "posterize 6", "watermark 'SAMPLE' 0.5 0.7 0.5 0.5"):
        more = {"posterior": "dps"} if text.startswith("poster") else {}
        table(text, text, {"input": unchanged, "zero-shot": answer(text, method="zero-shot", steps=20, **more)})
    if wanted("kernels"):
        report["kernels"] = kernels(args.folder)
    if wanted("marks"):
        report["marks"] = marks(args.folder, model)
    if wanted("cost"):
        report["cost"] = cost(args.folder, model)
    if wanted("seams"):
        report["seams"] = seams(args.folder, model)
    (args.out / "report.json").write_text(json.dumps(report, indent=1))


def _kernel(text: str) -> Tensor:
    impulse = torch.zeros(1, 3, 65, 65)
    impulse[:, :, 32, 32] = 1
    return parse(text).on((3, 65, 65), [0]).mean(impulse)[0, 0, 20:45, 20:45]


def kernels(folder: Path) -> dict:
    """Blind: correlation of the estimated kernel with the true one, at the best whole shift."""
    out: dict[str, list[float]] = {}
    for text in ("blur 2", "motion 15 30", "motion 9 120", "defocus 4"):
        true = F.pad(_kernel(text), (8,) * 4)
        for path in sorted(folder.iterdir()):
            x = to_tensor(reduced(read_image(path).convert("RGB"), 500_000))[None]
            kernel = F.pad(estimate_kernel(to_tensor(to_uint8(parse(text)(x)))), (8,) * 4)
            shifts = [torch.roll(kernel, (i, j), (0, 1)) for i in range(-3, 4) for j in range(-3, 4)]
            out.setdefault(text, []).append(max(float((s * true).sum() / (s.norm() * true.norm())) for s in shifts))
        print(f"kernel of {text:14} correlation {sum(out[text]) / len(out[text]):.3f}, worst {min(out[text]):.3f}")
    return out


def marks(folder: Path, model: Model) -> dict:
    """Several images with one mark: error inside the mark before and after; and whether anything else changed."""
    out = {}
    x = torch.stack([
        to_tensor(reduced(read_image(p).convert("RGB"), 400_000))[:, :360, :480]
        for p in sorted(folder.iterdir()) if min(reduced(read_image(p), 400_000).size) >= 480
    ][:8])  # fmt: skip
    for opacity in (0.3, 0.5, 0.7, 1):
        op = parse(f"watermark 'SAMPLE' {opacity} 0.7 0.5 0.5").on(x.shape[1:], [0] * len(x))
        y = to_tensor(to_uint8(op.forward(x)))
        done = remove_watermark([to_pil(v) for v in y], model)
        inside = op.mean(torch.full_like(x, -1.0))[:1] > -0.98
        before, after = (10 * math.log10(4 / float(((v - x).square() * inside).sum() / inside.sum() / len(x)))
                         for v in (y, done.images))  # fmt: skip
        same = bool((done.images[:, :, done.opacity == 0] == y[:, :, done.opacity == 0]).all())
        out[str(opacity)] = {"before": before, "after": after, "outside unchanged": same}
        print(
            f"mark of opacity {opacity}: {before:.1f} -> {after:.1f} dB inside, outside unchanged: {same}", flush=True
        )
    return out


def cost(folder: Path, model: Model) -> dict:
    """Seconds a megapixel of input, and the peak of memory above what was there before."""
    out = {}
    source = read_image(next(p for p in sorted(folder.iterdir()))).convert("RGB")
    for side in (1000, 2000, 4000):
        buffer = io.BytesIO()
        source.resize((side, side), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=20)
        before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        restore(read_image(buffer.getvalue()), "jpeg 5..95", model)
        seconds = (time.process_time() - begun) / (side / 1000) ** 2
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        out[str(side)] = {"seconds a megapixel": seconds, "peak MB": peak / 1024, "grown MB": (peak - before) / 1024}
        print(f"{side}x{side}: {seconds:.2f} CPU s a megapixel, peak {peak / 1024:.0f} MB", flush=True)
    return out


def seams(folder: Path, model: Model) -> dict:
    """Mean gradient across the places where tiles begin and end, against that of all other places."""
    ratios = []
    for path in sorted(folder.iterdir()):
        y = reduced(read_image(path).convert("RGB"), 250_000)
        done = restore(y, "downscale 2", model, tile=128, overlap=64)
        whole = restore(y, "downscale 2", model, tile=4096)
        x, w = done.pixels[0].float(), whole.pixels[0].float()
        extra = (x - w).diff(dim=2).abs().mean((0, 1))
        plain = x.diff(dim=2).abs().mean((0, 1))
        borders = [2 * c - 1 for c in range(64, y.width - 64, 64)]
        ratios.append(1 + float(extra[borders].mean() / plain[borders].mean()))
    print(f"gradient at tile borders, against the same image in one piece: {sum(ratios) / len(ratios):.4f}")
    return {"ratio": ratios}


if __name__ == "__main__":
    main()
