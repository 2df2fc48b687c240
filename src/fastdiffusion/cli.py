"""The command line: the library's verbs, in its words. A flag is the parameter of the Python function.

Nothing heavy is imported before a command runs, so that help costs no time.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from .errors import FastdiffusionError, InputError

app = typer.Typer(
    name="fastdiffusion",
    help="Train diffusion models, sample from them, measure what comes out.",
    epilog="Any command with --help tells its options. Errors: --debug shows where they come from.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="A model file, or the folder of its training run.")]
DataName = Annotated[str, typer.Argument(metavar="DATA", help="A folder, or digits, fashion-mnist, emoji, hf:NAME.")]
Size = Annotated[int | None, typer.Option(help="Side of the pictures in pixels.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where the results go.")]
Steps = Annotated[int, typer.Option(help="Denoiser calls per picture.")]
Seed = Annotated[int, typer.Option(help="Of picture 0; picture i has seed + i.")]
Scale = Annotated[float, typer.Option(help="Classifier-free guidance; 1 is off.")]
Sampler = Annotated[str | None, typer.Option(help="See: fastdiffusion samplers. By default the model's own.")]
Schedule = Annotated[str | None, typer.Option(help="Of the noise levels: exponential, karras, ...")]
BatchSize = Annotated[int, typer.Option(help="Pictures at once.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps; by default the best there is.")]


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code: 0, 2 for an error that the person can mend, 130 for Ctrl-C."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    for stream in (sys.stdout, sys.stderr):  # names may hold signs that this terminal cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        app([word for word in given if word != "--debug"], prog_name="fastdiffusion")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 130
    except FastdiffusionError as error:
        if debug:
            traceback.print_exc()
        print(f"fastdiffusion: {error}", file=sys.stderr)
        return 2
    return 0


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
) -> None:
    """What goes before any command."""


@app.command()
def train(
    data: DataName,
    net: Annotated[
        str, typer.Option(help="unet-tiny, unet-small, unet-base, dit-tiny, dit-small, dit-base.")
    ] = "unet-small",
    size: Size = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time to train, of all sessions together; 10 by default.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps to train, instead of minutes.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what the folder holds and start anew.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--folder", "--out", "-o", help="Where the run lives; by default runs/NAME.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures per step, over all processes.")] = 64,
    accumulate: Annotated[int, typer.Option(help="Parts that a batch is computed in, to save memory.")] = 1,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate; by default the optimizer's.")] = None,
    optimizer: Annotated[str, typer.Option(help="muon, adamw, schedule_free, or auto.")] = "auto",
    augment: Annotated[str, typer.Option(help="Names with commas, e.g. mirror,crop; see: about.")] = "",
    augment_p: Annotated[float, typer.Option(help="Probability of each.")] = 0.12,
    dropout: Annotated[float, typer.Option(help="Of the net.")] = 0.0,
    label_dropout: Annotated[float, typer.Option(help="Part trained without a label, for guidance.")] = 0.1,
    parameterization: Annotated[str, typer.Option(help="edm, v, noise, score, x0, flow.")] = "edm",
    density: Annotated[str, typer.Option(help="Noise levels to train at: lognormal, uniform, ...")] = "lognormal",
    weight: Annotated[str, typer.Option(help="Of the loss: edm, min_snr, p2, ...")] = "edm",
    self_condition: Annotated[bool, typer.Option(help="Also tell the net its own estimate.")] = False,
    holdout: Annotated[float, typer.Option(help="Part of the data kept for the validation loss.")] = 0.05,
    precision: Annotated[str, typer.Option(help="float32, bfloat16, or auto: measured.")] = "auto",
    procs: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    shard: Annotated[bool, typer.Option(help="Divide the weights among the processes.")] = False,
    track: Annotated[str | None, typer.Option(help="tensorboard, trackio or wandb, besides report.html.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU.")] = False,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
) -> None:
    """Train a model on pictures; again, to go on.

    The same command goes on where the last one stopped, bit for bit.
    """
    given = dict(locals())
    if procs > 1:
        from .distributed import launch, rank_and_world

        if rank_and_world()[1] == 1:
            raise typer.Exit(launch(procs, ["-m", "fastdiffusion", *sys.argv[1:]]))
    from . import data as datasets
    from .images import safe_name
    from .learner import Learner

    pictures = datasets.load(data, size)
    if pictures.report is not None:
        print(pictures.report, file=sys.stderr)
    budget = {key: given.pop(key) for key in ("minutes", "steps", "fresh")}
    keywords = {key: value for key, value in given.items() if key not in ("data", "size", "procs", "folder")}
    keywords["augment"] = tuple(name.strip() for name in augment.split(",") if name.strip())
    folder = folder or Path("runs") / safe_name(pictures.name)
    Learner(pictures, folder=folder, **keywords).fit(**budget)
    print(f"Next: fastdiffusion sample {folder} -n 16 --out out")


@app.command()
def sample(
    model: ModelPath,
    n: Annotated[int, typer.Option("-n", "--n", help="How many pictures.")] = 16,
    classes: Annotated[str | None, typer.Option(help="Names or indices, e.g. 3,7; all in turn by default.")] = None,
    steps: Steps = 12,
    seed: Seed = 0,
    scale: Scale = 1.0,
    sampler: Sampler = None,
    schedule: Schedule = None,
    variation_seed: Annotated[int, typer.Option(help="Turn the noise towards this seed's.")] = 0,
    variation_strength: Annotated[float, typer.Option(help="How far, 0 to 1.")] = 0.0,
    size: Size = None,
    batch_size: BatchSize = 16,
    out: Out = Path("out"),
    metadata: Annotated[bool, typer.Option(help="Keep the recipe in each PNG.")] = True,
    device: Device = None,
) -> None:
    """Make pictures that carry their recipe.

    One PNG each, and grid.png.
    """
    given = {key: value for key, value in locals().items() if key not in ("out", "metadata")}
    from .tasks import generation

    made = generation.sample(**given)
    paths = made.save(out, metadata=metadata)
    made.save_grid(out / "grid.png", metadata=metadata, labels=True)
    print(f"{len(paths)} pictures in {out}, from {paths[0].name} on, and grid.png.")
    if metadata:
        print(f"Next: fastdiffusion again {paths[0]}")


@app.command()
def again(
    picture: Annotated[Path, typer.Argument(metavar="PNG", help="A picture that carries its recipe.")],
    model: Annotated[Path | None, typer.Option(help="The model; by default looked for beside the picture.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="By default NAME-again.png beside it.")] = None,
) -> None:
    """Make a picture anew from its recipe.

    On the same machine it has the same bytes; says so if not.
    """
    from .tasks import generation

    copy = out or picture.with_name(f"{picture.stem}-again.png")
    generation.remake(picture, copy, model)
    same = copy.read_bytes() == picture.read_bytes()
    note = "the same bytes" if same else "not the same bytes: another machine, or another version of torch"
    print(f"{copy}: {note}.")


@app.command()
def evaluate(
    model: ModelPath,
    data: DataName,
    n: Annotated[int, typer.Option("-n", "--n", help="Pictures on each side.")] = 1000,
    steps: Steps = 12,
    seed: Seed = 0,
    scale: Scale = 1.0,
    sampler: Sampler = None,
    schedule: Schedule = None,
    batch_size: BatchSize = 64,
    rounds: Annotated[int, typer.Option(help="Of the bootstrap.")] = 100,
    out: Out = Path("out/evaluation"),
    device: Device = None,
) -> None:
    """Measure a model against its data.

    Distances, precision and recall, coverage, and whether it copies. The first time, a classifier is trained on the
    data to measure with.
    """
    given = {key: value for key, value in locals().items() if key != "out"}
    from .tasks import evaluation

    report = evaluation.evaluate(**given)
    report.save(out)
    print(f"{report}\nIn {out}: report.json, samples.png, and neighbors.png, the samples nearest to a real picture.")


@app.command()
def scan(
    path: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of pictures.")],
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 64,
    aspect: Annotated[str, typer.Option(help="bucket keeps shapes, crop cuts squares, pad adds white.")] = "bucket",
    mode: Annotated[str, typer.Option(help="auto, L, RGB or RGBA.")] = "auto",
    labels: Annotated[str, typer.Option(help="auto, folders, table or none.")] = "auto",
) -> None:
    """Look at a folder before training.

    Sizes, classes, captions, copies, and what cannot be read and why.
    """
    from .data.folders import scan as look

    print(look(path, size, aspect=aspect, mode=mode, labels=labels))


@app.command()
def fit(
    model: ModelPath,
    steps: Annotated[str, typer.Option(help="For how many calls: one number, or several with commas.")] = "5,8,12",
    seconds: Annotated[float, typer.Option(help="Time for each, roughly.")] = 60.0,
    polish: Annotated[bool, typer.Option(help="Spend the time left on turning all numbers together.")] = True,
    noises: Annotated[int, typer.Option(help="How many noises to fit to.")] = 64,
    scale: Scale = 1.0,
    seed: Annotated[int, typer.Option(help="Of the noises.")] = 0,
    device: Device = None,
) -> None:
    """Fit samplers to a model, into its file.

    The same pictures in fewer calls. Afterwards --steps 8 takes the table that was fitted for 8.
    """
    try:
        counts = [int(count) for count in steps.split(",")]
    except ValueError:
        raise InputError(f"steps are whole numbers with commas, got {steps!r}. Example: --steps 5,8,12") from None
    from .fitting import fit_sampler
    from .models import FILE, save
    from .tasks.generation import loaded

    ready = loaded(model, device)
    cond = ready.cond(range(len(ready.classes))) if ready.classes else None
    for count in counts:
        table = fit_sampler(
            ready, count, cond=cond, noises=noises, seconds=seconds, polish=polish, scale=scale, seed=seed
        )
        ready = ready.with_table(count, table)
        error, textbook = table.info["error"], table.info["textbook_error"]
        print(f"{count} calls: error {error:.4f}, the best textbook table has {textbook:.4f}", flush=True)
        save(ready, model / FILE if model.is_dir() else model)  # each as it comes: Ctrl-C keeps what is done


@app.command()
def study(
    model: ModelPath,
    vary: Annotated[list[str], typer.Option(help="A knob and its values, e.g. scale=1,3,7; may be repeated.")],
    n: Annotated[int, typer.Option("-n", "--n", help="Pictures in each cell.")] = 4,
    steps: Steps = 12,
    seed: Seed = 0,
    scale: Scale = 1.0,
    out: Out = Path("out/study"),
) -> None:
    """Sample every combination of some knobs.

    Writes all pictures, a labelled sheet, and which knob explains how much of the differences. A cell equals the run
    of fastdiffusion sample with its settings.
    """
    from .tasks import study as studies

    fixed = {"steps": steps, "seed": seed, "scale": scale}
    names = {studies.knob(text)[0] for text in vary}
    done = studies.study(model, vary, n, **{key: value for key, value in fixed.items() if key not in names})
    done.save(out)
    for name, part in done.explained().items():
        print(f"{name:14} explains {part:5.1%} of the differences")
    print(f"{out / 'study.png'}: {len(done.cells)} cells of {n} pictures.")


@app.command("train-classifier")
def train_classifier(
    data: DataName,
    steps: Annotated[int, typer.Option(help="Of training.")] = 1000,
    net: Annotated[str, typer.Option(help="A U-Net, of which half is taken.")] = "unet-tiny",
    size: Size = None,
    folder: Annotated[Path, typer.Option("--folder", "-o", help="Where it goes; again, to go on.")] = Path(
        "runs/classifier"
    ),
    batch_size: Annotated[int, typer.Option(help="Pictures a step.")] = 128,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    dropout: Annotated[float, typer.Option(help="Against memorizing.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
) -> None:
    """Train a classifier of noisy pictures, for guidance.

    fastdiffusion.guidance.classifier takes it: guided = classifier(model.denoise, net.log_prob, scale).
    """
    given = {key: value for key, value in locals().items() if key not in ("data", "size")}
    from . import data as datasets
    from .tasks import classifiers

    pictures = datasets.load(data, size)
    made = classifiers.train_classifier(pictures, **given)
    classifiers.save(made, folder / "classifier.safetensors")
    for sigma, right in classifiers.accuracy(made, pictures).items():
        print(f"sigma {sigma:5.2f}: {right:.1%} of training pictures told rightly")
    print(f"{folder / 'classifier.safetensors'} is there.")


@app.command()
def export(
    model: ModelPath,
    folder: Annotated[Path, typer.Option("--folder", "--out", "-o", help="Where it goes.")] = Path("out/export"),
    name: Annotated[str | None, typer.Option(help="Title of the card.")] = None,
    license: Annotated[str | None, typer.Option(help="Of the model, e.g. apache-2.0.")] = None,
    data_license: Annotated[str | None, typer.Option(help="Of the pictures it was trained on.")] = None,
    n: Annotated[int, typer.Option("-n", "--n", help="Samples in the preview.")] = 32,
    steps: Steps = 12,
    scale: Scale = 1.0,
    seed: Seed = 0,
) -> None:
    """Write a folder to share: model, card, preview.

    The card says what the run measured. The folder can be pushed to a model hub as it is.
    """
    given = dict(locals())
    from .tasks.sharing import export as write

    print(f"{write(**given)}: model.safetensors, README.md, config.json, preview.png.")


@app.command()
def samplers() -> None:
    """List the samplers and their use."""
    from .samplers import SAMPLERS, about

    print(f"{'name':20} order  calls  noise  use")
    for known in map(about, SAMPLERS):
        print(f"{known.name:20} {known.order:5}  {known.calls:5}  {'yes' if known.stochastic else 'no':5}  {known.use}")


@app.command()
def about(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A sampler, schedule, weight, net, ...")] = None,
) -> None:
    """Explain a name: equation, paper, code.

    Without a name, list what there is.
    """
    from .tasks.about import about as explain

    print(explain(name))


@app.command()
def demo(
    out: Out = Path("out/demo"),
    seconds: Annotated[float, typer.Option(help="Time to train.")] = 40.0,
) -> None:
    """From nothing to measured pictures: a minute.

    Trains on the handwritten digits, samples, evaluates.
    """
    from .tasks.demo import demo as show

    show(out, seconds)


@app.command()
def doctor() -> None:
    """Say what works on this machine.

    Versions, devices, data sets, fonts, extras.
    """
    from .tasks.doctor import doctor as examine

    print(examine())
