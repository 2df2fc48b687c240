"""What translation, style and cold diffusion share: a U-Net by name, files of small nets, pictures in and out."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from .. import nets
from ..checkpoints import load_tensors, save_tensors, write_bytes
from ..errors import CheckpointError, InputError, unknown
from ..images import flatten, grid, open_image, plain, to_pil, to_tensor
from ..noise import generator

ImageLike = str | PathLike[str] | Image.Image | Tensor
LEAST = 16  # pixels of the shorter side


def unet(name: str) -> dict[str, Any]:
    """The keywords of a U-Net in ``nets.PRESETS``, which still lack channels; InputError for another name."""
    preset = nets.PRESETS.get(name, {})
    if preset.get("name") != "unet":
        raise unknown("U-Net", name, [known for known, spec in nets.PRESETS.items() if spec["name"] == "unet"])
    return {key: value for key, value in preset.items() if key != "name"}


def drawn(make: Callable[[], nn.Module], seed: int) -> Any:
    """What ``make`` builds, its first weights from ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed).initial_seed() % 2**63)
        return make()


def save(kind: str, module: nn.Module, path: str | Path) -> None:
    """Write one safetensors file, atomically. ``module.config`` holds the keywords that it was made with."""
    save_tensors(path, module.state_dict(), {"kind": kind, **module.config})  # type: ignore[dict-item]


def load(path: str | Path, kinds: Mapping[str, Callable[..., nn.Module]], made_by: str) -> Any:
    """Read a file of :func:`save`, of one of ``kinds``, frozen; raises CheckpointError for any other.

    The file may be a stranger's: the module is built where that costs nothing, and compared with the tensors first.
    """
    config, tensors = load_tensors(path)
    kind = config.pop("kind", None)
    if kind not in kinds:
        raise CheckpointError(f"{path} is not a file that {made_by} wrote.")
    try:
        with torch.device("meta"):
            made = kinds[kind](**config)
        if {name: t.shape for name, t in made.state_dict().items()} != {name: t.shape for name, t in tensors.items()}:
            raise ValueError("its tensors have other names or shapes")
        made.to_empty(device="cpu").load_state_dict(tensors)
    except (TypeError, RuntimeError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{path} does not fit its configuration ({str(error)[:200]}).") from None
    return made.eval().requires_grad_(False)


def sheet(images: Float[Tensor, "n c h w"], path: str | Path, columns: int) -> None:
    """A grid of pictures as a PNG, enlarged where they are small."""
    buffer = io.BytesIO()
    grid(images.clamp(-1, 1), columns, max(1, 96 // max(images.shape[-2:]))).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


# ---- pictures in and out ------------------------------------------------------------------------------------------


def opened(image: ImageLike, role: str, least: int = LEAST) -> Image.Image:
    """A file, tensor or picture as L, LA, RGB or RGBA, of ``least`` pixels a side; errors name its ``role``."""
    is_object = isinstance(image, Image.Image | Tensor)
    result = plain(to_pil(image)) if is_object else open_image(image, role)
    if min(result.size) < least:
        raise InputError(f"The {role} is {result.width}x{result.height} pixels; at least {least}x{least} are needed.")
    return result


def as_tensor(image: Image.Image) -> Float[Tensor, "1 3 h w"]:
    """In color, on white, in [-1, 1]."""
    return to_tensor(flatten(image).convert("RGB"))[None]


def scaled(x: Tensor, factor: float) -> Tensor:
    """Resized by a factor, to at least 16 pixels a side."""
    h, w = (max(round(n * factor), LEAST) for n in x.shape[-2:])
    return F.interpolate(x, (h, w), mode="bicubic", antialias=True).clamp(-1, 1)
