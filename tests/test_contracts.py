"""What a user may rely on: names, flags, and that nothing is imported before it is needed."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import time

import pytest
import typer

import fastdiffusion
from fastdiffusion import cli, learner
from fastdiffusion.data import ImageFolder
from fastdiffusion.fitting import fit_sampler
from fastdiffusion.tasks import (
    autoencoders,
    classifiers,
    clip,
    codes,
    cold,
    demo,
    drafts,
    evaluation,
    generation,
    latent_variables,
    restoration,
    sharing,
    study,
    stylization,
    translation,
    watermarks,
)

HEAVY = ("torch", "numpy", "PIL", "sklearn", "accelerate", "diffusers", "transformers", "gradio", "matplotlib")
COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


def imported_by(code: str) -> tuple[set[str], float]:
    """Which packages a fresh interpreter loads, and the CPU seconds it took."""
    report = "import json, sys, time; print(json.dumps([list(sys.modules), time.process_time()]), file=sys.stderr)"
    program = f"try:\n    {code}\nexcept SystemExit: pass\n{report}"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules, seconds = json.loads(run.stderr.splitlines()[-1])
    return {name.partition(".")[0] for name in modules}, seconds


def test_exported_names():
    assert fastdiffusion.__all__ == sorted(fastdiffusion._ROOM_OF)
    for name in fastdiffusion.__all__:
        assert inspect.getdoc(getattr(fastdiffusion, name)), name
        assert name in dir(fastdiffusion)
    with pytest.raises(AttributeError, match="no attribute 'sampel'"):
        _ = fastdiffusion.sampel  # type: ignore[attr-defined]


def test_the_promised_names():
    """Taking one of these away breaks programs: it needs a new major version."""
    assert set(fastdiffusion.__all__) >= {
        "FastdiffusionError", "ImageFolder", "Learner", "Model", "Samples", "again", "evaluate", "load", "sample",
        "sample_steps", "save",
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


FLAGS = {  # command -> the function whose parameters its flags are, and the flags that only the command line has
    "train": ([learner.Learner, learner.Learner.fit, ImageFolder], {"procs", "given", "aspect"}),
    "sample": ([generation.sample], {"out", "format", "metadata", "sidecar"}),
    "again": ([generation.again], {"out"}),
    "evaluate": ([evaluation.evaluate], {"out"}),
    "restore": ([restoration.restore], {"out", "compare", "metadata"}),
    "unmark": ([watermarks.unmark], {"out"}),
    "scan": ([ImageFolder], set()),
    "fit": ([fit_sampler], {"device", "prompt"}),
    "demo": ([demo.demo], set()),
    "study": ([generation.sample, study.study], {"out"}),
    "export": ([sharing.export], set()),
    "train-autoencoder": ([autoencoders.train_autoencoder], {"aspect"}),
    "codec": ([latent_variables.describe], {"file", "size", "aspect", "holdout", "out"}),
    "train-codes": ([codes.train_codes], {"aspect"}),
    "sample-codes": ([codes.sample_codes], {"out"}),
    "train-classifier": ([classifiers.train_classifier, ImageFolder], set()),
    "stylize": ([stylization.stylize], {"out"}),
    "train-style": ([stylization.train_style], set()),
    "translate": ([translation.translate], {"out"}),
    "train-translation": ([translation.train_translation], set()),
    "train-cold": ([cold.train_cold], set()),
    "train-clip": ([clip.train_clip], {"aspect"}),
    "train-draft": ([drafts.train_draft], {"size", "aspect"}),
    "score": ([clip.score], set()),
    "search": ([clip.search], set()),
}


@pytest.mark.parametrize("command", FLAGS)
def test_flags_are_parameters(command):
    """Same names and same defaults as in Python, whatever else the command line adds."""
    functions, extra = FLAGS[command]
    parameters = {name: p for f in functions for name, p in reversed(inspect.signature(f).parameters.items())}
    renamed = {("demo", "out"): "folder"}
    other = {
        ("train", "size"),
        ("train", "net"),
        ("fit", "steps"),
        ("train", "augment"),
        ("train-classifier", "size"),
        ("train-classifier", "folder"),
        ("train-autoencoder", "folder"),
        ("train-codes", "folder"),
        ("train-clip", "folder"),
        ("train-draft", "folder"),
        ("train-style", "folder"),
        ("train-translation", "folder"),
        ("train-cold", "folder"),
        ("sample", "model"),
    }  # None: the data's own, or the usual net; lists as text; a word that may be the prompt instead
    for flag in COMMANDS[command].params:
        name = renamed.get((command, flag.name), flag.name)
        if name in extra or name == "help":
            continue
        assert name in parameters, f"{command} --{name} is no parameter"
        default = parameters[name].default
        if default is not inspect.Parameter.empty and (command, name) not in other:
            assert str(flag.default) == str(default), f"{command} --{name}"


@pytest.mark.parametrize("command", ["sample", "evaluate", "fit", "demo", "export"])
def test_parameters_are_flags(command):
    """Every parameter of a verb can be given on the command line."""
    flags = {flag.name for flag in COMMANDS[command].params} | {"folder"}
    left = set(inspect.signature(FLAGS[command][0][0]).parameters) - flags
    assert left <= {"features", "shape", "sigma_max", "sigma_min", "cond"}, left


def test_every_command_says_what_it_does():
    for name, command in COMMANDS.items():
        assert command.help, name
        assert all(getattr(flag, "help", None) for flag in command.params if flag.name != "help"), name


def test_sampling_overhead_of_the_recipe(tmp_path):
    """Printed only: what hashing a model and writing a recipe cost beside the sampling itself."""
    from fastdiffusion import nets
    from fastdiffusion.denoisers import Denoiser
    from fastdiffusion.models import Model

    net = nets.build({**nets.PRESETS["unet-tiny"], "in_channels": 1, "out_channels": 1})
    begun = time.perf_counter()
    generation.model_hash(Model(Denoiser(net), (1, 8, 8)))
    print(f"model_hash: {1000 * (time.perf_counter() - begun):.1f} ms")
