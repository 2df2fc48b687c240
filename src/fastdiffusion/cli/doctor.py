"""What works on this machine, and what an extra or a package would add."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import torch

from ..data import cache_folder, fashion_mnist
from ..data.emoji.font import find_font
from ..data.fashion_mnist import FOLDER
from ..errors import FastdiffusionError, InputError, counted
from ..version import __version__

CORE = ("torch", "accelerate", "safetensors", "huggingface_hub", "numpy", "pillow", "scikit-learn", "typer")
EXTRAS = {
    "sd": ["diffusers", "transformers"],
    "data": ["datasets", "emoji"],
    "optim": ["schedulefree"],
    "track": ["tensorboard"],
    "fast": ["openvino"],
    "gguf": ["gguf"],
    "onnx": ["onnx"],
}


def doctor(model: str | None = None, tune: bool = False) -> str:
    """A report in plain lines, of this machine or of a checkpoint on it. Nothing is downloaded.

    ``tune`` also measures which settings suit the checkpoint here, and writes them beside it for ``load``.
    """
    return text(findings(model, tune))


def findings(model: str | None = None, tune: bool = False) -> dict[str, str]:
    """The same, by what each line is about."""
    if model is None:
        if tune:
            raise InputError("--tune measures a model, and none is named. Type: fastdiffusion doctor MODEL --tune")
        return dict(_findings())
    return {**dict(_examined(model)), **(dict(_tuned(model)) if tune else {})}


def text(found: Mapping[str, str]) -> str:
    """Findings as lines."""
    return "\n".join(f"{name:14} {finding}" for name, finding in found.items())


def _examined(model: str) -> Iterator[tuple[str, str]]:
    from ..adapters import examine
    from ..tasks.loading import load

    return examine(load(model))


def _tuned(model: str) -> Iterator[tuple[str, str]]:
    """What was measured, and where it was written."""
    from functools import partial

    from ..adapters import located
    from ..adapters.tuning import tune
    from ..device import best_device, device_of
    from ..models import tuned
    from ..tasks.loading import load

    device, place = device_of(best_device()), located(model)
    found = list(tune(partial(load, place, device=device.type, tuned=False), device))
    chosen = {setting.name: setting.value for setting in found if setting.value is not None}
    for setting in found:
        yield f"tuned {setting.name}", f"{setting.value or 'as it is'}: {setting.why}"
    yield (
        "written to",
        str(tuned.save_settings(place, device, chosen, {setting.name: setting.why for setting in found})),
    )


def _findings() -> Iterator[tuple[str, str]]:
    yield (
        "fastdiffusion",
        f"{__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}",
    )
    yield "core", ", ".join(_works(name) for name in CORE)
    yield "devices", ", ".join(_devices())
    broken = _broken([name for packages in EXTRAS.values() for name in packages if _version(name) is not None])
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if _version(name) is None]
        here = ", ".join(_stated(name, broken.get(name)) for name in packages if name not in missing)
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
        return _stated(package, _reason(error))
    return _stated(package)


def _stated(package: str, broken: str | None = None) -> str:
    return f"{package} {_version(package)}" + (f" BROKEN ({broken}), reinstall it" if broken else "")


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1][:100]


_TRY = """
import importlib, json, sys
sys.modules["openvino_telemetry"] = None  # a stub is then taken: nothing is sent
broken = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        broken[name] = (str(error).strip() or type(error).__name__).splitlines()[-1][:100]
print(json.dumps(broken))
"""


def _broken(packages: Sequence[str]) -> dict[str, str]:
    """Which of these cannot be imported, and why; in a process of their own, which a broken library may end."""
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", _TRY, *packages], capture_output=True, text=True)
    if out.returncode == 0:
        return json.loads(out.stdout.splitlines()[-1])
    if len(packages) == 1:
        return {packages[0]: f"importing it ends Python, exit code {out.returncode}"}
    return {name: why for package in packages for name, why in _broken([package]).items()}


def _devices() -> Iterator[str]:
    kind = torch.backends.cpu.get_cpu_capability()
    yield f"cpu with {counted(os.cpu_count() or 1, 'core')}, {counted(torch.get_num_threads(), 'thread')}, {kind}"
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
