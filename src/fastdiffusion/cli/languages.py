"""Commands that use and extend what a text-to-image model understands: other languages, and images."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError, counted
from ..tasks.generation.options import VariationsOptions
from ..tasks.text_image.options import AddLanguageOptions
from .command import command
from .options import Aspect, DataName, Device, Out, Size, next_command, offer_models


@command(
    "variations",
    VariationsOptions,
    panel="Create",
    examples=[
        "fastdiffusion variations photo.png -n 8",
        'fastdiffusion variations photo.png "on a blue background" --strength 0.7',
        'fastdiffusion variations cat.png --mix crown.png:0.5 --mix "a red heart:0.3"',
    ],
)
def variations(
    chosen: VariationsOptions,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The image to draw anew.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to add to it.")] = "",
    model: Annotated[
        str, typer.Option(help="A text-to-image model that was trained on such captions.", autocompletion=offer_models)
    ] = "emoji",
    out: Out = Path("out"),
) -> None:
    """Draw variations of an image, with a prompt or without.

    One PNG each, and grid.png.
    """
    from ..tasks import variations as module

    made = module.variations(image, prompt, model, **vars(chosen))
    made.save(out, image.stem)
    sheet = made.save_grid(out / "grid.png")
    print(f"{counted(len(made), 'image')} in {out}, and {sheet.name}.")


@command(
    "index",
    panel="Train",
    examples=[
        "fastdiffusion index photos/ --clip runs/clip --out photos.safetensors",
        "fastdiffusion index emoji",
    ],
)
def index(
    data: DataName,
    clip: Annotated[
        Path | None, typer.Option(help="What train-clip wrote; by default the bundled encoder, of emoji.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="File of the index.")] = Path("out/index.safetensors"),
    size: Size = None,
    aspect: Aspect = None,
    device: Device = None,
) -> None:
    """Build the index that variations draws from.

    Of captioned images: the embedding of each, and its caption; nothing is trained.
    """
    import torch

    from ..data import load_folder
    from ..tasks import variations as module
    from ..tasks.text_image.clip import mode, ready

    net = ready(clip, device)
    made = module.build_index(net, load_folder(data, size, aspect, "pad", mode(net)))
    module.save(made, out, torch.float16)
    print(f"{out}: {counted(len(made.captions), 'image')}.")
    next_command("variations photo.png --model MODEL", index=out, clip=clip)


@command(
    "add-language",
    AddLanguageOptions,
    panel="Train",
    examples=[
        "fastdiffusion add-language emoji emoji:ja,es --out multilingual.safetensors",
        "fastdiffusion add-language runs/photos pairs.csv --steps 3000",
        "fastdiffusion add-language sd15/ pairs.csv --out spanish.safetensors",
    ],
)
def add_language(
    chosen: AddLanguageOptions,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A text-to-image model.", autocompletion=offer_models)],
    pairs: Annotated[
        list[str],
        typer.Argument(
            metavar="PAIRS...",
            help="Pairs of texts: tables (.csv, .tsv: new text, known text); emoji:ja,es; edict, a dictionary.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File of the new model, or of the language alone.")] = Path(
        "out/multilingual.safetensors"
    ),
) -> None:
    """Teach a text-to-image model another language.

    By distillation: its denoiser and its own text encoder stay as they are, and a tokenizer and a text encoder beside
    them are trained. Of a checkpoint of another program these are written to a file of their own, for --lora.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"A model file ends in .safetensors, got {str(out)!r}.")
    from ..data.emoji.translations import translations
    from ..tasks.text_image import multilingual

    loaded_pairs, chosen = [pair for source in pairs for pair in translations(source)], chosen.in_runs("languages")
    first = loaded_pairs[0]
    print(f"{counted(len(loaded_pairs), 'pair')}, for example {first.text!r} = {first.known!r}.")
    extended = multilingual.add_language(model, loaded_pairs, **vars(chosen)).model
    multilingual.save_language(extended, out)
    if extended.info.get("family"):
        next_command(f"sample {shlex.quote(str(model))} {shlex.quote(first.text)}", lora=out)
    else:
        next_command(f"sample {shlex.quote(str(out))} {shlex.quote(first.text)}")
