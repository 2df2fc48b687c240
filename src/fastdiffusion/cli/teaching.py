"""Commands that use and extend what a model of words understands: other languages, and pictures."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .options import (
    LR,
    Aspect,
    BatchSize,
    DataName,
    Device,
    Fresh,
    Minutes,
    Out,
    OwnScale,
    Seed,
    SeedOfAll,
    Size,
    Steps,
    app,
    next_command,
    pictures,
    unfinished,
)


@app.command()
def vary(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="What to draw anew.")],
    words: Annotated[str, typer.Argument(metavar="[WORDS]", help="Said along with it.")] = "",
    n: Annotated[int, typer.Option("-n", "--n", help="How many pictures.")] = 16,
    model: Annotated[str, typer.Option(help="emoji, or a model that shares its words.")] = "emoji",
    strength: Annotated[
        float, typer.Option(help="How far from the picture: 1 keeps what it shows, less its layout too, 0 all.")
    ] = 1.0,
    temperature: Annotated[float, typer.Option(help="How far afield: 0 is the nearest, 0.1 almost anything.")] = 0.02,
    memory: Annotated[
        Path | None, typer.Option(help="What remember wrote; by default the package's, of emoji.")
    ] = None,
    clip: Annotated[Path | None, typer.Option(help="The encoder that the memory was made with.")] = None,
    scale: OwnScale = None,
    steps: Steps = 12,
    seed: Seed = 0,
    size: Size = None,
    batch_size: BatchSize = 16,
    out: Out = Path("out"),
    device: Device = None,
) -> None:
    """Draw anew what a picture shows, with words or without.

    One PNG each, and grid.png.
    """
    given = {key: value for key, value in locals().items() if key != "out"}
    from ..tasks import variations

    made = variations.vary(**given)
    made.save(out, picture.stem)
    made.save_grid(out / "grid.png")
    print(f"{len(made)} pictures in {out}, and grid.png.")


@app.command()
def remember(
    data: DataName,
    clip: Annotated[Path | None, typer.Option(help="A file or folder of train-clip; by default the emoji's.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The memory's file.")] = Path("out/memory.safetensors"),
    size: Size = None,
    aspect: Aspect = None,
) -> None:
    """Remember captioned pictures, for vary.

    What an encoder sees in each, and what is said of it; nothing is trained.
    """
    import torch

    from ..tasks import variations
    from ..tasks.clip import load, mode

    net = load(clip)
    made = variations.remember(net, pictures(data, size, aspect, "pad", mode(net)))
    variations.save(made, out, torch.float16)
    print(f"{out}: {len(made.captions):,} pictures.")
    next_command("vary photo.png --model MODEL", memory=out, clip=clip)


@app.command()
def teach(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model of words.")],
    pairs: Annotated[
        list[str],
        typer.Argument(
            metavar="PAIRS...", help="Tables (.csv, .tsv: new text, known text); emoji:ja,es; edict, a dictionary."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The new model's file.")] = Path("out/taught.safetensors"),
    steps: Annotated[int, typer.Option(help="Of training.")] = 3000,
    vocabulary: Annotated[int, typer.Option(help="Most tokens of the new tokenizer.")] = 8192,
    depth: Annotated[int, typer.Option(help="Layers of the new text encoder.")] = 3,
    keep: Annotated[float, typer.Option(help="Part of each batch that is known texts, for texts that mix.")] = 0.2,
    folder: Annotated[Path, typer.Option("--folder", help="Where checkpoints go; again, to go on.")] = Path(
        "runs/teach"
    ),
    batch_size: Annotated[int, typer.Option(help="Texts a step.")] = 128,
    lr: LR = 1e-2,
    minutes: Minutes = None,
    further: Annotated[
        bool, typer.Option("--further", help="Go on with the languages that the model has; name their pairs too.")
    ] = False,
    fresh: Fresh = False,
    seed: SeedOfAll = 0,
) -> None:
    """Teach a model of words another language.

    Its denoiser and its own words stay as they are: a tokenizer and text encoder beside them learn to be understood.
    """
    given = {key: value for key, value in locals().items() if key not in ("model", "pairs", "out")}
    if out.suffix != ".safetensors":
        raise InputError(f"A model file ends in .safetensors, got {str(out)!r}.")
    from ..data.bilingual import bilingual
    from ..models import save
    from ..tasks import languages
    from ..tasks.files import loaded

    known = [pair for source in pairs for pair in bilingual(source)]
    print(f"{len(known):,} pairs, for example {known[0].text!r} = {known[0].known!r}.")
    taught = languages.teach(loaded(model, "cpu"), known, **given)
    if unfinished(folder, steps):
        return
    save(taught, out)
    next_command(f"sample {shlex.quote(str(out))} {shlex.quote(known[0].text)}")
