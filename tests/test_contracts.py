"""What a user may rely on: names, flags, and that nothing is imported before it is needed."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
import typer

import fastdiffusion
from fastdiffusion import cli, nets
from fastdiffusion.cli import about, demo, doctor
from fastdiffusion.cli.options import OLD_COMMANDS
from fastdiffusion.data import ImageFolder
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.errors import InputError
from fastdiffusion.io import images
from fastdiffusion.models import Model
from fastdiffusion.models import model as models_model
from fastdiffusion.nets import presets
from fastdiffusion.samplers.fitting import fit_sampler
from fastdiffusion.tasks import export, variations
from fastdiffusion.tasks.autoencoding import analysis, token_prior, train
from fastdiffusion.tasks.autoencoding import options as autoencoding
from fastdiffusion.tasks.classification import options as classification
from fastdiffusion.tasks.classification import train as classifiers
from fastdiffusion.tasks.evaluation import evaluate, study
from fastdiffusion.tasks.evaluation.options import EvaluateOptions
from fastdiffusion.tasks.generation import recipe, sample
from fastdiffusion.tasks.generation.options import ExportOptions, SampleOptions, StudyOptions, VariationsOptions
from fastdiffusion.tasks.restoration import cold_diffusion, restore, watermarks
from fastdiffusion.tasks.restoration.options import RemoveWatermarkOptions, RestoreOptions, TrainColdOptions
from fastdiffusion.tasks.stylization import network, stylize
from fastdiffusion.tasks.stylization.options import StylizeOptions, TrainStyleOptions
from fastdiffusion.tasks.text_image import caption_mean, clip, multilingual, scoring
from fastdiffusion.tasks.text_image import options as text_image
from fastdiffusion.tasks.translation import paired
from fastdiffusion.tasks.translation.options import TrainTranslationOptions, TranslateOptions
from fastdiffusion.training.config import Budget, TrainingConfig
from fastdiffusion.training.learner import Learner

HEAVY = ("torch", "numpy", "PIL", "sklearn", "accelerate", "diffusers", "transformers", "gradio", "matplotlib")
required = inspect.Parameter.empty
EVERY = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
COMMANDS = {name: command for name, command in EVERY.items() if not command.hidden}


def imported_by(code: str) -> tuple[set[str], float]:
    """Which packages a fresh interpreter loads, and the CPU seconds it took."""
    report = "import json, sys, time; print(json.dumps([list(sys.modules), time.process_time()]), file=sys.stderr)"
    program = f"try:\n    {code}\nexcept SystemExit: pass\n{report}"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules, seconds = json.loads(run.stderr.splitlines()[-1])
    return {name.partition(".")[0] for name in modules}, seconds


def test_exported_names():
    assert fastdiffusion.__all__ == sorted([*fastdiffusion._MODULE_OF, "__version__"])
    for name in fastdiffusion.__all__:
        assert inspect.getdoc(getattr(fastdiffusion, name)), name
        assert name in dir(fastdiffusion)
    with pytest.raises(AttributeError, match="no attribute 'sampel'"):
        _ = fastdiffusion.sampel  # type: ignore[attr-defined]


def test_the_promised_names():
    """Taking one of these away breaks programs: it needs a new major version."""
    assert set(fastdiffusion.__all__) >= {
        "FastdiffusionError", "ImageFolder", "Learner", "Model", "Samples", "evaluate", "load", "sample",
        "reproduce", "sample_steps", "save",
    }  # fmt: skip


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_nothing_heavy(command):
    """All helps in one process each; the time is printed and not judged (a busy machine is not a bug)."""
    loaded, seconds = imported_by(f"from fastdiffusion.cli import main; main({[*command.split(), '--help']})")
    assert not loaded & set(HEAVY)
    print(f"{command or 'fastdiffusion'} --help: {seconds:.2f} CPU s")


def test_import_brings_nothing_heavy():
    loaded, _ = imported_by("import fastdiffusion")
    assert not loaded & set(HEAVY)
    loaded, _ = imported_by("from fastdiffusion import sample, evaluate, Model, load, ImageFolder, Samples")
    assert "torch" in loaded
    assert not loaded & {"accelerate", "diffusers", "transformers", "gradio", "matplotlib", "datasets"}


class Verb(NamedTuple):
    """What a command calls, and where the two differ on purpose; all else is derived from both signatures.

    Attributes:
        functions: Whose parameters the flags are: of functions, and the fields of options dataclasses.
        flags: That only the command line has: where results go and in which form, and how data are named and opened.
        parameters: That only Python has: what cannot be typed.
        defaults: Flags whose default is written in another way, or chosen by the command: the default on the command
            line, and what it stands for in Python.
    """

    functions: tuple[Callable[..., Any], ...]
    flags: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()
    defaults: Mapping[str, tuple[Any, Any]] = MappingProxyType({})


def verb(*functions: Callable[..., Any], flags: str = "", parameters: str = "", **defaults: tuple[Any, Any]) -> Verb:
    return Verb(functions, frozenset(flags.split()), frozenset(parameters.split()), defaults)


VERBS = {
    "train": verb(
        Learner, TrainingConfig, Learner.fit, Budget,
        flags="size aspect labels inputs procs cpu",
        parameters="callbacks compile decay ema grad_clip loss_weighting_options save_every sigma_data "
        "sigma_distribution_options uncertainty verbose warmup weight_decay",
    ),
    "scan": verb(ImageFolder),
    "fit": verb(
        fit_sampler, flags="prompt", parameters="cond shape sigma_max sigma_min",
        steps=("5,8,12", required), scale=(None, 1.0),
    ),
    "train-classifier": verb(classifiers.train_classifier, classification.TrainClassifierOptions),
    "train-autoencoder": verb(
        train.train_autoencoder, autoencoding.TrainAutoencoderOptions, flags="aspect", parameters="decoder_of"
    ),
    "evaluate-autoencoder": verb(
        analysis.describe, autoencoding.EvaluateAutoencoderOptions, flags="size aspect holdout out"
    ),
    "train-token-prior": verb(token_prior.train_token_prior, autoencoding.TrainTokenPriorOptions, flags="aspect"),
    "sample-tokens": verb(token_prior.sample_tokens, autoencoding.SampleTokensOptions, flags="out"),
    "sample": verb(
        sample.sample, SampleOptions, flags="out format metadata sidecar film verbose", model=(None, "emoji")
    ),
    "reproduce": verb(recipe.reproduce, flags="out"),
    "evaluate": verb(evaluate.evaluate, EvaluateOptions, flags="out", parameters="features"),
    "study": verb(study.study, StudyOptions, flags="out"),
    "export": verb(export.export, ExportOptions),
    "variations": verb(variations.variations, VariationsOptions, flags="out"),
    "index": verb(variations.build_index, flags="out aspect"),
    "add-language": verb(multilingual.add_language, text_image.AddLanguageOptions, flags="out"),
    "restore": verb(restore.restore, RestoreOptions, flags="out compare metadata"),
    "remove-watermark": verb(watermarks.remove_watermark, RemoveWatermarkOptions, flags="out metadata"),
    "train-clip": verb(clip.train_clip, text_image.TrainClipOptions, flags="aspect"),
    "train-caption-mean": verb(caption_mean.train_caption_mean, text_image.TrainCaptionMeanOptions, flags="aspect"),
    "clip-score": verb(scoring.clip_score),
    "search": verb(scoring.search),
    "stylize": verb(stylize.stylize, StylizeOptions, flags="out metadata", parameters="net"),
    "train-style": verb(network.train_style, TrainStyleOptions),
    "train-translation": verb(paired.train_translation, TrainTranslationOptions),
    "translate": verb(paired.translate, TranslateOptions, flags="out metadata"),
    "train-cold": verb(cold_diffusion.train_cold, TrainColdOptions),
    "list-samplers": verb(),
    "names": verb(flags="prompt n"),
    "about": verb(about.about),
    "recipe": verb(images.read_recipe, flags="image", parameters="path"),
    "demo": verb(demo.demo, flags="out", parameters="folder"),
    "doctor": verb(doctor.doctor),
}  # fmt: skip


def parameters_of(functions: Sequence[Callable[..., Any]]) -> dict[str, inspect.Parameter]:
    """All parameters by name; where two functions have one name, the first one's."""
    every = [p for f in functions for p in inspect.signature(f).parameters.values()]
    return {p.name: p for p in reversed(every) if p.name != "self" and p.kind is not p.VAR_KEYWORD}


def differences(flags: Mapping[str, Any], known: Verb) -> list[str]:
    """How a command's flags (name: default) differ from the parameters of its functions, but for what is meant so."""
    parameters = parameters_of(known.functions)
    found = [f"--{name} is no parameter" for name in flags.keys() - parameters.keys() - known.flags]
    found += [f"{name} is no flag" for name in parameters.keys() - flags.keys() - known.parameters]
    # an exception that is none any more would hide the next difference
    found += [f"--{name} is a parameter" for name in known.flags & parameters.keys()]
    found += [f"--{name} is listed and no flag" for name in (known.flags | known.defaults.keys()) - flags.keys()]
    found += [f"{name} is listed and no parameter" for name in known.parameters - parameters.keys()]
    found += [f"{name} is a flag" for name in known.parameters & flags.keys()]
    for name in flags.keys() & parameters.keys():
        here, there = flags[name], parameters[name].default
        if name in known.defaults:
            if known.defaults[name] != (here, there):
                found.append(f"--{name} is {here!r} for {there!r}, and {known.defaults[name]} was meant")
        elif name == "folder" and there in (None, required):
            continue  # a command's results are always somewhere; Python may keep nothing
        elif there is required:
            if here is not None:
                found.append(f"--{name} is {here!r}, where Python has no default")
        elif str(here) != str(there):  # paths are text there
            found.append(f"--{name} is {here!r}, and {there!r} in Python")
    return sorted(found)


def flags_of(command: str) -> dict[str, Any]:
    return {flag.name: flag.default for flag in COMMANDS[command].params if flag.name != "help"}


def test_every_command_has_its_function():
    assert set(VERBS) == set(COMMANDS)


@pytest.mark.parametrize(("old", "new"), OLD_COMMANDS.items())
def test_an_old_name_is_the_same_command(old, new):
    assert old not in COMMANDS and new in COMMANDS
    assert inspect.unwrap(EVERY[old].callback) is inspect.unwrap(EVERY[new].callback)
    was, now = ([(flag.name, flag.opts, flag.default) for flag in EVERY[name].params] for name in (old, new))
    assert was == now


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_are_parameters_and_parameters_are_flags(command):
    """Same names and same defaults as in Python, in both directions, whatever is added on purpose."""
    assert not differences(flags_of(command), VERBS[command])


@pytest.mark.parametrize("command", [name for name in COMMANDS if flags_of(name)])
def test_a_changed_flag_is_noticed(command):
    """The comparison itself: a flag too many, one too few, or another default never passes."""
    flags, known = flags_of(command), VERBS[command]
    assert "--extra is no parameter" in differences({**flags, "extra": 1}, known)
    for name in flags:
        assert differences({key: value for key, value in flags.items() if key != name}, known), name
        assert differences({**flags, name: "another"}, known) or name in {"folder", *known.flags}, name


def test_options_are_described_one_by_one():
    """Each field of an options dataclass has an entry of its own in the docstring of the class that declares it."""
    for options in {
        f for known in VERBS.values() for f in known.functions if is_dataclass(f) and hasattr(f, "__mro__")
    }:
        described = "".join(kind.__doc__ or "" for kind in options.__mro__[:-1])  # type: ignore[attr-defined]
        for option in fields(options):
            assert not option.metadata or f"\n        {option.name}: " in described, f"{options.__name__}.{option.name}"


def test_every_command_that_computes_takes_a_device():
    without = {name for name in COMMANDS if "device" not in flags_of(name)}
    assert without == {"scan", "list-samplers", "about", "recipe", "doctor", "names"}


def test_a_misspelled_option_is_named():
    with pytest.raises(InputError, match=r"No option of sample named 'stepz'. Did you mean 'steps'"):
        sample.sample("emoji", "a red heart", stepz=3)


@pytest.mark.parametrize(("old", "new"), fastdiffusion._OLD.items())
def test_an_old_public_name_forwards_with_a_warning(old, new):
    with pytest.warns(DeprecationWarning, match=f"is now fastdiffusion.{new}"):
        assert getattr(fastdiffusion, old) is getattr(fastdiffusion, new)


def test_every_command_says_what_it_does():
    for name, command in COMMANDS.items():
        assert command.help, name
        assert all(getattr(flag, "help", None) for flag in command.params if flag.name != "help"), name


def test_the_hash_of_a_model_is_of_what_decides_its_images(monkeypatch, tmp_path):
    """One bit of one weight changes it, notes and tables do not; a run is hashed once, however many images it has."""
    net = nets.build({**presets.PRESETS["unet-tiny"], "in_channels": 1, "out_channels": 1})
    model = Model(Denoiser(net), (1, 8, 8))
    before = model.id
    assert replace(model, info={"note": "a"}).id == before
    hashed = []
    monkeypatch.setattr(models_model, "fingerprint", lambda *args: hashed.append(1) or before)
    model = replace(model)
    samples = sample.sample(model, n=3, steps=1)
    samples.save(tmp_path)
    assert len(hashed) == 1
    assert samples.recipe_of(2)["model"]["sha256"] == before
    with torch.no_grad():
        next(iter(net.parameters())).view(torch.int32).flatten()[0] ^= 1
    monkeypatch.undo()
    assert replace(model).id != before
