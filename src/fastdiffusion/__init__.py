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
    from .tasks.clip import score, search
    from .tasks.evaluation import Report, evaluate, measure
    from .tasks.generation import Samples, again, sample, sample_steps
    from .tasks.restoration import restore
    from .tasks.restored import Restored
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
    "Restored",
    "Samples",
    "again",
    "evaluate",
    "export",
    "load",
    "measure",
    "restore",
    "sample",
    "sample_steps",
    "save",
    "score",
    "search",
    "study",
    "stylize",
    "translate",
]

_ROOMS = {
    "data": ["ImageFolder"],
    "errors": ["FastdiffusionError"],
    "learner": ["Learner"],
    "models": ["Model", "load", "save"],
    "tasks.clip": ["score", "search"],
    "tasks.evaluation": ["Report", "evaluate", "measure"],
    "tasks.generation": ["Samples", "again", "sample", "sample_steps"],
    "tasks.restoration": ["restore"],
    "tasks.restored": ["Restored"],
    "tasks.sharing": ["export"],
    "tasks.study": ["study"],
    "tasks.stylization": ["stylize"],
    "tasks.translation": ["translate"],
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562), so that importing the package costs nothing."""
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_ROOM_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
