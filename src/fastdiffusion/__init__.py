"""Diffusion models from theory to pictures: train, sample, measure.

>>> from fastdiffusion import Learner, sample
>>> learner = Learner("digits", net="unet-tiny").fit(minutes=1)  # doctest: +SKIP
>>> sample(learner.model, n=16, steps=12).save("out")  # doctest: +SKIP

The names below are loaded when they are first used; the modules are the theory's table of contents.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import ImageFolder
    from .errors import FastdiffusionError
    from .learner import Learner
    from .models import Model, load, save
    from .tasks.clip import clip_score, search
    from .tasks.evaluation import Report, evaluate, measure
    from .tasks.generation import Samples, reproduce, sample, sample_steps
    from .tasks.restoration import restore
    from .tasks.restored import RestorationResult
    from .tasks.sharing import export
    from .tasks.study import study
    from .tasks.stylization import stylize
    from .tasks.translation import translate

__version__ = "0.1.0"

__all__ = [
    "FastdiffusionError",
    "ImageFolder",
    "Learner",
    "Model",
    "Report",
    "RestorationResult",
    "Samples",
    "clip_score",
    "evaluate",
    "export",
    "load",
    "measure",
    "reproduce",
    "restore",
    "sample",
    "sample_steps",
    "save",
    "search",
    "study",
    "stylize",
    "translate",
]

_MODULES = {
    "data": ["ImageFolder"],
    "errors": ["FastdiffusionError"],
    "learner": ["Learner"],
    "models": ["Model", "load", "save"],
    "tasks.clip": ["clip_score", "search"],
    "tasks.evaluation": ["Report", "evaluate", "measure"],
    "tasks.generation": ["Samples", "reproduce", "sample", "sample_steps"],
    "tasks.restoration": ["restore"],
    "tasks.restored": ["RestorationResult"],
    "tasks.sharing": ["export"],
    "tasks.study": ["study"],
    "tasks.stylization": ["stylize"],
    "tasks.translation": ["translate"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562), so that importing the package costs nothing."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
