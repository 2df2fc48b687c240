"""A language for a fine-tuned model: whether it still draws English names as before.

    python bench/domain.py --seeds 0 --sides held
    python bench/language_kept.py --lora out/bench/domain/held-0/lora.safetensors       # about 3 CPU minutes

The language is learned by a text encoder of its own (``add_language``), in few steps: what is asked is not how well it
is spoken but what it costs. Before and after, from the same noise:
names        English names of emoji, all of whose words the model lists
phrases      everyday English prompts, of which some have a word that it does not list: the new encoder reads these
R-precision  among 100 names, how often the right one wins, with its 95 % interval over images; and of the difference
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from everyday import LISTS, rows_of

import fastdiffusion
from fastdiffusion import metrics
from fastdiffusion.data.emoji.translations import emoji_pairs
from fastdiffusion.metrics import retrieval
from fastdiffusion.models import Model
from fastdiffusion.models.native import own_denoiser
from fastdiffusion.tasks.evaluation import evaluator


def images(model: Model, prompts: list[str]) -> torch.Tensor:
    """One image of each prompt, always from the same noise."""
    return fastdiffusion.sample(model, prompts, n=len(prompts), seed=700, steps=8, batch_size=16).images


def stated(each: torch.Tensor) -> list[float]:
    """A mean and its 95 % interval over images."""
    return [round(v, 4) for v in (float(each.mean()), *metrics.interval(lambda rows: float(rows.mean()), each))]


def main() -> None:
    """Add the language, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--lora", nargs="*", default=[], help="what it was fine-tuned to")
    parser.add_argument("--language", default="es")
    parser.add_argument("--steps", type=int, default=100, help="of learning the language")
    parser.add_argument("-n", type=int, default=96, help="of names, and of phrases at most")
    parser.add_argument("--out", type=Path, default=Path("out/bench/language-kept"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    before = fastdiffusion.load(args.model, lora=args.lora, device="cpu")
    pairs = emoji_pairs([args.language])
    after = fastdiffusion.add_language(before, pairs, steps=args.steps, folder=args.out / "run", device="cpu").model
    denoiser = own_denoiser(before.denoise)
    names = list(dict.fromkeys(pair.known for pair in pairs if denoiser.net.text_encoder.lists(pair.known)))
    random.Random(0).shuffle(names)
    everyday = rows_of(LISTS[0])
    prompts, meant = [prompt for prompt, _ in everyday], [names[0] for _, names in everyday]
    net, found = evaluator.load(), {}
    for kind, texts, truth in (
        ("names", names[: args.n], [name.removeprefix("flag of ") for name in names[: args.n]]),
        ("phrases", prompts[: args.n], meant[: args.n]),
    ):
        drawn = {key: images(model, texts) for key, model in (("before", before), ("after", after))}
        won = {key: retrieval.chances(net, made, truth, 100) for key, made in drawn.items()}
        won["difference"] = won["after"] - won["before"]
        found[kind] = {
            "n": len(texts), "unlisted": sum(not denoiser.net.text_encoder.lists(text) for text in texts),
            **{key: stated(each) for key, each in won.items()},
            "same to the bit": float((drawn["before"] == drawn["after"]).flatten(1).all(1).float().mean()),
        }  # fmt: skip
        print(f"{kind}:", json.dumps(found[kind]), flush=True)
    (args.out / "numbers.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
