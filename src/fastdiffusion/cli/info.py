"""Commands that explain and show."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .. import choices
from ..errors import InputError
from .command import command, offer
from .options import Device, Out, next_command

EXPLAINED = (
    *choices.SAMPLERS, *choices.SCHEDULES, *choices.SIGMA_DISTRIBUTIONS, *choices.LOSS_WEIGHTINGS, *choices.GUIDANCE,
    *choices.PYTHON_GUIDANCE, *choices.PARAMETERIZATIONS, *choices.NETS, *choices.OPTIMIZERS, *choices.DATASETS,
    *choices.AUGMENTS,
)  # fmt: skip
shown = partial(command, panel="Info", answers=True)


@shown(
    "names",
    examples=["fastdiffusion names burger", "fastdiffusion names flag of -n 50"],
)
def names(
    prompt: Annotated[list[str] | None, typer.Argument(metavar="WORD...", help="What to look for.")] = None,
    n: Annotated[int, typer.Option("-n", "--n", help="How many names to list.")] = 20,
) -> None:
    """Search the names of what the bundled model draws.

    First what the words mean, then names that share them, then what is spelled alike.
    """
    from ..prompts import reading

    table = reading.known_names()
    if not prompt:
        print(f"The model that ships draws {len(table.names):,} emoji by name. Search them: fastdiffusion names burger")
        return
    found = reading.names(" ".join(prompt), max(n, 1))
    if not found:
        raise InputError(
            f"No name like {' '.join(prompt)!r} among {len(table.names):,}. Try another word, e.g. burger."
        )
    print("\n".join(found))
    next_command(f"sample {shlex.quote(found[0])}")


@shown(
    "list-samplers",
    examples=["fastdiffusion list-samplers", "fastdiffusion about dpmpp_2m  # one of them, with its equation"],
)
def list_samplers() -> None:
    """List the samplers: order, evaluations a step, and use."""
    from ..samplers.registry import list_samplers as samplers

    print(f"{'name':20} order  NFE  noise  use")
    for sampler in samplers():
        noise = "yes" if sampler.stochastic else "no"
        print(f"{sampler.name:20} {sampler.order:5}  {sampler.nfe:3}  {noise:5}  {sampler.use}")


@shown(
    "about",
    examples=["fastdiffusion about dpmpp_2m", "fastdiffusion about  # all that can be asked for"],
)
def about(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A sampler, schedule, loss weighting, net, ... Without one, all are listed.",
            autocompletion=offer(EXPLAINED),
        ),
    ] = None,
) -> None:
    """Explain a name: its equation, paper and code."""
    from .about import about as explain

    print(explain(name))


@shown(
    "recipe",
    examples=["fastdiffusion recipe out/0000-a-red-heart.png", "fastdiffusion recipe from-another-program.png"],
)
def recipe(
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="A PNG, WebP or JPEG file, or any with a NAME.json beside it.")
    ],
) -> None:
    """Show how an image was made.

    As fastdiffusion wrote it into the file, or AUTOMATIC1111 or ComfyUI did; and under "provenance" what says that a
    program made it: the tag in the file, the invisible mark in its pixels.
    """
    import json

    from ..io.provenance import read_all

    print(json.dumps(read_all(image), indent=2, ensure_ascii=False))


@command("demo", panel="Info", examples=["fastdiffusion demo", "fastdiffusion demo --seconds 120 --out out/longer"])
def demo(
    out: Out = Path("out/demo"),
    seconds: Annotated[float, typer.Option(help="Time to train, in seconds.")] = 40.0,
    device: Device = None,
) -> None:
    """Go from nothing to measured images, in a minute.

    Draws with the bundled model; then trains on handwritten digits, samples, evaluates.
    """
    from .demo import demo as show

    show(out, seconds, device)


@shown(
    "doctor",
    examples=["fastdiffusion doctor", "fastdiffusion doctor sd15/ --json", "fastdiffusion doctor sd15/ --tune"],
    document=True,
)
def doctor(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A checkpoint of another program, to be examined.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Measure which settings suit it here; load then takes them.")
    ] = False,
) -> object:
    """Say what works on this machine, or with a checkpoint.

    Versions, devices, data sets, fonts, extras. Of a model: whether it equals diffusers' own pipeline, which attention
    layers are seen, what prompts can do, how long an evaluation takes, which settings suit it.
    """
    from .doctor import findings, text

    found = findings(model, tune)
    print(text(found))
    return found
