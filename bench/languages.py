"""A new language for the shipped model: what the judge recalls of pictures asked for in it, beside English.

    python bench/languages.py --language ja --steps 700

Held-out pairs are designs that the model was taught, whose names in that language it never saw.
"""

from __future__ import annotations

import argparse
import random

from fastdiffusion import sample
from fastdiffusion.tasks import judging, languages
from fastdiffusion.tasks.files import loaded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", default="ja", choices=languages.LANGUAGES)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--n", type=int, default=96)
    args = parser.parse_args()
    judge, model = judging.load(), loaded("emoji")
    taught = languages.teach(model, languages.emoji_pairs([args.language]), args.steps, vocabulary=4096)
    for name, held_out in (("taught", False), ("held out", True)):
        pairs = languages.emoji_pairs([args.language], held_out)
        random.Random(0).shuffle(pairs)
        pairs = pairs[: args.n]
        told = [pair.known.removeprefix("flag of ") for pair in pairs]
        for who, made, texts in (
            ("English, before", model, [p.known for p in pairs]),
            ("English, after", taught, [p.known for p in pairs]),
            (args.language, taught, [p.text for p in pairs]),
        ):
            images = sample(made, texts, len(texts), scale=model.info["scale"], batch_size=32).images
            print(f"{name:9} {who:16} {judging.recall_at_1(judge, images, told)}", flush=True)


if __name__ == "__main__":
    main()
