"""kill -9 while training, again and again: every kind of net must end with the weights of a run that nobody killed.

    python bench/kills.py                  # 21 kinds x 5 kills: many minutes on one core
    python bench/kills.py --kinds diffusion clip --kills 20

Each run is killed at random moments (not at steps), resumed by the same call, killed again; after the last kill it is
left to finish. Its weights are compared to the bit with those of one run in one piece. Training is in forked processes
of one thread.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdiffusion.data import Dataset, Images
from fastdiffusion.data.emoji.translations import Pair
from fastdiffusion.io.checkpoints import fingerprint
from fastdiffusion.io.run_folder import Folder
from fastdiffusion.tasks.autoencoding.token_prior import train_token_prior
from fastdiffusion.tasks.autoencoding.train import train_autoencoder
from fastdiffusion.tasks.classification.train import train_classifier, train_noise_level
from fastdiffusion.tasks.evaluation.evaluator import train_evaluator
from fastdiffusion.tasks.evaluation.feature_net import train_feature_net
from fastdiffusion.tasks.personalization.finetune import finetune
from fastdiffusion.tasks.personalization.personalize import personalize
from fastdiffusion.tasks.restoration.cold_diffusion import train_cold
from fastdiffusion.tasks.stylization.network import train_style
from fastdiffusion.tasks.text_image import clip as clips
from fastdiffusion.tasks.text_image.caption_mean import train_caption_mean
from fastdiffusion.tasks.text_image.multilingual import add_language
from fastdiffusion.tasks.text_image.prior import train_prior
from fastdiffusion.tasks.translation.paired import train_translation
from fastdiffusion.training.learner import Learner

Kind = Callable[..., Any]
COLORS = ("red", "green", "blue", "yellow")
WORDS = {"vocabulary": 300, "width": 16, "depth": 1, "head": 8}
NET = {"name": "unet", "width": 8, "multiples": [1, 2], "blocks": [1, 1], "attention": [1], "head": 8}


def squares(n: int = 32, side: int = 16) -> Dataset:
    """Noisy squares of four colors, with captions and classes."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 60, (n, 3, side, side), generator=g, dtype=torch.uint8)
    for i in range(n):
        x[i, i % 3, 4:12, 4:12] = 200
    captions = [[f"a {COLORS[i % 4]} square", f"{COLORS[i % 4]} {i}"] for i in range(n)]
    labels = [i % 4 for i in range(n)]
    return Images("squares", [x.numpy()], labels, classes=COLORS, captions=captions)


def _text_model() -> Any:
    return Learner(
        squares(), net={**NET, "words": WORDS}, captions=True, batch_size=4, verbose=False, device="cpu"
    ).model


def _tokens() -> Any:
    return train_autoencoder(squares(), kind="fsq", width=8, levels=1, codebook_size=64, steps=1, **QUIET).model


def _taught(method: str, **options: Any) -> nn.Module:
    options = {"token": "<new>", "class_name": "red", "prior": 4, "rank": 2, **QUIET, **options}
    return personalize(_text_model(), squares(8), method=method, early_stop=False, **options).model.modules["net"]


QUIET = {"batch_size": 4, "device": "cpu", "verbose": False}
KINDS: dict[str, Kind] = {
    "diffusion": lambda **o: Learner(
        squares(), net=NET, self_condition=True, augment=("mirror",), dropout=0.1, grad_accumulation=2,
        folder=o.pop("folder"), save_every=o.pop("save_every", 0.0), **QUIET,
    ).fit(steps=o["steps"]).objective,
    "classifier": lambda **o: train_classifier(squares(), dropout=0.2, holdout=0.1, **QUIET, **o).model,
    "noise level": lambda **o: train_noise_level(squares(), **QUIET, **o),
    "autoencoder": lambda **o: train_autoencoder(squares(), width=8, levels=1, adversarial=0.1, **QUIET, **o).model,
    "vq autoencoder": lambda **o: train_autoencoder(
        squares(), kind="vq", width=8, levels=1, codebook_size=16, **QUIET, **o
    ).model,
    "gumbel autoencoder": lambda **o: train_autoencoder(
        squares(), kind="gumbel", width=8, levels=1, codebook_size=16, **QUIET, **o
    ).model,
    "token prior": lambda **o: train_token_prior(_tokens(), squares(), width=16, depth=1, **QUIET, **o).model,
    "clip": lambda **o: clips.train_clip(squares(), net="tiny", **QUIET, **o).model,
    "unclip prior": lambda **o: train_prior(
        clips.train_clip(squares(), net="tiny", steps=1, **QUIET).model, squares(), **QUIET, **o
    ),
    "caption mean": lambda **o: train_caption_mean(
        squares(), net={**NET, "words": WORDS}, side=4, **QUIET, **o
    ).model.modules["net"],
    "language": lambda **o: add_language(
        _text_model(), [Pair(f"un cuadro {word}", f"a {word} square") for word in COLORS],
        vocabulary=300, depth=1, **QUIET, **o,
    ).model.modules["net"],
    "translation": lambda **o: train_translation(
        squares(), squares(), method="gan", net="unet-tiny", **QUIET, **o
    ).model,
    "cyclegan": lambda **o: train_translation(
        squares(), classes="red,blue", method="cyclegan", net="unet-tiny", **QUIET, **o
    ).model,
    "cold": lambda **o: train_cold(squares(), "blur 2", **QUIET, **o).model,
    "style": lambda **o: train_style(
        squares().batch([1]).images[0] / 127.5 - 1, squares(), size=16, **QUIET, **o
    ).model,
    "evaluator": lambda **o: train_evaluator(
        squares(side=64).batch(range(32)).images, [[c] for c in squares().texts()[::2]], **QUIET, **o
    ),
    "feature net": lambda **o: train_feature_net(squares(), **QUIET, **o),
    "personalize lora": lambda **o: _taught("lora", **o),
    "personalize embedding": lambda **o: _taught("embedding", **o),
    "personalize full": lambda **o: _taught("full", **o),
    "finetune": lambda **o: finetune(_text_model(), squares(12), early_stop=False, **QUIET, **o).model.modules["net"],
}  # fmt: skip


def weights(made: nn.Module) -> str:
    """A hash of all weights."""
    return fingerprint(made.state_dict())


def in_child(work: Callable[[], str], seconds: float | None = None, begun: Callable[[], bool] = bool) -> str | None:
    """``work()`` in a forked process; killed so many seconds after it has ``begun``, it returns None."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = work()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    if seconds is not None:
        while os.waitpid(pid, os.WNOHANG) == (0, 0) and not begun():
            time.sleep(0.005)
        time.sleep(seconds)
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):  # it had finished
            pass
    with os.fdopen(reader) as file:
        answer = file.read()
    if seconds is None:
        os.waitpid(pid, 0)
    return answer or None


def killed(kind: str, folder: Path, kills: int, steps: int, chance: random.Random) -> tuple[bool, int, list[int]]:
    """Whether a run of this kind that was killed so often ends as one in one piece; how often it was; at what steps."""
    started = time.perf_counter()
    whole = in_child(lambda: weights(KINDS[kind](folder=folder / "whole", steps=steps, save_every=0.0)))
    length = time.perf_counter() - started
    run, at, times = Folder(folder / "cut"), [], 0

    def newest() -> int:
        return int(files[0].stem[5:]) if (files := run.checkpoints()) else 0

    for _ in range(kills):
        before = newest()
        answer = in_child(
            lambda: weights(KINDS[kind](folder=run.path, steps=steps, save_every=0.0)),
            chance.uniform(0, 1.5 * length / kills), lambda before=before: newest() > before,
        )  # fmt: skip
        times += answer is None
        at.append(newest())
    final = in_child(lambda: weights(KINDS[kind](folder=run.path, steps=steps, save_every=0.0)))
    return final == whole and len(str(whole)) == 64, times, at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    chance, right = random.Random(args.seed), 0
    print("| kind | killed | with the newest checkpoint at step | of | weights equal |\n|---|---|---|---|---|")
    for kind in args.kinds:
        with tempfile.TemporaryDirectory() as folder:
            equal, times, at = killed(kind, Path(folder), args.kills, args.steps, chance)
        right += equal
        print(
            f"| {kind} | {times} | {', '.join(map(str, at))} | {args.steps} | {'yes' if equal else 'NO'} |", flush=True
        )
    print(f"\n{right} of {len(args.kinds)} kinds end with the weights of a run that nobody killed.")
    sys.exit(right < len(args.kinds))


if __name__ == "__main__":
    main()
