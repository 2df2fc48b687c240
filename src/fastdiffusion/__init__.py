"""Diffusion models: draw, restore and edit images; train, measure and share models of your own.

>>> import fastdiffusion as fd
>>> fd.sample("a grinning face", n=4).save("out")  # doctest: +SKIP
>>> done = fd.train("photos/", size=64, minutes=60)  # doctest: +SKIP
>>> fd.sample(done.model, n=16, steps=12).save("out")  # doctest: +SKIP

The verbs are those of the command line, with the same names and options. Each is loaded when it is first used; the
modules (``fd.samplers``, ``fd.guidance``, ``fd.schedules``, ...) are the theory's table of contents.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import warn as _warn
from .version import __version__ as __version__

if TYPE_CHECKING:  # for editors and type checkers, which read no _PUBLIC; tests/test_contracts.py compares the two
    from .cli.about import about as about
    from .cli.demo import demo as demo
    from .cli.doctor import doctor as doctor
    from .data import ImageFolder as ImageFolder
    from .data import scan as scan
    from .errors import FastdiffusionError as FastdiffusionError
    from .io.images import read_recipe as recipe
    from .io.results import ImageResult as ImageResult
    from .models import Model as Model
    from .models import save as save
    from .prompts.reading import names as names
    from .samplers.registry import list_samplers as list_samplers
    from .tasks.attribution.explain import explain as explain
    from .tasks.autoencoding.analysis import describe as evaluate_autoencoder
    from .tasks.autoencoding.token_prior import sample_tokens as sample_tokens
    from .tasks.autoencoding.token_prior import train_token_prior as train_token_prior
    from .tasks.autoencoding.train import train_autoencoder as train_autoencoder
    from .tasks.classification.train import train_classifier as train_classifier
    from .tasks.editing.edit import edit as edit
    from .tasks.evaluation.evaluate import Report as Report
    from .tasks.evaluation.evaluate import evaluate as evaluate
    from .tasks.evaluation.evaluate import measure as measure
    from .tasks.evaluation.study import study as study
    from .tasks.export import export as export
    from .tasks.fitting import FitResult as FitResult
    from .tasks.fitting import fit as fit
    from .tasks.generation.recipe import reproduce as reproduce
    from .tasks.generation.sample import sample as sample
    from .tasks.generation.sample import sample_steps as sample_steps
    from .tasks.generation.samples import Samples as Samples
    from .tasks.loading import load as load
    from .tasks.personalization.finetune import finetune as finetune
    from .tasks.personalization.lora import lora as lora
    from .tasks.personalization.personalize import personalize as personalize
    from .tasks.personalization.result import PersonalizationResult as PersonalizationResult
    from .tasks.rearrangement.rearrange import rearrange as rearrange
    from .tasks.restoration.cold_diffusion import train_cold as train_cold
    from .tasks.restoration.restore import restore as restore
    from .tasks.restoration.result import RestorationResult as RestorationResult
    from .tasks.restoration.watermarks import remove_watermark as remove_watermark
    from .tasks.stylization.network import train_style as train_style
    from .tasks.stylization.stylize import stylize as stylize
    from .tasks.text_image.caption_mean import train_caption_mean as train_caption_mean
    from .tasks.text_image.clip import train_clip as train_clip
    from .tasks.text_image.multilingual import add_language as add_language
    from .tasks.text_image.scoring import clip_score as clip_score
    from .tasks.text_image.scoring import search as search
    from .tasks.training import train as train
    from .tasks.translation.paired import train_translation as train_translation
    from .tasks.translation.paired import translate as translate
    from .tasks.variations import build_index as index
    from .tasks.variations import variations as variations
    from .training.learner import Learner as Learner
    from .training.report import TrainingResult as TrainingResult

_PUBLIC = {  # module: its public names; NAME=OTHER where it is called OTHER there
    "cli.about": "about",
    "cli.demo": "demo",
    "cli.doctor": "doctor",
    "data": "ImageFolder scan",
    "errors": "FastdiffusionError",
    "io.images": "recipe=read_recipe",
    "io.results": "ImageResult",
    "models": "Model save",
    "prompts.reading": "names",
    "samplers.registry": "list_samplers",
    "tasks.attribution.explain": "explain",
    "tasks.autoencoding.analysis": "evaluate_autoencoder=describe",
    "tasks.autoencoding.token_prior": "sample_tokens train_token_prior",
    "tasks.autoencoding.train": "train_autoencoder",
    "tasks.classification.train": "train_classifier",
    "tasks.editing.edit": "edit",
    "tasks.evaluation.evaluate": "Report evaluate measure",
    "tasks.evaluation.study": "study",
    "tasks.export": "export",
    "tasks.fitting": "FitResult fit",
    "tasks.generation.recipe": "reproduce",
    "tasks.generation.sample": "sample sample_steps",
    "tasks.generation.samples": "Samples",
    "tasks.loading": "load",
    "tasks.personalization.finetune": "finetune",
    "tasks.personalization.lora": "lora",
    "tasks.personalization.personalize": "personalize",
    "tasks.personalization.result": "PersonalizationResult",
    "tasks.rearrangement.rearrange": "rearrange",
    "tasks.restoration.cold_diffusion": "train_cold",
    "tasks.restoration.restore": "restore",
    "tasks.restoration.result": "RestorationResult",
    "tasks.restoration.watermarks": "remove_watermark",
    "tasks.stylization.network": "train_style",
    "tasks.stylization.stylize": "stylize",
    "tasks.text_image.caption_mean": "train_caption_mean",
    "tasks.text_image.clip": "train_clip",
    "tasks.text_image.multilingual": "add_language",
    "tasks.text_image.scoring": "clip_score search",
    "tasks.training": "train",
    "tasks.translation.paired": "train_translation translate",
    "tasks.variations": "index=build_index variations",
    "training.learner": "Learner",
    "training.report": "TrainingResult",
}
_SOURCE = {
    name: (module, other or name)
    for module, listed in _PUBLIC.items()
    for name, _, other in (entry.partition("=") for entry in listed.split())
}
_MODULES = (
    "corruptions", "data", "denoisers", "errors", "guidance", "losses", "metrics", "models", "nets", "noise", "patches",
    "prompts", "samplers", "schedules", "types",
)  # fmt: skip
_OLD = {"Restored": "RestorationResult", "again": "reproduce", "score": "clip_score"}  # go on working for one release

__all__ = sorted([*_SOURCE, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562), so that importing the package costs nothing."""
    if name in _OLD:
        _warn(f"fastdiffusion.{name} is now fastdiffusion.{_OLD[name]}.", DeprecationWarning)
        return __getattr__(_OLD[name])
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _SOURCE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _SOURCE[name]
    value = globals()[name] = getattr(import_module(f".{module}", __name__), attribute)
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
