"""Pictures asked for in other languages: what the judge recalls of them, beside the same names in English.

    python bench/languages.py --languages ja de zh -n 96
    python bench/languages.py --model taught.safetensors --only held_out
    python bench/languages.py --model taught.safetensors --languages ja --joint 10    # after a second stage

Held-out pairs are designs that the model was taught, whose names in that language no list of emoji showed it. Some
Japanese ones are words of the dictionary that it learned from too; ``undefined`` is the recall of those that are not.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from fastdiffusion import sample
from fastdiffusion.data.emoji import translations
from fastdiffusion.io.images import grid
from fastdiffusion.metrics import retrieval
from fastdiffusion.models import native_denoiser
from fastdiffusion.models.registry import loaded
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
    parser.add_argument("--dictionary", action="store_true", help="with prompts.abroad; else the student encoder alone")
    parser.add_argument("-n", type=int, default=96)
    parser.add_argument("--steps", type=int, default=12)
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
    evaluator, model = judging_evaluator.load(), loaded(args.model)
    text_encoder = cast("TextConditioned", native_denoiser(model).net).text_encoder

    def draw(texts: list[str]) -> Tensor:
        return sample(model, texts, n=len(texts), steps=args.steps, scale=model.scale, batch_size=32).images

    results = {}
    for language in args.languages:
        for part in args.only:
            pairs = translations.emoji_pairs([language], held_out=part == "held_out")
            random.Random(0).shuffle(pairs)
            pairs = pairs[: args.n]
            names = [pair.known.removeprefix("flag of ") for pair in pairs]
            texts = [pair.text for pair in pairs]
            theirs, english = draw(texts), draw([pair.known for pair in pairs])
            row: dict[str, Any] = {
                "recall": retrieval.r_precision(evaluator, theirs, names),
                "english": retrieval.r_precision(evaluator, english, names),
                "tokens": sum(int((text_encoder.tokens([text]) > 0).sum()) for text in texts) / len(texts),
                "bytes": sum(len(text.encode()) for text in texts) / len(texts),
            }
            if language == "ja" and part == "held_out":
                defined = {pair.text for pair in translations.translations("edict")}
                rest = [i for i, text in enumerate(texts) if text not in defined]
                row["undefined"] = retrieval.r_precision(evaluator, theirs[rest], [names[i] for i in rest])
            results[f"{language} {part}"] = {k: v._asdict() if hasattr(v, "_asdict") else v for k, v in row.items()}
            print(language, part, {k: str(v) for k, v in row.items()}, flush=True)
            grid(theirs[:24], 12).save(args.out / f"{language}-{part}.png")
    (args.out / "languages.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
