"""Diffusion models from theory to images: train, sample, measure.

>>> from fastdiffusion import Learner, sample
>>> learner = Learner("digits", net="unet-tiny").fit(minutes=1)  # doctest: +SKIP
>>> sample(learner.model, n=16, steps=12).save("out")  # doctest: +SKIP

The names below are loaded when they are first used; the modules are the theory's table of contents.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any
from warnings import warn

from .version import __version__

if TYPE_CHECKING:
    from .data import ImageFolder
    from .errors import FastdiffusionError
    from .models import Model, save
    from .tasks.autoencoding.token_prior import sample_tokens, train_token_prior
    from .tasks.autoencoding.train import train_autoencoder
    from .tasks.classification.train import train_classifier
    from .tasks.evaluation.evaluate import Report, evaluate, measure
    from .tasks.evaluation.study import study
    from .tasks.export import export
    from .tasks.generation.recipe import reproduce
    from .tasks.generation.sample import sample, sample_steps
    from .tasks.generation.samples import Samples
    from .tasks.loading import load
    from .tasks.restoration.cold_diffusion import train_cold
    from .tasks.restoration.restore import restore
    from .tasks.restoration.result import RestorationResult
    from .tasks.restoration.watermarks import remove_watermark
    from .tasks.stylization.stylize import stylize
    from .tasks.text_image.clip import train_clip
    from .tasks.text_image.scoring import clip_score, search
    from .tasks.translation.paired import train_translation, translate
    from .tasks.variations import variations
    from .training.learner import Learner


__all__ = [
    "FastdiffusionError",
    "ImageFolder",
    "Learner",
    "Model",
    "Report",
    "RestorationResult",
    "Samples",
    "__version__",
    "clip_score",
    "evaluate",
    "export",
    "load",
    "measure",
    "remove_watermark",
    "reproduce",
    "restore",
    "sample",
    "sample_steps",
    "sample_tokens",
    "save",
    "search",
    "study",
    "stylize",
    "train_autoencoder",
    "train_classifier",
    "train_clip",
    "train_cold",
    "train_token_prior",
    "train_translation",
    "translate",
    "variations",
]

_MODULES = {
    "data": ["ImageFolder"],
    "errors": ["FastdiffusionError"],
    "training.learner": ["Learner"],
    "models": ["Model", "save"],
    "tasks.autoencoding.token_prior": ["sample_tokens", "train_token_prior"],
    "tasks.autoencoding.train": ["train_autoencoder"],
    "tasks.classification.train": ["train_classifier"],
    "tasks.text_image.clip": ["train_clip"],
    "tasks.text_image.scoring": ["clip_score", "search"],
    "tasks.evaluation.evaluate": ["Report", "evaluate", "measure"],
    "tasks.generation.recipe": ["reproduce"],
    "tasks.generation.sample": ["sample", "sample_steps"],
    "tasks.generation.samples": ["Samples"],
    "tasks.loading": ["load"],
    "tasks.restoration.cold_diffusion": ["train_cold"],
    "tasks.restoration.restore": ["restore"],
    "tasks.restoration.result": ["RestorationResult"],
    "tasks.restoration.watermarks": ["remove_watermark"],
    "tasks.export": ["export"],
    "tasks.evaluation.study": ["study"],
    "tasks.stylization.stylize": ["stylize"],
    "tasks.translation.paired": ["train_translation", "translate"],
    "tasks.variations": ["variations"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


_OLD = {"Restored": "RestorationResult", "again": "reproduce", "score": "clip_score"}  # go on working for one release


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562), so that importing the package costs nothing."""
    if name in _OLD:
        warn(f"fastdiffusion.{name} is now fastdiffusion.{_OLD[name]}.", DeprecationWarning, stacklevel=2)
        return __getattr__(_OLD[name])
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
