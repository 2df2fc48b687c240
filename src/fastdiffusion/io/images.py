"""Images in and out: the only file that knows PIL, uint8 and PNG. Everywhere else an image is a float in [-1, 1].

Reading is safe: formats are a short list, an image is measured before it is decoded, and whatever a broken or hostile
file makes the decoder do, the caller sees a DataError with the reason. Writing is atomic, with a recipe or nothing.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import threading
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageCms, ImageDraw, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from ..errors import DataError, InputError, warn
from . import atomic, metadata
from .fonts import font_for

# Not in the list on purpose: EPS and WMF (they start programs), PSD, FITS and other rare decoders (attack surface).
FORMATS = (
    "PNG",
    "JPEG",
    "MPO",
    "WEBP",
    "GIF",
    "BMP",
    "DIB",
    "TIFF",
    "PPM",
    "AVIF",
    "JPEG2000",
    "QOI",
    "TGA",
    "ICO",
    "PCX",
)
UNREAD = {
    ".heic": "pillow-heif",
    ".heif": "pillow-heif",
    ".jxl": "pillow-jxl-plugin",
    ".psd": "psd-tools",
} | dict.fromkeys(
    (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw"), "rawpy"
)  # kinds that are not read, and the Python package that does
MAX_PIXELS = 89_478_485  # where Pillow starts to warn of decompression bombs; here it is refused
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_EXIF, _COMMENT = 0x8769, 0x9286  # where EXIF data keep a user's comment
_SEGMENT = 65_533  # bytes of EXIF data that a JPEG has room for
_SIDECAR = 1 << 24  # bytes of a recipe beside an image, at most
_opening = threading.Lock()  # warnings.catch_warnings is not safe across threads

# ---- arrays -----------------------------------------------------------------------------------------------------


def to_tensor(image: Image.Image | np.ndarray | Tensor) -> Float[Tensor, "*b c h w"]:
    """A PIL image, or uint8 of shape (..., c, h, w), as float32 in [-1, 1]."""
    if isinstance(image, Image.Image):
        image = to_array(image)
    pixels = torch.as_tensor(image)
    if pixels.dtype != torch.uint8:
        raise InputError(f"to_tensor takes uint8 or a PIL image, got {pixels.dtype}. Floats need no conversion.")
    return pixels.float() / 127.5 - 1


def as_input(images: Tensor) -> Tensor:
    """What a net is given: uint8 images in [-1, 1], and what is floating point (latents) as it is."""
    return images if images.is_floating_point() else to_tensor(images)


def to_uint8(images: Float[Tensor, "*d"]) -> UInt8[Tensor, "*d"]:
    """[-1, 1] to 0..255, rounded, what lies outside clipped (NaN becomes 0); the inverse of :func:`to_tensor`."""
    return ((images.detach().float().nan_to_num(-1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_array(image: Image.Image) -> np.ndarray:
    """A PIL image as uint8 (c, h, w)."""
    if image.mode not in _MODES.values():
        image = plain(image)
    pixels = np.array(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def to_pil(image: Tensor | np.ndarray | Image.Image) -> Image.Image:
    """One image (c, h, w), float in [-1, 1] or uint8, as a PIL image; 1 to 4 channels are L, LA, RGB, RGBA."""
    if isinstance(image, Image.Image):
        return image
    pixels = torch.as_tensor(image).detach().cpu()
    if pixels.ndim != 3 or len(pixels) not in _MODES:
        raise InputError(f"An image has shape (1 to 4, height, width), got {tuple(pixels.shape)}.")
    pixels = pixels if pixels.dtype == torch.uint8 else to_uint8(pixels)
    array = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    return Image.fromarray(array.contiguous().numpy(), _MODES[len(pixels)])


def grid(images: Tensor | Sequence[Any], columns: int | None = None, zoom: int = 1, gap: int = 2) -> Image.Image:
    """Many images on one white sheet, row by row; sizes may differ.

    Args:
        images: A batch (b, c, h, w) or a list of images or PIL images.
        columns: Images per row; by default about as many as rows.
        zoom: Enlarge by this whole factor, pixel by pixel.
        gap: White pixels between images.
    """
    cells = [to_pil(image) for image in images]
    if not cells:
        raise InputError("grid needs at least one image, got none.")
    columns = columns or math.ceil(math.sqrt(len(cells)))
    width, height = (max(p.size[axis] for p in cells) * zoom + gap for axis in (0, 1))
    rows = math.ceil(len(cells) / columns)
    mode = "L" if all(p.mode == "L" for p in cells) else "RGB"
    sheet = Image.new(mode, (min(columns, len(cells)) * width + gap, rows * height + gap), "white")
    for i, cell in enumerate(cells):
        large = cell.resize((cell.width * zoom, cell.height * zoom), Image.Resampling.NEAREST)
        sheet.paste(flatten(large).convert(mode), (gap + i % columns * width, gap + i // columns * height))
    return sheet


def lettering(text: str, width: int) -> Float[Tensor, "h w"]:
    """A line of text as coverage from 0 to 1, ``width`` pixels wide."""
    font = font_for(text, 40)
    left, top, right, bottom = font.getbbox(text or " ")
    font = font_for(text, max(40 * width / max(right - left, 1), 4))
    left, top, right, bottom = (math.floor(v) for v in font.getbbox(text or " "))
    sheet = Image.new("L", (max(right - left, 1), max(bottom - top, 1)))
    ImageDraw.Draw(sheet).text((-left, -top), text, 255, font)
    sheet = sheet.resize((width, max(1, round(sheet.height * width / sheet.width))), Image.Resampling.BOX)
    return (to_tensor(sheet)[0] + 1) / 2


# ---- reading ----------------------------------------------------------------------------------------------------


def read_image(source: str | os.PathLike[str] | bytes | BinaryIO, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image safely: L, LA, RGB or RGBA, upright, first frame only, without EXIF or other metadata.

    Args:
        source: A path, the bytes of a file, or an open binary file.
        max_pixels: Larger images are refused before they are decoded.

    Raises:
        DataError: with the reason alone (no path), whatever was wrong with the file.
    """
    with opened(source, max_pixels) as image:
        return decode(image)


def open_image(source: str | os.PathLike[str] | Image.Image, role: str = "image") -> Image.Image:
    """An image that is given, or :func:`read` from a file; the error then says which file, and what it was to be."""
    if isinstance(source, Image.Image):
        return plain(ImageOps.exif_transpose(source))
    try:
        return read_image(source)
    except DataError as error:
        suffix = Path(source).suffix.lower()
        reason = not_read(suffix) if suffix in UNREAD and Path(source).is_file() else error
        raise DataError(f"Cannot read the {role} {Path(source).name!r}: {reason}.") from None


def not_read(suffix: str) -> str:
    """Why an image that ends in one of UNREAD is not used, and what helps."""
    return f"{suffix[1:].upper()} is not read: save it as PNG or JPEG (the Python package {UNREAD[suffix]} opens it)"


SAMPLINGS = {(1, 1): "444", (2, 1): "422", (1, 2): "440", (2, 2): "420"}  # of luminance, across and down


def jpeg_tables(source: str | os.PathLike[str]) -> tuple[Float[Tensor, "2 8 8"], str | None, int] | None:
    """The steps that a JPEG file's coefficients are rounded to, luminance and color; how colors are kept, as ``jpeg``
    has it ("420", "rgb" for CMYK, None for any other way); and the EXIF orientation that it is shown in, 1 if as it
    lies.

    None where the file is of another kind.
    """
    with opened(source) as image:
        if image.format not in ("JPEG", "MPO"):
            return None
        layers: list[tuple[int, int, int, int]] = image.layer  # pyright: ignore[reportAttributeAccessIssue]
        tables: dict[int, list[int]] = image.quantization  # pyright: ignore[reportAttributeAccessIssue]
        orientation = image.getexif().get(0x0112, 1)
        sampling, rest = layers[0][1:3], {one[1:3] for one in layers[1:3]}
        colors = SAMPLINGS.get(sampling) if rest <= {(1, 1)} else "444" if rest == {sampling} else None
        if image.mode == "CMYK":
            adobe = image.info.get("adobe_transform") == 2  # YCCK
            image.load()
            black = image.getchannel("K").getextrema()[1]
            colors = None if black or colors is None else colors if adobe else f"rgb{colors}".removesuffix("444")
        elif image.mode == "L":
            colors = "444"
        elif image.info.get("adobe_transform") == 0:
            colors = None if colors is None else f"rgb{colors}".removesuffix("444")
        if _own_profile(image) is not None:  # what is shown is no longer what was rounded
            colors = None
        steps = [tables.get(layers[min(i, len(layers) - 1)][3]) for i in (0, 1)]
    if None in steps:
        return None
    made = torch.tensor(steps).float().reshape(2, 8, 8)
    return made, colors, orientation if orientation in range(1, 9) else 1


def turned(x: Tensor, orientation: int) -> Tensor:
    """Images (..., h, w) as they lie in a file, turned upright by its EXIF orientation 1 to 8."""
    if orientation >= 5:
        x = x.transpose(-1, -2)
    flips = {2: [-1], 3: [-1, -2], 4: [-2], 6: [-1], 7: [-1, -2], 8: [-2]}
    return x.flip(flips[orientation]) if orientation in flips else x


def opened(source: str | os.PathLike[str] | bytes | BinaryIO, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The header of an image (size, mode, format), measured and not decoded; raises DataError with the reason."""
    try:
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below, with our own number
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats())
    except Image.DecompressionBombError:
        raise DataError(f"more than {2 * MAX_PIXELS / 1e6:.0f} megapixels (limit {max_pixels / 1e6:.0f})") from None
    except Exception as error:
        raise DataError(_reason(error)) from None
    pixels = image.width * image.height
    if pixels > max_pixels:
        image.close()
        raise DataError(f"{pixels / 1e6:.0f} megapixels (limit {max_pixels / 1e6:.0f})")
    return image


def decode(image: Image.Image, near: int | None = None) -> Image.Image:
    """The pixels of an opened image; see :func:`read`.

    ``near`` allows a JPEG to be decoded at 1/2, 1/4 or 1/8 of its size, its shorter side at least that long.
    """
    try:
        if near is not None and image.format == "JPEG":
            shrink = near / min(image.size)
            image.draft(None, (math.ceil(image.width * shrink), math.ceil(image.height * shrink)))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return plain(_in_srgb(image))
    except (
        Exception
    ) as error:  # decoders of broken files raise nearly everything: OSError, SyntaxError, struct.error...
        raise DataError(_reason(error)) from None


def _own_profile(image: Image.Image) -> ImageCms.ImageCmsProfile | None:
    """Its color profile, where that is another one than screens take where nothing is said; a broken one is none."""
    profile = image.info.get("icc_profile")
    if image.mode != "LAB" and (not profile or image.mode not in ("L", "LA", "P", "PA", "RGB", "RGBA", "CMYK")):
        return None
    try:
        own = ImageCms.ImageCmsProfile(
            ImageCms.createProfile("LAB") if image.mode == "LAB" else io.BytesIO(profile or b"")
        )
        return None if "srgb" in ImageCms.getProfileDescription(own).lower() else own
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _in_srgb(image: Image.Image) -> Image.Image:
    """Colors as screens take them: those of another profile (Display P3, a gray one, Lab) converted."""
    own, gray = _own_profile(image), image.mode in ("L", "LA")
    if own is None:
        return image
    alpha = plain(image).getchannel("A") if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info else None
    colors = image if image.mode in ("CMYK", "LAB") else image.convert("L" if gray else "RGB")
    try:
        made = ImageCms.profileToProfile(colors, own, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError, ValueError):  # of another kind of colors than the image
        return image
    made = made.getchannel("G") if gray else made
    made.info.pop("transparency", None)
    if alpha is not None:
        made.putalpha(alpha)
    return made


@cache
def _formats() -> tuple[str, ...]:
    """FORMATS, as far as this build of Pillow knows them."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _reason(error: Exception) -> str:
    """A decoder's error in plain words."""
    text = str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a kind that is not read"
    if isinstance(error, DataError):
        return text
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if "truncated" in text or isinstance(error, EOFError):
        return "cut short (truncated)"
    return f"broken ({text or type(error).__name__})"


def plain(image: Image.Image) -> Image.Image:
    """Any mode as L, LA, RGB or RGBA; 16-bit and float images are scaled to 8 bits; metadata dropped."""
    mode = image.mode
    if mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        out = Image.fromarray((values * 255 // (2 ** used_bits(image) - 1)).astype(np.uint8))
    elif mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        low, top = values.min(initial=0), values.max(initial=0)
        if not (math.isfinite(low + top) and low >= -0.01 * max(top, 1) and top <= 65535):  # NaN fails too
            raise DataError(f"its numbers are no brightness: from {low:.4g} to {top:.4g}; 0 to 1, 255 or 65535 is read")
        # float images have no agreed range: 1, 255 or 65535 by what they contain
        scale = 255 if mode == "F" and top <= 1 else 1 if top <= 255 else 1 / 257
        out = Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))
    elif "transparency" in image.info or mode in ("PA", "La", "RGBa"):
        out = image.convert("LA" if mode in ("1", "L", "La") else "RGBA")
    elif mode in _MODES.values():
        out = image.copy()
    else:
        out = image.convert("L" if mode == "1" else "RGB")
    out.info = {}
    return out


def is_deep(image: Image.Image) -> bool:
    """Whether an image that was opened and not decoded yet has 16 bits a channel, which decoding makes 8."""
    stored = (tile[3] if isinstance(tile[3], str) else tile[3][0] for tile in getattr(image, "tile", ()))
    return image.mode.startswith("I;16") or any(";16" in str(mode) for mode in stored)


def used_bits(image: Image.Image) -> int:
    """How many bits the values of an image of 16 bits take: 8, 12 (microscopes, X-ray and depth cameras) or 16."""
    top = int(np.asarray(image).max(initial=0))
    return 8 if top < 2**8 else 12 if top < 2**12 else 16


def flatten(image: Image.Image, background: str = "white") -> Image.Image:
    """Lay an image with alpha on a background colour; LA becomes L and RGBA becomes RGB."""
    if image.mode not in ("LA", "RGBA"):
        return image
    sheet = Image.new("RGBA", image.size, background)
    sheet.alpha_composite(image.convert("RGBA"))
    return sheet.convert(image.mode[:-1])


# ---- writing ----------------------------------------------------------------------------------------------------


ENDS = (".png", ".webp", ".jpg", ".jpeg")


def checked_name(path: str | os.PathLike[str]) -> Path:
    """A name that :func:`save_png` can write under; raises InputError before any work is done."""
    path = Path(path)
    if path.suffix.lower() not in ENDS:
        raise InputError(f"Images are written as .png, .webp or .jpg, not {path.suffix!r}. Try {path.stem}.png.")
    if (obstacle := next((p for p in path.parents if p.exists() and not p.is_dir()), None)) is not None:
        raise InputError(f"{path} cannot be written: {str(obstacle)!r} is a file and not a folder.")
    place = next((p for p in path.absolute().parents if p.exists()), path)
    if path.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        what = "it is a folder" if path.is_dir() else f"{str(place)!r} takes no new files"
        raise InputError(f"{path} cannot be written: {what}. Choose another place with --out.")
    return path


def save_png(
    image: Tensor | np.ndarray | Image.Image, path: str | os.PathLike[str], recipe: Mapping[str, Any] | None = None
):
    """Write an image, whole or not at all: a PNG, or by the end of its name a lossless WebP, or a JPEG.

    The same image and recipe give the same bytes.

    Args:
        image: Float in [-1, 1], uint8, or PIL; (c, h, w).
        path: Where; the folder is made.
        recipe: How it was made, kept as JSON in a PNG's text chunk "fastdiffusion" or the others' EXIF comment, with
            the tag of ``metadata.source_type``; None writes no metadata at all. Folders are taken out of it: of an
            existing absolute path only the last name stays.

    Raises:
        InputError: Another end, or a recipe above the 64 KB that a JPEG has room for.
    """
    write_bytes(path, encoded(image, path, recipe))


def encoded(
    image: Tensor | np.ndarray | Image.Image, path: str | os.PathLike[str], recipe: Mapping[str, Any] | None = None
) -> bytes:
    """The bytes of the file that :func:`save_png` writes."""
    path, content = checked_name(path), plain(to_pil(image))  # without an input's comments, which Pillow would write on
    text = None if recipe is None else json.dumps(metadata.without_paths(dict(recipe), existing=True), sort_keys=True)
    chunks, exif, buffer = PngImagePlugin.PngInfo(), Image.Exif(), io.BytesIO()
    if text is not None:
        chunks.add_text(metadata.KEY, text)
        if known := metadata.as_automatic1111(recipe or {}):
            chunks.add_itxt("parameters", known)
        exif.get_ifd(_EXIF)[_COMMENT] = f"ASCII\0\0\0{metadata.KEY}:{text}".encode()
    comment = b"" if text is None else exif.tobytes()
    packet = None if recipe is None else metadata.xmp(recipe)
    tag: dict[str, Any] = {} if packet is None else {"xmp": packet.encode()}
    match path.suffix.lower():
        case ".png":
            if packet is not None:
                chunks.add_itxt("XML:com.adobe.xmp", packet)
            content.save(buffer, "PNG", pnginfo=chunks)
        case ".webp":
            content.save(buffer, "WEBP", lossless=True, exact=True, exif=comment, **tag)
        case ".jpg" | ".jpeg" if len(comment) <= _SEGMENT:
            if content.mode in ("LA", "RGBA") and int(to_array(content)[-1].min()) < 255:
                warn(f"A JPEG keeps no transparency: that of {path.name} was laid on white. Write a .png or .webp.")
            flatten(content).save(buffer, "JPEG", quality=95, subsampling=0, exif=comment, **tag)
        case _:
            raise InputError(f"The recipe of {path.name!r} is too long for a JPEG. Write a .png or .webp.")
    return buffer.getvalue()


def save_sidecar(path: str | os.PathLike[str], recipe: Mapping[str, Any]) -> None:
    """Write an image's recipe as JSON beside it, under its name; :func:`read_recipe` finds it there."""
    text = json.dumps(metadata.without_paths(dict(recipe), existing=True), sort_keys=True, indent=1)
    write_bytes(Path(path).with_suffix(".json"), text.encode() + b"\n")


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file, whole or not at all; raises DataError where that cannot be done."""
    atomic.write_bytes(path, content, DataError, flush=False)


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The recipe of an image: in it, or in the JSON file beside it. See ``recipes.parse`` for other programs' ones.

    Raises:
        DataError: no image, or no recipe.
    """
    name, beside = Path(path).name, Path(path).with_suffix(".json")
    recipe = inner_recipe(path)
    if recipe is None and beside.is_file() and beside.stat().st_size < _SIDECAR:
        recipe = metadata.parse({metadata.KEY: beside.read_text(errors="replace")})
    if recipe is None:
        raise DataError(f"{name!r} carries no recipe. Give an image that was saved with its metadata.")
    return recipe


def inner_recipe(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The recipe that an image file itself carries, or None."""
    try:
        with opened(path) as image:
            image.load()  # text may stand behind the pixels
            texts = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
            return metadata.parse(texts | _exif_texts(image))
    except (DataError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"Cannot read {Path(path).name!r}: {error}.") from None


def _exif_texts(image: Image.Image) -> dict[str, str]:
    """The texts in an image's EXIF data, named as a PNG would: WebP and JPEG have no other place for them."""
    exif = image.getexif()
    texts = {}
    for tag in (0x010E, 0x010F, 0x0110):  # ComfyUI writes "prompt:{...}" where the camera should stand
        key, colon, value = str(exif.get(tag, "")).partition(":")
        if colon:
            texts[key.strip().lower()] = value
    comment = exif.get_ifd(_EXIF).get(_COMMENT, b"")
    if isinstance(comment, bytes):
        kind, comment = comment[:8], comment[8:]
        comment = comment.decode("utf-16-be" if kind.startswith(b"UNICODE") else "utf-8", "replace")
    comment = comment if isinstance(comment, str) else ""  # EXIF data may give it any type
    if comment.startswith(f"{metadata.KEY}:"):
        return {**texts, metadata.KEY: comment.partition(":")[2]}
    return {**texts, "parameters": comment} if "Steps:" in comment else texts


def safe_name(text: str, length: int = 80) -> str:
    """A file name made from any text (a prompt): one component of at most ``length`` bytes, never hidden or empty.

    >>> safe_name("../../etc/passwd"), safe_name("a cat, on a mat?")
    ('etc-passwd', 'a-cat-on-a-mat')
    """
    name = unicodedata.normalize("NFKC", text)
    name = re.sub(r"[^\w.]+", "-", name)
    name = re.sub(r"\.{2,}|-?\.-", "-", name).strip("-._")
    name = name.encode(errors="ignore")[:length].decode(errors="ignore").strip("-._")
    reserved = re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, re.IGNORECASE)  # devices on Windows
    return f"{name}-" if reserved else name or "untitled"
