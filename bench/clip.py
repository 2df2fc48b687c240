"""What the dual encoder learned: recall by language on pairs it never saw, the gap of its halves, noise, the prior.

    python bench/clip.py [--clip FILE] [--cloob FILE] [--noisy FILE] [--prior FILE] [--model FILE] [--out out/bench]

Chance is 1 % everywhere (100 captions to choose from). With ``--noisy``, accuracy against sigma, beside the clean
encoder on the noisy picture, and, with ``--model`` (a denoiser of these pictures), on the denoiser's estimate.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from fastdiffusion import data, metrics
from fastdiffusion.data.emoji import holdout
from fastdiffusion.data.emoji.font import LANGUAGES
from fastdiffusion.data.emoji.scenes import composite, scenes
from fastdiffusion.io.images import to_tensor
from fastdiffusion.metrics.retrieval import r_precision
from fastdiffusion.models import load
from fastdiffusion.nets.clip import Clip
from fastdiffusion.noise import generator
from fastdiffusion.tasks.text_image import clip as clips
from fastdiffusion.tasks.text_image import prior as priors

SIGMAS = (0.02, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)


class Emoji:
    """The parts of the data, and the names of all designs in all languages."""

    def __init__(self) -> None:
        self.all = data.load("emoji", alpha=True)
        self.plain = [i for i, name in enumerate(self.all.names) if not holdout.skins(name)]
        self.names = {
            language: [own[0] for own in data.load("emoji", languages=[language], alpha=True).captions]
            for language in LANGUAGES
        }
        self.names["en"] = [entry.name for entry in scenes().phrases]  # "flag of Japan", as it was taught
        white = torch.full((len(self.all), 3), 255, dtype=torch.uint8)
        self.images = composite(self.all.batch(range(len(self.all))).images, white)

    def chosen(self, part: str, language: str = "en") -> list[int]:
        """Plain designs: trained on; held out; or trained on, but not with their name in this language."""
        held = {i for i in self.plain if holdout.reserved(self.all.names[i])}
        pairs = {i for i in self.plain if holdout.pair(self.all.names[i], language)}
        kinds = {"seen": set(self.plain) - held - pairs, "pairs": pairs - held, "designs": held}
        return sorted(kinds[part])


def recalls(clip: Clip, emoji: Emoji) -> dict[str, dict[str, str]]:
    table: dict[str, dict[str, str]] = {}
    vectors = metrics.features(clip.encode_image, emoji.images)
    for language in LANGUAGES:
        pool = [emoji.names[language][i] for i in emoji.plain]
        table[language] = {}
        for part in ("seen", "pairs", "designs"):
            rows = emoji.chosen(part, language)
            if rows:
                own = [emoji.names[language][i] for i in rows]
                table[language][part] = str(r_precision(clips.EmbeddedImages(clip), vectors[rows], own, 100, pool))
        tokens = [len(clip.text.tokenizer.encode(" " + name.casefold())) for name in pool]
        table[language]["tokens"] = f"{sum(tokens) / len(tokens):.1f}"
        print(language, table[language], flush=True)
    return table


def about(clip: Clip, emoji: Emoji) -> dict[str, float]:
    """The gap, before and after centering, and how many directions the pictures use (participation ratio)."""
    rows = emoji.chosen("designs")
    pictures, names = to_tensor(emoji.images[rows]), [emoji.names["en"][i] for i in rows]
    before, after = clips.gap(clip, pictures, names)
    embedded = metrics.features(clip.encode_image, emoji.images[emoji.plain])
    values = torch.linalg.eigvalsh(torch.cov(embedded.T)).clamp(min=0)
    apart = float(torch.pdist(embedded).mean())
    return {"gap": before, "gap centered": after, "directions": float(values.sum() ** 2 / values.square().sum()),
            "mean distance of two pictures": apart}  # fmt: skip


class At:
    """An encoder that is shown pictures at one noise level, noise added here (or taken off again by ``model``)."""

    def __init__(self, clip: Clip, sigma: float, conditioned: bool, model: object = None):
        self.clip, self.sigma, self.conditioned, self.model = clip, sigma, conditioned, model
        self.encode_text, self.evaluations = clip.encode_text, 0

    def encode_image(self, x: Tensor) -> Tensor:
        self.evaluations += 1
        noisy = x + self.sigma * torch.randn(x.shape, generator=generator(7, self.evaluations))
        sigma = torch.full((len(x),), self.sigma)
        if self.model is not None:
            return self.clip.encode_image(self.model.denoise(noisy, sigma).clamp(-1, 1))  # type: ignore[attr-defined]
        return self.clip.encode_image(noisy, sigma if self.conditioned else None)


def curve(clean: Clip, noisy: Clip, emoji: Emoji, model: object) -> list[dict[str, object]]:
    table = []
    pool = [emoji.names["en"][i] for i in emoji.plain]
    for part in ("seen", "designs"):
        rows = emoji.chosen(part)[:600]
        own = [emoji.names["en"][i] for i in rows]
        for sigma in SIGMAS:
            asked = {"noisy": At(noisy, sigma, True), "clean": At(clean, sigma, False)}
            if model is not None:
                asked["clean on x0"] = At(clean, sigma, False, model)
            scores = {k: str(r_precision(v, emoji.images[rows], own, 100, pool)) for k, v in asked.items()}
            table.append({"part": part, "sigma": sigma, **scores})
            print(table[-1], flush=True)
    return table


def nearer(clip: Clip, prior: object, emoji: Emoji) -> dict[str, str]:
    """Cosine to the true picture's vector, of the words, of the words moved by the mean gap, and of the prior's."""
    train = scenes(part="train")
    some, texts_of = priors.embeddings(clip, data.Subset(train, range(0, len(train), 4)))
    shift = some.mean(0) - texts_of[0].mean(0)
    result = {}
    for part in ("seen", "designs"):
        rows = emoji.chosen(part)
        embedded = metrics.features(clip.encode_image, emoji.images[rows])
        texts = clip.encode_text([emoji.names["en"][i] for i in rows])
        moved = functional.normalize(texts + shift, dim=1)
        made = {
            "words": texts, "words moved by the gap": moved,
            "prior, expected": priors.imagine(prior, texts, range(len(rows)), steps=1),
            "prior, drawn": priors.imagine(prior, texts, range(len(rows))),
        }  # fmt: skip
        cosines = {name: (v * embedded).sum(1) for name, v in made.items()}
        for name, values in cosines.items():
            low, high = metrics.interval(lambda v: float(v.mean()), values)
            result[f"{part}: {name}"] = f"{float(values.mean()):.3f} [{low:.3f}, {high:.3f}], n={len(rows)}"
        for other in ("words", "words moved by the gap"):
            gain = cosines["prior, expected"] - cosines[other]
            low, high = metrics.interval(lambda v: float(v.mean()), gain)
            result[f"{part}: prior minus {other}"] = f"{float(gain.mean()):+.3f} [{low:+.3f}, {high:+.3f}]"
    for line in result.items():
        print(*line, sep=": ", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("clip", "cloob", "noisy", "prior", "model"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    clip, emoji = clips.load(args.clip), Emoji()
    result: dict[str, object] = {"recall": recalls(clip, emoji), "about": about(clip, emoji)}
    print(result["about"])
    if args.cloob:
        other = clips.load(args.cloob)
        result |= {"cloob recall": recalls(other, emoji), "cloob about": about(other, emoji)}
        print(result["cloob about"])
    if args.noisy:
        model = load(args.model) if args.model else None
        result["curve"] = curve(clip, clips.load(args.noisy), emoji, model)
    if args.prior:
        result["prior"] = nearer(clip, priors.load(args.prior), emoji)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "clip.json").write_text(json.dumps(result, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
