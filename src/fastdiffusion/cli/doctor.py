"""What works on this machine, and what an extra or a package would add."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import torch

from ..data import cache_folder, fashion_mnist
from ..data.emoji.font import find_font
from ..data.fashion_mnist import FOLDER
from ..errors import FastdiffusionError
from ..version import __version__

CORE = ("torch", "accelerate", "safetensors", "huggingface_hub", "numpy", "pillow", "scikit-learn", "typer")
EXTRAS = {
    "app": ["gradio"],
    "sd": ["diffusers", "transformers"],
    "data": ["datasets", "emoji"],
    "optim": ["schedulefree"],
}


def doctor(model: str | None = None) -> str:
    """A report in plain lines, of this machine or of a model folder on it. Nothing is downloaded, nothing changed."""
    return text(findings(model))


def findings(model: str | None = None) -> dict[str, str]:
    """The same, by what each line is about."""
    return dict(_findings() if model is None else _examined(model))


def text(found: Mapping[str, str]) -> str:
    """Findings as lines."""
    return "\n".join(f"{name:14} {finding}" for name, finding in found.items())


def _examined(model: str) -> Iterator[tuple[str, str]]:
    from ..adapters import examine
    from ..tasks.loading import load

    return examine(load(model))


def _findings() -> Iterator[tuple[str, str]]:
    yield (
        "fastdiffusion",
        f"{__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}",
    )
    yield "core", ", ".join(_works(name) for name in CORE)
    yield "devices", ", ".join(_devices())
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if _version(name) is None]
        here = ", ".join(f"{name} {_version(name)}" for name in packages if name not in missing)
        add = f"no {', '.join(missing)}; add with: pip install 'fastdiffusion[{extra}]'" if missing else ""
        yield f"extra {extra}", "; ".join(filter(None, (here, add)))
    yield "torchvision", _torchvision()
    yield "digits", "ready" if _version("scikit-learn") else "needs scikit-learn"
    yield "fashion-mnist", _try(lambda: f"ready in {FOLDER}" if fashion_mnist(part="test") else "")
    yield "emoji font", _try(lambda: str(find_font().name))
    yield "cache", str(cache_folder())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _works(package: str) -> str:
    """A package and its version, and whether it can be imported: a broken one has a version too."""
    if _version(package) is None:
        return f"{package} MISSING"
    try:
        import_module({"pillow": "PIL", "scikit-learn": "sklearn"}.get(package, package))
    except Exception as error:
        return f"{package} {_version(package)} BROKEN ({_reason(error)}), reinstall it"
    return f"{package} {_version(package)}"


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1][:100]


def _devices() -> Iterator[str]:
    kind = torch.backends.cpu.get_cpu_capability()
    yield f"cpu with {os.cpu_count()} cores, {torch.get_num_threads()} threads, {kind}"
    for i in range(torch.cuda.device_count()):
        yield f"cuda:{i} {torch.cuda.get_device_name(i)}"
    if torch.backends.mps.is_available():
        yield "mps"


def _torchvision() -> str:
    """Nothing here needs it, but other packages do, and builds that do not fit torch are common."""
    if _version("torchvision") is None:
        return "not installed, and not needed"
    try:
        import torchvision  # pyright: ignore[reportMissingImports]
    except Exception as error:  # whatever a mismatched binary raises
        return f"BROKEN ({_reason(error)}). Not needed here; for other packages install the build that fits torch"
    return f"{torchvision.__version__}, not needed"


def _try(look: Callable[[], str]) -> str:
    try:
        return look()
    except FastdiffusionError as error:
        return f"missing. {error}"
