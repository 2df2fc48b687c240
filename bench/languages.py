"""Pictures asked for in other languages: what the judge recalls of them, beside the same names in English.

    python bench/languages.py --languages ja de zh -n 96
    python bench/languages.py --model taught.safetensors --only held_out
    python bench/languages.py --model taught.safetensors --languages ja --joint 10    # after a second stage
    python bench/languages.py --model tests/checkpoints/sd-small --learn 800 --languages es --scale 4

The last one adds the languages to a checkpoint of another program, in so many steps for each, and measures that; it is
repeated to go on. ``kept`` is part of the English names whose images are the same to the bit as without the language.
Held-out pairs are designs that the model was taught, whose names in that language no list of emoji showed it. Some
Japanese ones are words of the dictionary that it learned from too; ``undefined`` is the recall of those that are not.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fastdiffusion import add_language, load, sample
from fastdiffusion.data.emoji import translations
from fastdiffusion.io.images import grid
from fastdiffusion.metrics import retrieval
from fastdiffusion.models import Model, native_denoiser
from fastdiffusion.models.native import own_denoiser
from fastdiffusion.nets import TextConditioned
from fastdiffusion.prompts import abroad
from fastdiffusion.tasks.evaluation import evaluator as judging_evaluator
from fastdiffusion.training.learner import Learner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument(
        "--languages", nargs="+", default=list(translations.BACKGROUNDS), choices=list(translations.BACKGROUNDS)
    )
    parser.add_argument("--only", nargs="+", default=["taught", "held_out"], choices=["taught", "held_out"])
    parser.add_argument("--joint", type=float, help="minutes of training denoiser and words together, on all languages")
    parser.add_argument("--learn", type=int, help="steps in which a checkpoint of another program learns each language")
    parser.add_argument("--lora", nargs="*", default=[], help="of such a checkpoint: LoRAs, and languages it has")
    parser.add_argument("--dictionary", action="store_true", help="with prompts.abroad; else the student encoder alone")
    parser.add_argument("-n", type=int, default=96)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--scale", type=float, help="of guidance; by default the model's")
    parser.add_argument("--out", type=Path, default=Path("out/languages"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.dictionary:
        abroad.translated = lambda *_: None
    if args.joint:
        folder = args.out / "joint"
        Learner(
            "emoji-multilingual", init_from=args.model, captions=True, batch_size=64, holdout=0.01, lr=1e-3,
            folder=folder,
            sigma_distribution_options={"mean": -0.4, "std": 1.4}, precision="float32",
        ).fit(minutes=args.joint)  # fmt: skip
        args.model = folder
    evaluator, base = judging_evaluator.load(), load(args.model, lora=args.lora, device="cpu")
    scale = base.scale if args.scale is None else args.scale

    def draw(model: Model, texts: list[str]) -> Tensor:
        return sample(model, texts, n=len(texts), steps=args.steps, scale=scale, batch_size=32).images

    results = {}
    for language in args.languages:
        model = learned(base, language, args.learn, args.out) if args.learn else base
        for part in args.only:
            pairs = translations.emoji_pairs([language], held_out=part == "held_out")
            random.Random(0).shuffle(pairs)
            pairs = pairs[: args.n]
            names = [pair.known.removeprefix("flag of ") for pair in pairs]
            texts = [pair.text for pair in pairs]
            theirs, english = draw(model, texts), draw(model, [pair.known for pair in pairs])
            row: dict[str, Any] = {
                "recall": retrieval.r_precision(evaluator, theirs, names),
                "english": retrieval.r_precision(evaluator, english, names),
                "tokens": sum(tokens(model, text) for text in texts) / len(texts),
                "bytes": sum(len(text.encode()) for text in texts) / len(texts),
            }
            if model is not base:
                before = draw(base, [pair.known for pair in pairs])
                row["before"] = retrieval.r_precision(evaluator, draw(base, texts), names)
                row["kept"] = float((english == before).flatten(1).all(1).float().mean())
            if language == "ja" and part == "held_out" and translations.EDICT.exists():
                defined = {pair.text for pair in translations.translations("edict")}
                rest = [i for i, text in enumerate(texts) if text not in defined]
                row["undefined"] = retrieval.r_precision(evaluator, theirs[rest], [names[i] for i in rest])
            results[f"{language} {part}"] = {k: v._asdict() if hasattr(v, "_asdict") else v for k, v in row.items()}
            print(language, part, {k: str(v) for k, v in row.items()}, flush=True)
            grid(torch.cat([theirs[:12], english[:12]]), 12).save(args.out / f"{language}-{part}.png")
    (args.out / "languages.json").write_text(json.dumps(results, indent=1) + "\n")


def learned(base: Model, language: str, steps: int, out: Path) -> Model:
    """A checkpoint of another program with a language: that of the names of emoji, in a run that goes on."""
    pairs = translations.emoji_pairs([language])
    made = add_language(base, pairs, steps=steps, batch_size=64, vocabulary=4096, folder=out / language, device="cpu")
    return made.model


def tokens(model: Model, text: str) -> int:
    """How many tokens a text is for a model."""
    if own_denoiser(model.denoise) is None:
        return len(cast("Any", model.conditioner).measure(text))
    encoder = cast("TextConditioned", native_denoiser(model).net).text_encoder
    return int((encoder.tokens([text]) > 0).sum())


if __name__ == "__main__":
    main()
