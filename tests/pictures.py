"""Pictures for tests: photograph-like noise of any size and format, and files with every kind of defect."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def photo(width: int = 40, height: int = 30, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A smooth random picture, different for each seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture file."""
    memory = io.BytesIO()
    picture.save(memory, kind, **options)
    return memory.getvalue()


def rotated(orientation: int, **options: Any) -> bytes:
    """A JPEG whose EXIF tells a viewer to turn it, and where and by whom it was taken."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[0x013B] = "Jane Doe"  # artist
    return encoded(photo(**options), "JPEG", exif=exif, quality=95)


def png(width: int, height: int, *chunks: tuple[bytes, bytes], bits: int = 8, color: int = 0) -> bytes:
    """A PNG file of given chunks, which may claim any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def gif(frames: int) -> bytes:
    """A GIF of very many frames of one pixel."""
    frame = b"\x21\xf9\x04\x00\x00\x00\x00\x00" + b"\x2c\x00\x00\x00\x00\x01\x00\x01\x00\x00" + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 16, 16, 0x80, 0, 0) + b"\x00\x00\x00\xff\xff\xff" + frame * frames + b";"


def animated(kind: str) -> bytes:
    """A moving picture of three frames."""
    return encoded(photo(seed=1), kind, save_all=True, append_images=[photo(seed=2), photo(seed=3)])


def deep(mode: str = "I;16") -> bytes:
    """A 16-bit grey picture."""
    values = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)
    return encoded(Image.fromarray(values), "TIFF" if mode != "I;16" else "PNG")


def transparent() -> Image.Image:
    """Red on the left, nothing on the right."""
    picture = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 20, 30))
    return picture


def good() -> dict[str, bytes]:
    """One file of each kind that can be used."""
    palette = photo(seed=4).quantize(16)
    return {
        "rgb.png": encoded(photo(seed=5)),
        "photo.jpg": encoded(photo(seed=6), "JPEG"),
        "photo.webp": encoded(photo(seed=7), "WEBP"),
        "renamed.png": encoded(photo(seed=8), "JPEG"),
        "without-suffix": encoded(photo(seed=9)),
        "deep.png": deep(),
        "cmyk.jpg": encoded(photo(seed=10).convert("CMYK"), "JPEG"),
        "palette.png": encoded(palette),
        "palette-alpha.png": encoded(palette, transparency=3),
        "bits.png": encoded(photo(seed=11).convert("1")),
        "la.png": encoded(photo(seed=12).convert("LA")),
        "alpha.png": encoded(transparent()),
        "moving.gif": animated("GIF"),
        "moving.webp": animated("WEBP"),
        "moving.png": animated("PNG"),
        "turned.jpg": rotated(6, seed=13),
        "float.tif": encoded(Image.fromarray(np.linspace(0, 1, 1200, dtype=np.float32).reshape(30, 40)), "TIFF"),
        "ünï 猫 \n'\"#%.png": encoded(photo(seed=14)),
        "-rf.png": encoded(photo(seed=15)),
        "a" * 200 + ".png": encoded(photo(seed=16)),
    }


def bad() -> dict[str, tuple[bytes, str]]:
    """One file of each kind that cannot be used, and the reason that is to be told."""
    jpeg, full = encoded(photo(seed=20, width=80, height=60), "JPEG"), encoded(photo(seed=21))
    return {
        "empty.png": (b"", "empty file"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "cut short (truncated)"),
        "half.png": (full[: len(full) // 2], "cut short (truncated)"),
        "text.jpg": (b"<html>404 not found</html>", "not an image, or of a kind that is not read"),
        "program.png": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "not an image, or of a kind that is not read",
        ),
        "dot.png": (encoded(photo(1, 1)), "1x1 pixels is too small for size 32"),
        "line.png": (encoded(photo(20_000, 1)), "20000x1 pixels is too small for size 32"),
        "strip.png": (encoded(photo(80, 10)), "80x10 pixels is longer than 4:1; aspect='pad' would take it"),
        "bomb.png": (png(30_000, 30_000, bits=1), "more than 179 megapixels (limit 89)"),
        "large.png": (png(13_000, 13_000), "169 megapixels (limit 89)"),
    }


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files, their folders made."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
