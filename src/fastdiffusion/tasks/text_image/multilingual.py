"""New languages for a model of words: another tokenizer and text encoder, beside its own, against a frozen denoiser.

    taught = teach(load("emoji.safetensors"), bilingual("emoji:ja,es") + bilingual("edict"), steps=3000)
    sample(taught, "ハートの目の猫")

Japanese Stable Diffusion did this in two stages: first a new text encoder with the denoiser frozen, then both together;
how the first stage was trained was never published. Here it is distillation: for every text there is one that the model
already understands, and the new encoder learns to make the denoiser's attention see the same. What is compared are the
outputs of its cross-attention layers, at queries collected from real runs, and the pooled vectors, so neither text
needs as many tokens as the other, and no picture is needed. A second stage is training on (``Learner``), with captions
of all languages.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ... import nets, samplers
from ...data.emoji.translations import Pair
from ...denoisers import Denoiser
from ...errors import DataError, InputError
from ...guidance import cfg
from ...models import Model, native_denoiser
from ...nets import tokenizer as tokenizers
from ...nets.layers import Attention
from ...nets.text import TextConditioned, TextEncoder, normalized, vocabulary_ids
from ...noise import generator, initial
from ...training import optimizers
from ...training.trainer import Part, train

PAIRS, QUERIES = 41, 42  # purposes of generators
PURPOSE = "Adding languages"
SHOWN = 8  # queries that a batch is compared at, drawn anew at every step


def add_language(
    model: Model,
    pairs: Sequence[Pair],
    steps: int = 3000,
    vocabulary: int = 8192,
    depth: int = 3,
    keep: float = 0.2,
    folder: str | Path | None = None,
    batch_size: int = 128,
    lr: float = 1e-2,
    minutes: float | None = None,
    resume_languages: bool = False,
    fresh: bool = False,
    seed: int = 0,
) -> Model:
    """The model with a second text encoder, which understands the new texts as the first understands the known ones.

    The first stays as it is and reads what it knows (``TextEncoder.foreign``), so nothing is forgotten. A model that
    has a second one already gets a new one, or ``further`` lessons for it.

    Args:
        model: A model of words; its denoiser stays as it is.
        pairs: New and known texts. Those whose known side has words that the model never read are left out.
        steps: Of training.
        vocabulary: Most tokens of the new tokenizer, which is trained on all texts.
        depth: Layers of the new encoder.
        keep: Part of each batch that is known texts, which stand for themselves: a text may mix both languages.
        folder: Where checkpoints go; the same call goes on.
        batch_size: Texts a step.
        lr: Highest learning rate.
        minutes: End after so long.
        further: Go on with the second encoder that the model has, its tokenizer and depth; what ``pairs`` no longer
            say fades.
        fresh: Forget what the folder holds.
        seed: Of everything.

    Raises:
        InputError: A model without words, or without a second encoder to go on with; numbers out of range.
        DataError: No pair whose known side the model has read.
    """
    net = native_denoiser(model, PURPOSE).net
    if not isinstance(net, TextConditioned):
        raise InputError("This model was trained without words: there is nothing to teach it words by.")
    second = net.text_encoder.student_encoder
    if resume_languages and second is None:
        raise InputError("This model has no other languages to go on with. Leave further out.")
    if not 0 <= keep < 1:
        raise InputError(f"keep is a part of each batch, from 0 to below 1, got {keep}. Try 0.2.")
    if second is not None and not resume_languages:
        warnings.warn(
            "This model was taught before: its other languages are replaced. Name all at once, or go further.",
            stacklevel=2,
        )
    for key, value in (("batch_size", batch_size), ("depth", depth), ("steps", steps)):
        if type(value) is not int or value < 1:
            raise InputError(f"{key} must be a whole number of at least 1, got {value!r}.")
    own = _alone(net.text_encoder, [pair.known for pair in pairs])
    all_pairs, pairs = pairs, [pair for pair in pairs if own.lists(pair.known)]
    if not pairs:
        example = f", e.g. of {all_pairs[0].known!r}" if all_pairs else ""
        raise DataError(
            f"No pairs to learn from: the model has read the known side of none of the {len(all_pairs)} that were given"
            f"{example}. Each is the new text and the known one; are they exchanged?"
        )
    if len(pairs) < len(all_pairs):
        left = next(pair for pair in all_pairs if not own.lists(pair.known))
        warnings.warn(
            f"{len(all_pairs) - len(pairs):,} of {len(all_pairs):,} pairs are left out: the model has never read "
            f"their known side, e.g. {left.known!r}.", stacklevel=2,
        )  # fmt: skip
    known = list(dict.fromkeys(pair.known for pair in pairs))
    texts = [normalized(text) for text in (*(pair.text for pair in pairs), *known)]
    new = (
        _extended(second, texts)
        if resume_languages and second is not None
        else _second(own, texts, vocabulary, depth, seed)
    )
    kept = round(keep * batch_size)
    alike = _of_one_length(pairs, [len(new.tokens([pair.text])[0]) for pair in pairs])
    shares = torch.tensor([weights[-1] for _, weights in alike])

    def rows(g: torch.Generator) -> tuple[Encoded, list[str]]:
        some, often = alike[int(torch.multinomial(shares, 1, generator=g))]
        drawn = torch.searchsorted(often, often[-1] * torch.rand(batch_size, generator=g, dtype=torch.float64))
        chosen = [some[min(i, len(some) - 1)] for i in drawn.tolist()]
        asked = [pair.known if i < kept else pair.text for i, pair in enumerate(chosen)]
        return new(new.tokens(asked)), [pair.known for pair in chosen]

    pairs_hash = hashlib.sha256(repr([tuple(pair) for pair in pairs]).encode()).hexdigest()[:16]
    described = {
        "words": new.config, "pairs": pairs_hash, "model": model.id[:16], "batch_size": batch_size, "lr": lr,
        "keep": keep,
    }  # fmt: skip
    distill(model, new, rows, known, steps, described, folder, lr, minutes, fresh, seed)
    own.student_encoder = new
    its = native_denoiser(model)
    denoiser = Denoiser(
        TextConditioned(net.net, own, net.caption_mean), its.parameterization, its.sigma_data, its.self_condition
    )
    return replace(model, denoise=denoiser.eval())


def _second(own: TextEncoder, texts: Sequence[str], vocabulary: int, depth: int, seed: int) -> TextEncoder:
    """An encoder for these texts with weights of its own, as wide as the model's."""
    tokenizer, config = tokenizers.train(texts, vocabulary), own.config
    changed = {
        "vocabulary": len(tokenizer),
        "depth": depth,
        "length": 2 * config["length"],
        "known": len(vocabulary_ids(texts)),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, PAIRS).initial_seed() % 2**63)
        new = cast("TextEncoder", nets.build({**config, **changed, "name": "text"}))  # within what a file may ask for
    new.set_vocabulary(tokenizer, texts)
    if depth == config["depth"]:
        new.layers.load_state_dict(own.layers.state_dict())  # what words do to one another is alike everywhere
    return new


def _extended(second: TextEncoder, texts: Sequence[str]) -> TextEncoder:
    """A copy of an encoder that was taught, with the words of more texts in its list."""
    listed = sorted({*vocabulary_ids(texts), *(second.known.tolist() if second.config["known"] else ())})
    new = cast("TextEncoder", nets.build({**second.config, "known": len(listed), "name": "text"}))
    new.load_state_dict({**second.state_dict(), "known": torch.tensor(listed)})
    return new


def _of_one_length(pairs: Sequence[Pair], lengths: Sequence[int], groups: int = 8) -> list[tuple[list[Pair], Tensor]]:
    """The pairs in ``groups`` of about equal length, with their summed weights: batches of one have little padding."""
    order = sorted(range(len(pairs)), key=lambda i: lengths[i])
    size = -(-len(pairs) // groups)
    some = [[pairs[i] for i in order[first : first + size]] for first in range(0, len(pairs), size)]
    return [(group, torch.tensor([pair.weight for pair in group], dtype=torch.float64).cumsum(0)) for group in some]


def _alone(encoder: TextEncoder, texts: Sequence[str]) -> TextEncoder:
    """A copy of a text encoder without another beside it.

    One that lists no words takes those of ``texts`` that look known to it: it will read such texts alone.
    """
    texts = [text for text in texts if all(encoder.knows(token) for token in normalized(text).split())]
    config = encoder.config if encoder.config["known"] else {**encoder.config, "known": len(vocabulary_ids(texts))}
    alone = TextEncoder(**config)
    alone.load_state_dict(
        {k: v for k, v in encoder.state_dict().items() if not k.startswith("student_encoder.")}, strict=False
    )
    if not encoder.config["known"]:
        alone.set_vocabulary(encoder.tokenizer, texts)
    return alone.eval().requires_grad_(False)


Encoded = tuple[Tensor, Tensor, Tensor]  # token states, mask and pooled vector, as a text encoder gives them


def distill(
    model: Model,
    student: nn.Module,
    rows: Callable[[torch.Generator], tuple[Encoded, list[str]]],
    known: Sequence[str],
    steps: int,
    config: Mapping[str, Any],
    folder: str | Path | None,
    lr: float,
    minutes: float | None,
    fresh: bool,
    seed: int,
) -> None:
    """Train ``student`` so that the denoiser's attention sees of its states what it sees of known texts' states.

    Args:
        model: A model of words; frozen.
        student: What is trained.
        rows: Draws a batch: what the student says, and the texts that mean the same.
        known: Texts that the model understands, for runs in which queries are collected.
        steps, config, folder, minutes, fresh, seed: See ``loop.train``.
        lr: Highest learning rate.
    """
    net = native_denoiser(model, PURPOSE).net
    if not isinstance(net, TextConditioned):
        raise InputError("This model was trained without words: there is nothing to teach by.")
    old = net.text_encoder
    layers, bank = _queries(model, known, seed)

    def loss(step: int) -> Tensor:
        g = generator(seed, PAIRS, step)
        mine, texts = rows(g)
        with torch.no_grad():
            theirs = old(old.tokens(texts))
        total = _apart(mine[2], theirs[2])
        if net.caption_mean is not None:  # what the vector is most used for
            with torch.no_grad():
                wanted = net.caption_mean(theirs[2])
            total = (total + _apart(net.caption_mean(mine[2]), wanted)) / 2
        for layer, queries in zip(layers, bank, strict=True):
            x = queries[torch.randint(len(queries), (SHOWN,), generator=g)].expand(len(texts), -1, -1)
            with torch.no_grad():
                wanted = layer(x, theirs[0], theirs[1])
            total = total + _apart(layer(x, mine[0], mine[1]), wanted)
        return total / (len(layers) + 1)

    part = Part(student, loss, optimizer=optimizers.default(shard=False), lr=lr)
    for _ in train({"student": part}, steps, config, folder, seed, 100, 0.5, minutes, fresh):
        pass


def _apart(mine: Tensor, wanted: Tensor) -> Float[Tensor, ""]:
    """Squared difference, as a part of how much ``wanted`` varies over the texts."""
    return (mine - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean().clamp(min=1e-8)


def _queries(
    model: Model, texts: Sequence[str], seed: int, runs: int = 64, steps: int = 12
) -> tuple[list, list[Tensor]]:
    """The denoiser's cross-attention layers, and for each some of what it was asked in runs with these texts."""
    inputs: dict[nn.Module, list[Tensor]] = {}
    g = generator(seed, QUERIES)

    def note(module: nn.Module, args: tuple) -> None:
        if len(args) > 1 and args[1] is not None:
            x = args[0].detach().flatten(0, 1)
            inputs.setdefault(module, []).append(x[torch.randint(len(x), (128,), generator=g)])

    net = native_denoiser(model, PURPOSE).net
    hooks = [m.register_forward_pre_hook(note) for m in net.modules() if isinstance(m, Attention)]
    try:
        chosen = [str(texts[i]) for i in torch.randint(len(texts), (runs,), generator=g).tolist()]
        table = model.table(steps, "dpmpp_2m")
        with torch.no_grad():
            x = table.sigmas[0] * initial(range(runs), model.shape)
            samplers.final(samplers.run(cfg(model.denoise, 2.0), x, table, model.encode_prompt(chosen), range(runs)))
    finally:
        for hook in hooks:
            hook.remove()
    if not inputs:
        raise InputError("This model's net has no attention to words.")
    return list(inputs), [torch.cat(rows) for rows in inputs.values()]
