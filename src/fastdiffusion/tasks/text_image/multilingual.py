"""Languages added to a text-to-image model: another tokenizer and text encoder beside its own; the denoiser is frozen.

    made = add_language(load("emoji.safetensors"), translations("emoji:ja,es") + translations("edict"), steps=3000)
    sample(made.model, "ハートの目の猫")

Japanese Stable Diffusion did this in two stages: first a new text encoder with the denoiser frozen, then both together;
how the first stage was trained was never published. Here it is distillation: for every text there is one that the model
already understands, and the new encoder learns to make the denoiser's attention see the same. What is compared are the
outputs of its cross-attention layers, at queries collected from real runs, and the pooled vectors, so neither text
needs as many tokens as the other, and no image is needed. A second stage is training on (``Learner``), with captions of
all languages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ... import nets, samplers
from ...adapters.conditioners import student as students
from ...data.emoji.translations import Pair
from ...denoisers import Denoiser
from ...errors import DataError, InputError, counted, warn
from ...guidance import cfg
from ...models import Model, native_denoiser, save
from ...models.native import own_denoiser
from ...nets import tokenizer as tokenizers
from ...nets.layers import Attention, drawn
from ...nets.text import TextConditioned, TextEncoder, normalized, vocabulary_ids
from ...noise import Stream, generator, initial
from ...options import fill
from ...training.distributed import gathered, place
from ...training.options import TrainingOptions
from ...training.report import TrainingResult
from ...training.task import Part, Task, Updates, Whole
from ...training.trainer import train
from ..loading import LoadOptions, loaded
from .options import AddLanguageOptions
from .pairs import Texts, batches
from .students import add_student

SHOWN = 8  # queries that a batch is compared at, drawn anew at every step


def add_language(model: Model | str | Path, pairs: Sequence[Pair], **options: Any) -> TrainingResult[Model]:
    """The model with a second text encoder, which understands the new texts as the first understands the known ones.

    The first stays as it is and encodes what it knows (``TextEncoder.student_encoder``), so nothing is forgotten. A
    model that has a second one already gets a new one, or goes on with it (``resume_languages``).

    A checkpoint of another program gets a student of its text encoders, which reads the prompts that are in the new
    language (``nets.student``); its file, ``language.safetensors`` in the folder of the run, is loaded as a LoRA is. It
    may have several.

    Args:
        model: A text-to-image model; its denoiser stays as it is, and the result shares it.
        pairs: New and known texts. Those whose known side has words that a model of this package was never trained on
            are left out.
        options: See :class:`AddLanguageOptions`.

    Raises:
        InputError: A model without a text encoder, or without a second one to go on with; numbers out of range.
        DataError: No pair whose known side the model was trained on.
    """
    chosen = fill(AddLanguageOptions, **options)
    model = loaded(model, LoadOptions(device=None if isinstance(model, Model) else "cpu", lora=chosen.lora))
    if own_denoiser(model.denoise) is None:
        _check(chosen)
        return add_student(model, pairs, chosen)
    denoiser, net = _native(model)
    second = net.text_encoder.student_encoder
    _check(chosen)
    _check_languages(chosen, second)
    own = _alone(net.text_encoder, [pair.known for pair in pairs])
    pairs = _known(own, pairs)
    known = list(dict.fromkeys(pair.known for pair in pairs))
    texts = [normalized(text) for text in (*(pair.text for pair in pairs), *known)]
    if chosen.resume_languages and second is not None:
        new = _extended(second, texts)
    else:
        new = _second(own, texts, chosen.vocabulary, chosen.depth, chosen.seed)
    pairs_hash = hashlib.sha256(repr([tuple(pair) for pair in pairs]).encode()).hexdigest()[:16]
    config = {
        "words": new.config, "pairs": pairs_hash, "model": model.id[:16], "batch_size": chosen.batch_size,
        "lr": chosen.lr, "keep": chosen.keep,
    }  # fmt: skip
    before = model.device
    distill(model, new, batches(pairs, new, chosen), known, config, chosen)
    own.student_encoder = new
    extended = Denoiser(
        TextConditioned(net.net, own, net.caption_mean), denoiser.parameterization, denoiser.sigma_data,
        denoiser.self_condition,
    )  # fmt: skip
    return TrainingResult.of(replace(model, denoise=extended.eval()).to(before), chosen.folder)


def save_language(model: Model, path: str | Path) -> None:
    """Write what :func:`add_language` made: a model's file, or of a checkpoint of another program the language alone.

    Raises InputError for a path that does not end in .safetensors.
    """
    if languages := students.students_of(model):
        students.write(path, model, languages[0].encoder)
    else:
        save(model, path)


def _native(model: Model) -> tuple[Denoiser, TextConditioned]:
    """A text-to-image model's denoiser and its net; InputError for any other model."""
    denoiser = native_denoiser(model, "Adding languages")
    net = denoiser.net
    if not isinstance(net, TextConditioned):
        raise InputError("This model was trained without captions: it has no text encoder to add languages to.")
    return denoiser, net


def _check_languages(chosen: AddLanguageOptions, second: TextEncoder | None) -> None:
    """Refuse to go on with nothing, and warn of what is lost."""
    if chosen.resume_languages and second is None:
        raise InputError("This model has no other languages to go on with. Leave resume_languages out.")
    if second is not None and not chosen.resume_languages:
        warn("This model has other languages already: they are replaced. Name all at once, or give resume_languages.")


def _check(chosen: AddLanguageOptions) -> None:
    """Refuse what cannot be trained."""
    if not 0 <= chosen.keep < 1:
        raise InputError(f"keep is a part of each batch, from 0 to below 1, got {chosen.keep}. Try 0.2.")
    for key in ("batch_size", "depth"):
        if type(value := getattr(chosen, key)) is not int or value < 1:
            raise InputError(f"{key} must be a whole number of at least 1, got {value!r}.")


def _known(own: TextEncoder, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs whose known side the model was trained on."""
    kept = [pair for pair in pairs if own.lists(pair.known)]
    if not kept:
        example = f", e.g. of {pairs[0].known!r}" if pairs else ""
        raise DataError(
            f"No pairs to learn from: the model was trained on the known side of none of the {len(pairs)}{example}. "
            "Each is the new text and the known one; are they exchanged?"
        )
    if len(kept) < len(pairs):
        left = next(pair for pair in pairs if not own.lists(pair.known))
        warn(
            f"{len(pairs) - len(kept):,} of {len(pairs):,} pairs are left out: the model was never trained on their "
            f"known side, e.g. {left.known!r}.")  # fmt: skip
    return kept


def _second(own: TextEncoder, texts: Sequence[str], vocabulary: int, depth: int, seed: int) -> TextEncoder:
    """An encoder for these texts with weights of its own, as wide as the model's."""
    tokenizer, config = tokenizers.train(texts, vocabulary), _without_added(own)
    changed = {
        "vocabulary": len(tokenizer),
        "depth": depth,
        "length": 2 * config["length"],
        "known": len(vocabulary_ids(texts)),
    }
    # built as a file's parts are: within what one may ask for
    new: TextEncoder = drawn(lambda: nets.build({**config, **changed, "name": "text"}), seed, Stream.LANGUAGE_PAIRS)
    new.set_vocabulary(tokenizer, texts)
    if depth == config["depth"]:
        new.layers.load_state_dict(own.layers.state_dict())  # how words act on one another is alike everywhere
    return new


def _extended(second: TextEncoder, texts: Sequence[str]) -> TextEncoder:
    """A copy of a second encoder, with the words of more texts in its list."""
    listed = sorted({*vocabulary_ids(texts), *(second.known.tolist() if second.config["known"] else ())})
    new = cast("TextEncoder", nets.build({**second.config, "known": len(listed), "name": "text"}))
    new.load_state_dict({**second.state_dict(), "known": torch.tensor(listed)})
    return new


def _without_added(encoder: TextEncoder) -> dict[str, Any]:
    """An encoder's keywords; its added tokens are none of them."""
    return {key: value for key, value in encoder.config.items() if key != "added"}


def _alone(encoder: TextEncoder, texts: Sequence[str]) -> TextEncoder:
    """A copy of a text encoder without another beside it.

    One that lists no words takes those of ``texts`` that look known to it: it will encode such texts alone.
    """
    texts = [text for text in texts if all(encoder.knows(token) for token in normalized(text).split())]
    config = _without_added(encoder)
    alone = TextEncoder(**(config if config["known"] else {**config, "known": len(vocabulary_ids(texts))}))
    if encoder.signs:  # words that a fine-tuned model has learned stay its own
        rows = [row.detach() for row in encoder.added_rows]
        alone.add_tokens(dict(zip(encoder.signs, rows, strict=True)))
    alone.load_state_dict(
        {k: v for k, v in encoder.state_dict().items() if not k.startswith("student_encoder.")}, strict=False
    )
    if not encoder.config["known"]:
        alone.set_vocabulary(encoder.tokenizer, texts)
    return alone.eval().requires_grad_(False)


def distill(
    model: Model,
    student: TextEncoder,
    texts: Texts,
    known: Sequence[str],
    config: Mapping[str, Any],
    chosen: TrainingOptions,
) -> None:
    """Train ``student`` so that the denoiser's attention responds to its states as to those of known texts.

    Args:
        model: A text-to-image model; frozen, and moved to the device of the run.
        student: What is trained.
        texts: Draws a batch: texts for the student, and the known texts that mean the same.
        known: Texts that the model understands, for runs in which queries are collected.
        config: What two runs must share to be one.
        chosen: Of the run.
    """
    device = place(chosen.device)
    net = _native(model.to(device))[1]
    old, caption_mean = net.text_encoder, net.caption_mean
    layers, bank = _queries(model, known, chosen.seed)

    def draw(step: int) -> tuple[list[str], list[str], Whole]:
        g = generator(chosen.seed, Stream.LANGUAGE_PAIRS, step)
        new, same = texts(g)
        return new, same, Whole(tuple(torch.randint(len(queries), (SHOWN,), generator=g) for queries in bank))

    def loss(batch: tuple[list[str], list[str], Sequence[Tensor]]) -> Tensor:
        new, same, picked = batch
        mine = student(student.tokens(new).to(device))
        with torch.no_grad():
            theirs = old(old.tokens(same).to(device))
        total = _apart(mine[2], theirs[2])
        if caption_mean is not None:  # what the vector is most used for
            with torch.no_grad():
                wanted = caption_mean(theirs[2])
            total = (total + _apart(caption_mean(mine[2]), wanted)) / 2
        for layer, queries, some in zip(layers, bank, picked, strict=True):
            x = queries[some].expand(len(new), -1, -1)
            with torch.no_grad():
                wanted = layer(x, theirs[0], theirs[1])
            total = total + _apart(layer(x, mine[0], mine[1]), wanted)
        return total / (len(layers) + 1)

    train(Task(
        {"student": Part(student, loss, chosen.optimizer, chosen.lr)}, draw, config,
        counted(len(known), "known text"), chosen.usual_examples, "add-language", updates=Updates(warmup=100),
    ), chosen)  # fmt: skip


def _apart(mine: Tensor, wanted: Tensor) -> Float[Tensor, ""]:
    """Squared difference, as a part of how much ``wanted`` varies over the texts.

    What hardly varies (a layer that ignores the texts of this batch) counts by a thousandth of its size instead, so
    that it cannot drown all others.
    """
    everything = gathered(wanted)
    varies, size = (everything - everything.mean(0)).square().mean(), everything.square().mean()
    return (mine - wanted).square().mean() / torch.maximum(varies, 1e-3 * size).clamp(min=1e-8)


def _queries(
    model: Model, texts: Sequence[str], seed: int, runs: int = 64, steps: int = 12
) -> tuple[list, list[Tensor]]:
    """The denoiser's cross-attention layers, and for each some of its queries in runs with these texts."""
    inputs: dict[nn.Module, list[Tensor]] = {}
    g = generator(seed, Stream.LANGUAGE_QUERIES)

    def note(module: nn.Module, args: tuple) -> None:
        if len(args) > 1 and args[1] is not None:
            x = args[0].detach().flatten(0, 1)
            inputs.setdefault(module, []).append(x[torch.randint(len(x), (128,), generator=g)])

    net = _native(model)[1]
    hooks = [m.register_forward_pre_hook(note) for m in net.modules() if isinstance(m, Attention)]
    try:
        chosen = [str(texts[i]) for i in torch.randint(len(texts), (runs,), generator=g).tolist()]
        table = model.table(steps, "dpmpp_2m")
        with torch.no_grad():
            x = table.sigmas[0] * initial(range(runs), model.shape).to(model.device)
            samplers.final(samplers.run(cfg(model.denoise, 2.0), x, table, model.encode_prompt(chosen), range(runs)))
    finally:
        for hook in hooks:
            hook.remove()
    if not inputs:
        raise InputError("This model's net has no cross-attention to its captions.")
    return list(inputs), [torch.cat(rows) for rows in inputs.values()]
