"""Forty everyday nouns in eight languages (bench/nouns.txt): how many of their images show the thing.

    python bench/nouns.py [--list nouns.txt] [--model emoji] [--seeds 0 1 2] [--steps 8] [--out out/nouns]

An image is right where the evaluator, asked among all of its names, takes it for one that shows the thing. A sheet of
the forty is written for each language.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fastdiffusion import load, sample
from fastdiffusion.io.images import grid
from fastdiffusion.tasks.evaluation import evaluator as evaluators

LANGUAGES = ("en", "ja", "es", "de", "fr", "zh", "it", "pt")


def nouns(path: str = "nouns.txt") -> list[tuple[tuple[str, ...], dict[str, str]]]:
    """Of each noun the glyphs that show it, and its word in each language."""
    rows = Path(__file__).with_name(path).read_text(encoding="utf-8").splitlines()
    found = []
    for english, glyphs, *others in (row.split("\t") for row in rows if not row.startswith("#")):
        found.append((tuple(glyphs.split("|")), dict(zip(LANGUAGES, (english, *others), strict=True))))
    return found


def shows(name: str, glyphs: tuple[str, ...]) -> bool:
    return any(name == glyph or name.startswith(f"{glyph} ") for glyph in glyphs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", default="nouns.txt", help="or nouns-unseen.txt, nouns-third.txt")
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--languages", nargs="+", default=LANGUAGES)
    parser.add_argument("--out", type=Path, default=Path("out/nouns"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model, evaluator, rows = load(args.model), evaluators.load(), nouns(args.list)
    for language in args.languages:
        words, counts, wrong = [row[1][language] for row in rows], [], {}
        for seed in args.seeds:
            images = sample(model, words, n=len(words), steps=args.steps, seed=seed, batch_size=40).images
            names = [best[0] for best in evaluators.best_names(evaluator, images)]
            counts.append(sum(shows(name, row[0]) for name, row in zip(names, rows, strict=True)))
            for name, (glyphs, word) in zip(names, rows, strict=True):
                if not shows(name, glyphs):
                    wrong.setdefault(word[language], []).append(name)
            if seed == args.seeds[0]:
                grid(images, 10).save(args.out / f"{language}.png")
        print(f"{language}: {counts} of {len(rows)}; wrong: {wrong}", flush=True)


if __name__ == "__main__":
    main()
