"""Does any restoration make a photograph worse? Every documented corruption, on photographs that no one tuned on.

    python bench/photographs.py FOLDER
    python bench/restoration_floor.py FOLDER [--use held-out|all] [--only jpeg,linear,kernels,chains]

A crop of 192 pixels of each photograph, where it has most detail; decibels of the pixels against the photograph, before
and after. What a smaller or covered input has "before" is its plain enlargement, or its hole filled from around. JPEG
files: how far their colors were off as well, after over before. Blurs that were named, rightly or not quite: how much
better than ``deblur blind``.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from photographs import SIDE, crop, listed
from PIL import Image
from torch import Tensor

from fastdiffusion.corruptions import parse
from fastdiffusion.corruptions.core import Operator
from fastdiffusion.io.images import open_image, save_png, to_pil, to_tensor, to_uint8
from fastdiffusion.tasks.restoration.restore import restore

QUALITIES = (10, 30, 50, 75, 90)
WAYS = ("4:2:0", "4:2:2", "4:4:0", "4:4:4", "turned", "CMYK")
MARGIN = 32  # pixels around what is blurred: what lies beyond a border is blurred into it
LINEAR = (
    ("downscale 2", "supervised"), ("downscale 4", "supervised"), ("blur 1.5", "supervised"),
    ("noise 0.05", "supervised"), ("noise 0.1", "supervised"), ("noise 0.3", "supervised"),
    ("gray", "supervised"), ("mask 0.2", "supervised"),
    ("downscale 2", "zero-shot"), ("blur 1.5", "zero-shot"), ("motion 9 30", "auto"), ("defocus 3", "auto"),
    ("downscale 3", "auto"), ("downscale 4 area", "auto"), ("downscale 8", "auto"), ("pixelate 2", "auto"),
    ("pixelate 4", "auto"), ("pixelate 8", "auto"), ("posterize 3", "auto"), ("posterize 6", "auto"),
    ("posterize 12", "auto"), ("fade 0.5", "auto"), ("gray", "zero-shot"),
    ("watermark 'SAMPLE' 0.5 0.6 0.5 0.5", "auto"),
)  # fmt: skip
CHAINS = ("motion 9 30, jpeg 90", "blur 2, noise 0.04, jpeg 80", "blur 1, noise 0.05, jpeg 50", "downscale 2, jpeg 50")
KERNELS = {  # what happened, and what is named: just that, or off by up to a pixel or ten degrees
    "motion 9 30": ("motion 9 30", "motion 10 30", "motion 8 30", "motion 9 40", "motion 9 20"),
    "defocus 3": ("defocus 3", "defocus 4", "defocus 2"),
    "blur 2": ("blur 2", "blur 3", "blur 2.5", "blur 1.5", "blur 1"),
    "blur 1.5": ("blur 1.5", "blur 2.5", "blur 2", "blur 1"),
}
BEHIND = 0.5  # dB that a blur which was named may be behind one that was looked for


def psnr(a: Tensor, b: Tensor) -> float:
    return 10 * math.log10(4 / max(float((a - b).square().mean()), 1e-9))


def chroma(a: Tensor, b: Tensor) -> float:
    """Root mean square error of the two color differences (ITU-R BT.601)."""
    cb, cr = (torch.tensor(row) for row in ((-0.169, -0.331, 0.5), (0.5, -0.419, -0.081)))
    return math.sqrt(float(torch.stack([torch.einsum("c,chw->hw", w, a - b) for w in (cb, cr)]).square().mean()))


def stored(image: Image.Image, path: Path, quality: int, way: str) -> Path:
    """A JPEG file of an image whose sides are multiples of 16; "turned" is 4:2:2 and lies on its side."""
    exif = Image.Exif()
    if way == "4:4:0":
        return _with_halved_rows(image, path, quality)
    if way == "turned":
        exif[0x0112], image = 6, image.transpose(Image.Transpose.ROTATE_90)
    sampling = {"turned": "4:2:2", "CMYK": "4:2:0"}.get(way, way)
    image.convert("CMYK" if way == "CMYK" else "RGB").save(path, quality=quality, subsampling=sampling, exif=exif)
    return path


def _with_halved_rows(image: Image.Image, path: Path, quality: int) -> Path:
    """In 4:4:0, which Pillow does not write: blocks above each other, stored side by side, and the header changed."""
    pixels = np.asarray(image.convert("YCbCr"))
    h, w, _ = pixels.shape
    units = (
        pixels.reshape(h // 16, 2, 8, w // 8, 8, 3).transpose(0, 2, 3, 1, 4, 5).copy()
    )  # rows, columns; upper, lower
    colors = pixels[..., 1:].reshape(h // 16, 8, 2, w // 8, 8, 2).mean(2)  # each two rows share theirs
    units[..., 1:] = np.repeat(colors.round(), 2, 3).reshape(h // 16, 8, w // 8, 2, 8, 2)
    Image.fromarray(units.reshape(h // 2, 2 * w, 3), "YCbCr").save(path, quality=quality, subsampling="4:2:2")
    content = bytearray(path.read_bytes())
    at = content.index(b"\xff\xc0") + 5  # SOF0: height, width, components, (name, sampling, table) of each
    content[at : at + 4] = h.to_bytes(2, "big") + w.to_bytes(2, "big")
    content[at + 6] = 0x12
    path.write_bytes(content)
    return path


class Report:
    """Gains by case, how many are below 0, and how many are behind the blind result."""

    def __init__(self) -> None:
        self.count = self.below = self.compared = self.behind = 0

    def row(self, case: str, gains: dict[str, float], more: str = "") -> None:
        worst = min(gains, key=lambda name: gains[name])
        self.count, self.below = self.count + len(gains), self.below + sum(gain < -0.005 for gain in gains.values())
        mean = sum(gains.values()) / len(gains)
        print(f"| {case} | {mean:+.2f} | {gains[worst]:+.2f} | {worst} |{more}", flush=True)

    def beside_blind(self, over: dict[str, float]) -> str:
        """The last column: how much better than the blind result."""
        worst, far = min(over, key=lambda name: over[name]), sum(gain < -BEHIND for gain in over.values())
        self.compared, self.behind = self.compared + len(over), self.behind + far
        mean = sum(over.values()) / len(over)
        return f" {mean:+.2f}, at least {over[worst]:+.2f} ({worst}), {far} of {len(over)} below -{BEHIND} |"

    def __str__(self) -> str:
        lines = [f"{self.below} of {self.count} results are below what was given."]
        if self.compared:
            lines.append(f"{self.behind} of {self.compared} are more than {BEHIND} dB behind the blind result.")
        return "\n".join(lines)


def files(crops: dict[str, Image.Image], report: Report, show: Path | None) -> None:
    """JPEG files, whose quality is not said: they say it themselves."""
    with tempfile.TemporaryDirectory() as temporary:
        for way in WAYS:
            for quality in QUALITIES:
                gains, ratios = {}, []
                for name, image in crops.items():
                    path, x = stored(image, Path(temporary) / "x.jpg", quality, way), to_tensor(image)
                    y = to_tensor(open_image(path).convert("RGB"))
                    done = restore(path, "dejpeg").images[0]
                    gains[name] = psnr(done, x) - psnr(y, x)
                    if chroma(y, x) > 0.004:
                        ratios.append(chroma(done, x) / chroma(y, x))
                    _save(show, f"jpeg-{way}-{quality}-{name}".replace(":", ""), y, done, x)
                ratio = f" {math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f}, at most {max(ratios):.2f} |"
                report.row(f"jpeg {quality} {way}", gains, ratio)


def others(
    crops: dict[str, Image.Image],
    cases: list[tuple[str, str, str]],
    report: Report,
    show: Path | None,
    beside_blind: bool = False,
) -> None:
    """(what happened, what is said to have happened, the method), in PNG files' pixels."""
    blind: dict[tuple[str, str], Tensor] = {}
    for happened, said, method in cases:
        gains, over = {}, {}
        margin = MARGIN if set(happened.replace(",", "").split()) & {"blur", "motion", "defocus"} else 0
        inner = (..., slice(margin, -margin or None), slice(margin, -margin or None))
        for i, (name, image) in enumerate(crops.items()):
            x = to_tensor(image)[None]
            operator = parse(happened).on(x.shape[1:], [i])
            y = to_tensor(to_uint8(operator.forward(x)[inner]))
            x = x[inner]
            known, source = _holes(said, happened, operator, y)
            done = restore(source, known, method=method).images
            before = parse(happened).on(x.shape[1:], [i]).lift(y).expand_as(x).clamp(-1, 1)
            gains[name] = psnr(done, x) - psnr(before, x)
            if beside_blind:
                if (happened, name) not in blind:
                    blind[happened, name] = restore(source, "deblur blind").images
                over[name] = psnr(done, x) - psnr(blind[happened, name], x)
            _save(show, f"{happened}-{said}-{method}-{name}", before[0], done[0], x[0])
        as_said = "" if said == happened else f", said to be {said}"
        report.row(f"{happened}{as_said} ({method})", gains, report.beside_blind(over) if over else "")


def _holes(said: str, happened: str, operator: Operator, y: Tensor):
    """The corruption that is told, a random hole by its place."""
    if not happened.startswith("mask"):
        return said, to_pil(y[0])
    from fastdiffusion.corruptions import mask

    ones = torch.ones(1, *operator.shape)
    return mask((operator.mean(ones) == 0).float()[0, 0]), to_pil(y[0])


def _save(show: Path | None, name: str, *images: Tensor) -> None:
    if show is not None:
        before, after, x = images
        name = "".join(c if c.isalnum() or c in "-." else "_" for c in name)
        save_png(torch.cat([before, after, x, 4 * (after - before)], 2).clamp(-1, 1), show / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--use", default="held-out", help="learned, tuned, held-out or all")
    parser.add_argument("--only", default="jpeg,linear,kernels,chains")
    parser.add_argument("--every", type=int, default=1, help="every how many photographs")
    parser.add_argument("--show", type=Path, help="a folder for before, after, photograph and difference of each")
    args = parser.parse_args()
    torch.set_num_threads(1)
    paths = [args.folder / one.name for one in listed(None if args.use == "all" else args.use)[:: args.every]]
    crops, wide = ({path.name: crop(path, side) for path in paths} for side in (SIDE, 320))
    report = Report()
    kernels = [(happened, named, "auto") for happened, every in KERNELS.items() for named in every]
    parts: dict[str, Callable[[], None]] = {
        "jpeg": lambda: files(crops, report, args.show),
        "linear": lambda: others(crops, [(text, text, method) for text, method in LINEAR], report, args.show),
        "kernels": lambda: others(wide, kernels, report, args.show, beside_blind=True),
        "chains": lambda: others(wide, [(text, text, "auto") for text in CHAINS], report, args.show),
    }
    more = "color error, after over before; or gain over the blind result, dB"
    print(f"| what happened | mean gain, dB | least | on | {more} |\n|---|---|---|---|---|")
    for part in args.only.split(","):
        parts[part]()
    print(f"\n{report}")


if __name__ == "__main__":
    main()
