"""Commands that explain and show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Out, app


@app.command("list-samplers")
def list_samplers() -> None:
    """List the samplers and their use."""
    from ..samplers import SAMPLERS, about

    print(f"{'name':20} order  NFE  noise  use")
    for sampler in map(about, SAMPLERS):
        noise = "yes" if sampler.stochastic else "no"
        print(f"{sampler.name:20} {sampler.order:5}  {sampler.nfe:3}  {noise:5}  {sampler.use}")


@app.command()
def about(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A sampler, schedule, loss weighting, net, ...")
    ] = None,
) -> None:
    """Explain a name: equation, paper, code.

    Without a name, list what there is.
    """
    from .about import about as explain

    print(explain(name))


@app.command()
def recipe(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="PNG, WebP, JPEG, or with a NAME.json beside it.")],
) -> None:
    """Show how an image was made.

    What fastdiffusion wrote into it, or AUTOMATIC1111 or ComfyUI.
    """
    import json

    from ..io.images import read_recipe

    print(json.dumps(read_recipe(image), indent=2, ensure_ascii=False))


@app.command()
def demo(
    out: Out = Path("out/demo"),
    seconds: Annotated[float, typer.Option(help="Time to train.")] = 40.0,
    device: Device = None,
) -> None:
    """From nothing to measured images: a minute.

    Trains on the handwritten digits, samples, evaluates.
    """
    from .demo import demo as show

    show(out, seconds, device)


@app.command()
def doctor(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A folder in diffusers' layout, to be examined.")
    ] = None,
) -> None:
    """Say what works on this machine, or with a model.

    Versions, devices, data sets, fonts, extras. Of a model: whether it equals diffusers' own pipeline, which attention
    layers are seen, what prompts can do, how long an evaluation takes.
    """
    from .doctor import doctor as examine

    print(examine(model))
