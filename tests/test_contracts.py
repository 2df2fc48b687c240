"""What a user may rely on: names, flags, and that nothing is imported before it is needed."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
import typer

import fastdiffusion
from fastdiffusion import (
    choices,
    cli,
    corruptions,
    data,
    denoisers,
    device,
    guidance,
    losses,
    nets,
    samplers,
    schedules,
)
from fastdiffusion.adapters import engines, exports, small
from fastdiffusion.adapters import loading as adapters_loading
from fastdiffusion.adapters.lora import writing
from fastdiffusion.cli import about, demo, doctor
from fastdiffusion.cli.app import ELSEWHERE, OLD_COMMANDS, PANELS, SHARED
from fastdiffusion.cli.command import OTHER
from fastdiffusion.data import ImageFolder, augment, folders
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.errors import InputError
from fastdiffusion.guidance import posterior
from fastdiffusion.io import provenance
from fastdiffusion.models import Model, registry
from fastdiffusion.models import model as models_model
from fastdiffusion.nets import clip as net_clip
from fastdiffusion.nets import presets, seamless
from fastdiffusion.prompts import reading
from fastdiffusion.samplers import processes
from fastdiffusion.tasks import export, fitting, training, variations
from fastdiffusion.tasks.attribution.explain import explain
from fastdiffusion.tasks.attribution.options import ExplainOptions
from fastdiffusion.tasks.autoencoding import analysis, token_prior, train
from fastdiffusion.tasks.autoencoding import options as autoencoding
from fastdiffusion.tasks.classification import options as classification
from fastdiffusion.tasks.classification import train as classifiers
from fastdiffusion.tasks.editing import edit, inversions, methods
from fastdiffusion.tasks.editing.options import EditOptions
from fastdiffusion.tasks.evaluation import evaluate, study
from fastdiffusion.tasks.evaluation.options import EvaluateOptions
from fastdiffusion.tasks.generation import guidance_spec, recipe, rng, sample, samples
from fastdiffusion.tasks.generation.options import ExportOptions, SampleOptions, StudyOptions, VariationsOptions
from fastdiffusion.tasks.personalization import adapting, finetune, lora, personalize
from fastdiffusion.tasks.personalization import images as personalization_images
from fastdiffusion.tasks.personalization.options import FinetuneOptions, LoraOptions, PersonalizeOptions
from fastdiffusion.tasks.rearrangement import rearrange
from fastdiffusion.tasks.rearrangement.options import RearrangeOptions
from fastdiffusion.tasks.restoration import cold_diffusion, method, restore, watermarks
from fastdiffusion.tasks.restoration.options import RemoveWatermarkOptions, RestoreOptions, TrainColdOptions
from fastdiffusion.tasks.stylization import network, stylize
from fastdiffusion.tasks.stylization.options import StylizeOptions, TrainStyleOptions
from fastdiffusion.tasks.text_image import caption_mean, clip, multilingual, scoring
from fastdiffusion.tasks.text_image import options as text_image
from fastdiffusion.tasks.translation import paired
from fastdiffusion.tasks.translation.options import TrainTranslationOptions, TranslateOptions
from fastdiffusion.training import optimizers, trainer
from fastdiffusion.training.config import TrainingConfig
from fastdiffusion.training.options import Budget

HEAVY = ("torch", "numpy", "PIL", "sklearn", "accelerate", "diffusers", "transformers", "gradio", "matplotlib")
required = inspect.Parameter.empty
EVERY = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
COMMANDS = {name: command for name, command in EVERY.items() if not command.hidden}


def imported_by(code: str) -> tuple[set[str], float, str]:
    """Which packages a fresh interpreter loads, the CPU seconds it took, and what it prints."""
    report = "import json, sys, time; print(json.dumps([list(sys.modules), time.process_time()]), file=sys.stderr)"
    program = f"try:\n    {code}\nexcept SystemExit: pass\n{report}"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules, seconds = json.loads(run.stderr.splitlines()[-1])
    return {name.partition(".")[0] for name in modules}, seconds, run.stdout


def test_exported_names():
    for name in fastdiffusion.__all__:
        assert inspect.getdoc(getattr(fastdiffusion, name)), name
    assert dir(fastdiffusion) == sorted([*fastdiffusion.__all__, *fastdiffusion._MODULES])  # and no import of its own
    assert all(inspect.ismodule(getattr(fastdiffusion, name)) for name in fastdiffusion._MODULES)
    with pytest.raises(AttributeError, match="no attribute 'sampel'"):
        _ = fastdiffusion.sampel  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_names():
    """The imports for editors are those that are made, each exported (NAME as NAME)."""
    tree = ast.parse(Path(fastdiffusion.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {a.asname: (i.module, a.name) for i in block.body if isinstance(i, ast.ImportFrom) for a in i.names}
    assert seen == fastdiffusion._SOURCE


def test_every_command_is_a_function():
    """``fastdiffusion train-clip`` is ``fastdiffusion.train_clip``."""
    functions = {name.replace("-", "_") for name in COMMANDS}
    assert functions <= set(fastdiffusion.__all__)
    assert all(callable(getattr(fastdiffusion, name)) for name in functions)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name.startswith("train") or name == "add-language"])
def test_every_training_verb_returns_path_model_and_report(command):
    """``TrainingResult[what it trained]``; that it is one at run time, jaxtyping's checks of every test see to."""
    returned = inspect.signature(getattr(fastdiffusion, command.replace("-", "_"))).return_annotation
    assert str(returned).startswith("TrainingResult[")


def test_a_result_names_its_folder_and_its_report(tmp_path):
    made = fastdiffusion.TrainingResult.of("net", tmp_path)
    assert (made.path, made.model, made.report) == (tmp_path, "net", None)
    (tmp_path / "report.html").write_text("")
    assert fastdiffusion.TrainingResult.of("net", str(tmp_path)).report == tmp_path / "report.html"
    assert fastdiffusion.TrainingResult.of("net", None).path is None


def test_the_promised_names():
    """Taking one of these away breaks programs: it needs a new major version."""
    assert set(fastdiffusion.__all__) >= {
        "FastdiffusionError", "ImageFolder", "Learner", "Model", "Samples", "evaluate", "load", "sample",
        "reproduce", "sample_steps", "save",
    }  # fmt: skip


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_nothing_heavy(command):
    """All helps in one process each; the time is printed and not judged (a busy machine is not a bug)."""
    loaded, seconds, _ = imported_by(f"from fastdiffusion.cli import main; main({[*command.split(), '--help']})")
    assert not loaded & {*HEAVY, "rich"}
    print(f"{command or 'fastdiffusion'} --help: {seconds:.2f} CPU s")


def test_import_brings_nothing_heavy():
    loaded, *_ = imported_by("import fastdiffusion")
    assert not loaded & set(HEAVY)
    loaded, *_ = imported_by("from fastdiffusion import sample, evaluate, Model, load, ImageFolder, Samples")
    assert "torch" in loaded
    assert not loaded & {"accelerate", "diffusers", "transformers", "gradio", "matplotlib", "datasets"}


class Verb(NamedTuple):
    """What a command calls, and where the two differ on purpose; all else is derived from both signatures.

    Attributes:
        functions: Whose parameters the flags are: of functions, and the fields of options dataclasses.
        flags: That only the command line has: where results go and in which form, and how data are named and opened.
        parameters: That only Python has: what cannot be typed; of options dataclasses the fields that say so.
        defaults: Flags whose default is written in another way, or chosen by the command: the default on the command
            line, and what it stands for in Python.
    """

    functions: tuple[Callable[..., Any], ...]
    flags: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()
    defaults: Mapping[str, tuple[Any, Any]] = MappingProxyType({})


def verb(*functions: Callable[..., Any], flags: str = "", parameters: str = "", **defaults: tuple[Any, Any]) -> Verb:
    options = [f for kind in functions if is_dataclass(kind) for f in fields(kind) if f.metadata]
    untyped = {f.name for f in options if f.metadata["flag"].python_only}
    return Verb(functions, frozenset(flags.split()), frozenset(parameters.split()) | untyped, defaults)


VERBS = {
    "train": verb(
        training.train, TrainingConfig, Budget, flags="cpu"),
    "scan": verb(ImageFolder),
    "fit": verb(fitting.fit, fitting.FitOptions, flags="out"),
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
    "rearrange": verb(rearrange.rearrange, RearrangeOptions, flags="out metadata"),
    "explain": verb(explain, ExplainOptions, flags="out metadata"),
    "edit": verb(edit.edit, EditOptions, flags="what out compare metadata", parameters="image prompt"),
    "personalize": verb(personalize.personalize, PersonalizeOptions),
    "finetune": verb(finetune.finetune, FinetuneOptions),
    "lora": verb(lora.lora, LoraOptions),
    "train-style": verb(network.train_style, TrainStyleOptions),
    "train-translation": verb(paired.train_translation, TrainTranslationOptions),
    "translate": verb(paired.translate, TranslateOptions, flags="out metadata"),
    "train-cold": verb(cold_diffusion.train_cold, TrainColdOptions),
    "list-samplers": verb(fastdiffusion.list_samplers),
    "names": verb(reading.names, flags="prompt", parameters="text"),
    "about": verb(about.about),
    "recipe": verb(provenance.read_all, flags="image", parameters="path key"),
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
    own = [flag for flag in COMMANDS[command].params if flag.name not in SHARED and not flag.name.endswith(OTHER)]
    return {flag.name: flag.default for flag in own}


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


SENTENCE = re.compile(r"[A-Z].*[.]")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    """A panel; a first sentence that fits beside the name; a sentence for each flag; the flags that all share."""
    known = COMMANDS[command]
    assert known.rich_help_panel in PANELS
    first = known.help.split("\n")[0]
    assert SENTENCE.fullmatch(first) and len(first) <= 72
    for flag in known.params:
        assert SENTENCE.fullmatch(flag.help), f"--{flag.name}: {flag.help}"
    assert {"quiet", "help"} <= {flag.name for flag in known.get_params(typer.Context(known))}
    makes = known.rich_help_panel != "Info" and command not in ("scan", "clip-score", "search")
    assert ("config" in {flag.name for flag in known.params}) == (makes or command == "demo")


EXAMPLES = [(name, line) for name, command in COMMANDS.items() for line in command.callback.examples]


def test_every_command_ends_with_two_or_three_examples(capsys):
    for name, command in COMMANDS.items():
        examples = command.callback.examples
        assert 2 <= len(examples) <= 3, name
        assert cli.main([name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert shown.rstrip().endswith("\n".join(f"  {line}" for line in examples)), name  # whole lines, to be copied


@pytest.mark.parametrize(("command", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_an_example_parses(command, line, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    program, name, *words = shlex.split(line, comments=True)
    assert program == "fastdiffusion" and COMMANDS[name] is not None
    COMMANDS[name].make_context(name, words)
    assert name == command or command == "list-samplers"


CHOICES = {
    choices.SAMPLERS: samplers.SAMPLERS, choices.SCHEDULES: schedules.SCHEDULES,
    choices.GUIDANCE: guidance_spec.WRITTEN, choices.PYTHON_GUIDANCE: {*guidance.GUIDANCE} - {*guidance_spec.WRITTEN},
    choices.POSTERIORS: posterior.INVERSE, choices.PARAMETERIZATIONS: denoisers.PARAMETERIZATIONS,
    choices.SIGMA_DISTRIBUTIONS: schedules.SIGMA_DISTRIBUTIONS, choices.LOSS_WEIGHTINGS: losses.LOSS_WEIGHTINGS,
    choices.NETS: presets.PRESETS, choices.OPTIMIZERS: optimizers.OPTIMIZERS, choices.AUGMENTS: augment.AUGMENTS,
    choices.UNETS: [name for name, spec in presets.PRESETS.items() if spec["name"] == "unet"],
    choices.STYLIZATIONS: stylize.METHODS,
    choices.CLASSIFIERS: ["mlp", *choices.UNETS],
    choices.LOAD_PRECISIONS: {*adapters_loading.PRECISIONS, *engines.PRECISIONS},
    choices.EXPORTS: {"fastdiffusion", "diffusers", *exports.SUFFIXES},
    choices.ENGINES: ("torch", "openvino"), choices.PREDICTIONS: {"auto", *adapters_loading.PREDICTIONS},
    choices.TRACKERS: trainer.TRACKERS, choices.PRECISIONS: device.PRECISIONS,
    choices.DATASETS: {*data.DATASETS} - {"emoji-polyglot"}, choices.ASPECTS: folders.ASPECTS,
    choices.CHANNELS: folders.CHANNELS, choices.LABELS: folders.LABELS, choices.MODELS: registry.SHIPPED,
    choices.FORMATS: samples.FORMATS, choices.CORRUPTIONS: corruptions.CORRUPTIONS, choices.UNDOES: method.UNDOES,
    choices.RESTORATIONS: method.METHODS, choices.ANSWERS: method.ANSWERS, choices.PROCESSES: processes.PROCESSES,
    choices.TRANSLATIONS: paired.METHODS, choices.AUTOENCODERS: train.KINDS, choices.CLIP_SIZES: clip.SIZES,
    choices.CLIP_LOSSES: net_clip.LOSSES, choices.RNGS: ["own", *rng.THEIRS],
    choices.EDITS: {"auto", "diffedit", "p2p", *inversions.METHODS, *methods.WAYS},
    choices.MAPS: ["auto", "attention", "occlusion"], choices.SEAMLESS: seamless.AXES,
    choices.SMALL_NETS: small.PIPELINES, choices.PERSONALIZATIONS: adapting.RATES,
    choices.SUBJECTS: personalization_images.TEMPLATES, choices.LORA_KEYS: writing.FORMATS,
}  # fmt: skip


def test_choices_are_the_registries():
    """What help and completion offer is what the library knows, and no list is forgotten here."""
    for listed, known in CHOICES.items():
        assert set(listed) == set(known) and len(listed) == len(set(listed))
    lists = {name: value for name, value in vars(choices).items() if name.isupper()}
    assert {name for name, value in lists.items() if value not in CHOICES} == {
        "DEVICES", "UPSCALES", "FINETUNINGS", "LORA_ACTIONS",
    }  # fmt: skip


def test_every_choice_is_accepted_by_its_verb_and_completed_by_the_shell():
    """Wherever a flag has choices, its default is one of them, the help names them, and the shell offers them."""
    found = 0
    for name, command in COMMANDS.items():
        chosen = [f for kind in VERBS[name].functions if is_dataclass(kind) for f in fields(kind) if f.metadata]
        flags = {flag.name: flag for flag in command.params}
        for f in chosen:
            known = f.metadata["flag"]
            if not known.choices or f.name not in flags:
                continue
            found += 1
            assert isinstance(f.default, str) is False or f.default in (*known.choices, "", "blur 4"), (name, f.name)
            assert all(choice in flags[f.name].help for choice in known.choices)
            offered = flags[f.name].shell_complete(typer.Context(command), known.choices[0][:2])
            assert known.choices[0] in [item.value for item in offered]
    assert found > 60


@pytest.mark.parametrize(("shell", "words", "offered"), [
    ("bash", "fastdiffusion rest", "restore"),
    ("zsh", "fastdiffusion sample emoji heart --sampler dpmpp_2m_", "dpmpp_2m_sde"),
    ("fish", "fastdiffusion train fash", "fashion-mnist"),
])  # fmt: skip
def test_completion_answers_without_torch(shell, words, offered):
    """What a shell runs at the tabulator key."""
    variables = {
        "_FASTDIFFUSION_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": words, "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1), "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }  # fmt: skip
    program = f"import os; os.environ.update({variables!r})\n    from fastdiffusion.cli import main; main([])"
    loaded, _, printed = imported_by(program)
    assert offered in printed
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize(("typed", "says"), [
    (["colorise", "x.jpg"], "restore IMAGE --corruption colorize"),
    (["upscal", "x.jpg"], "restore IMAGE --corruption upscale"),
    (["txt2img"], "fastdiffusion sample"),
    (["smaple", "x"], "fastdiffusion sample"),
    (["train_clips", "x"], "fastdiffusion train-clip"),
    (["dpmpp2m"], "sample MODEL --sampler dpmpp_2m"),
    (["a red heart"], "fastdiffusion sample 'a red heart'"),
    (["sample", "emoji", "--stepz", "3"], "Did you mean '--steps'"),
    (["sample", "emoji", "--sampler", "dpmpp2mm"], "Did you mean 'dpmpp_2m'"),
    (["qqqq"], "All of them: fastdiffusion --help"),
])  # fmt: skip
def test_a_wrong_name_is_answered_from_all_that_can_be_typed(typed, says, capsys):
    assert cli.main(typed) == 2
    out, err = capsys.readouterr()
    assert says in err and not out


def test_what_other_programs_call_a_verb_leads_to_one():
    assert not set(ELSEWHERE) & set(EVERY)
    assert all(line.split()[0] in {*COMMANDS, "--version"} for line in ELSEWHERE.values())


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
