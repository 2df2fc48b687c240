"""Added tokens: new words of a text encoder, whose rows were learned from images (textual inversion).

Gal et al. 2022 (arXiv:2208.01618). All other rows of the encoder are shared with the model as it was, to the bit.
"""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import InputError
from ..io import untrusted_json
from ..io.atomic import write_bytes
from ..models import Model
from ..models.native import own_denoiser
from ..nets import TextConditioned
from ..nets.text import TextEncoder, normalized
from ..version import __version__
from .copies import carried, copied
from .texts import Text, of_several_rows

NOTE = "fastdiffusion"  # the entry of a file's metadata that is ours
MOST = 64  # rows of a token, and tokens of a LoRA: of anybody's file
NAME = re.compile(r"[^\s()\[\]{}|:,\\]{2,40}")
OWN = "text_encoder"  # the part that a native model's rows belong to


@dataclass(frozen=True)
class Token:
    """A word and its rows.

    Attributes:
        name: How it is written in prompts, such as "<dog>".
        rows: For each text encoder ("text_encoder", "text_encoder_2", ...) its rows (n, d), in float32.
    """

    name: str
    rows: Mapping[str, Float[Tensor, "n d"]]

    def __post_init__(self) -> None:
        if NAME.fullmatch(self.name) is None:
            raise InputError(
                f"A token is one word without brackets of the prompt language, got {self.name[:40]!r}. Try <subject>."
            )
        if not self.rows or not all(t.ndim == 2 and 0 < len(t) <= MOST for t in self.rows.values()):
            raise InputError(f"{self.name!r} needs 1 to {MOST} rows of each text encoder.")
        if not all(bool(t.isfinite().all()) for t in self.rows.values()):
            raise InputError(f"The rows of {self.name!r} are not finite. Take another copy of the file.")


class Rows(nn.Embedding):
    """An embedding with more rows: the old ones are another's, the new ones are a parameter of their own.

    Args:
        base: The embedding as it is.
        ids: The token numbers of the new rows.
        rows: These rows.
    """

    ids: Tensor

    def __init__(self, base: nn.Embedding, ids: Int[Tensor, " n"], rows: Float[Tensor, "n d"]):
        super().__init__(1, base.embedding_dim, device="meta")
        self.num_embeddings, self.padding_idx = base.num_embeddings, base.padding_idx
        old = isinstance(base, Rows)
        self.weight = base.weight
        self.rows = nn.Parameter(torch.cat([base.rows.detach(), rows]) if old else rows)
        self.register_buffer("ids", torch.cat([base.ids, ids]) if old else ids, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """The rows of token numbers."""
        place = (input[..., None] == self.ids).int()
        added = place.any(-1)
        old = nn.functional.embedding(input.masked_fill(added, 0), self.weight)
        return torch.where(added[..., None], self.rows.to(old.dtype)[place.argmax(-1)], old)


# ---- of a model ---------------------------------------------------------------------------------------------------


def own_encoder(model: Model) -> TextEncoder | None:
    """The text encoder of a native model; None of another's."""
    denoiser = own_denoiser(model.denoise)
    return denoiser.net.text_encoder if denoiser is not None and isinstance(denoiser.net, TextConditioned) else None


def texts_of(model: Model) -> dict[str, Text]:
    """The text encoders of a model of another family, with their tokenizers, as ``Model.modules`` calls them."""
    names = {id(module): name for name, module in model.modules.items()}
    return {names[id(text.encoder)]: text for text in getattr(model.denoise, "texts", ())}


def widths(model: Model) -> dict[str, int]:
    """How wide the rows of each text encoder are; none for a model without prompts."""
    if (encoder := own_encoder(model)) is not None:
        return {OWN: encoder.width}
    return {name: text.encoder.get_input_embeddings().embedding_dim for name, text in texts_of(model).items()}


def rows_of_text(model: Model, text: str) -> dict[str, Float[Tensor, "n d"]]:
    """The rows that each text encoder has for some words: where a new token starts."""
    if (encoder := own_encoder(model)) is not None:
        conditioner: Any = model.conditioner
        known = normalized(conditioner.reading(text).text)  # the nearest that it knows
        return {OWN: encoder.embed.weight[encoder.tokenizer.encode(known)].detach().float()}
    rows = {}
    for name, reader in texts_of(model).items():
        ids = reader.tokenizer(text, add_special_tokens=False)["input_ids"]
        rows[name] = reader.encoder.get_input_embeddings().weight[ids].detach().float()
    return rows


def check_new(model: Model, name: str) -> None:
    """InputError unless a token can be added: it must not be a word that the model has."""
    if not widths(model):
        raise InputError("This model takes no prompts, and learns no new word. Take a text-to-image model.")
    if (encoder := own_encoder(model)) is not None:
        known = name in encoder.signs or (not re.search(r"[^\w]", name) and encoder.lists(name))
    else:
        known = any(name in text.tokenizer.get_vocab() or _is_one(text, name) for text in texts_of(model).values())
    if known:
        raise InputError(f"{name!r} is a word that this model has already. Choose a new one, such as '<{name}>'.")


def rare(model: Model, name: str) -> bool:
    """Whether each text encoder has a word as one token, and rarely met it: "sks" of Stable Diffusion.

    Vocabularies are in the order in which their tokens were joined, the most frequent first: it is of the latter half.
    A model of this package knows whole words, and none that is rare in this sense.
    """
    readers = texts_of(model).values()
    ids = [reader.tokenizer(name, add_special_tokens=False)["input_ids"] for reader in readers]
    halves = [len(reader.tokenizer) // 2 for reader in readers]
    return bool(ids) and all(len(own) == 1 and own[0] >= half for own, half in zip(ids, halves, strict=True))


def rare_words(model: Model, n: int = 2) -> list[str]:
    """Some words that are :func:`rare` in a model: DreamBooth's own if it is, else the last of its first vocabulary."""
    found = ["sks"] if rare(model, "sks") else []
    for text in list(texts_of(model).values())[:1]:
        half, size = len(text.tokenizer) // 2, len(text.tokenizer)
        names = (text.tokenizer.decode([i]).strip() for i in range(size - 1, half, -1))
        found += islice((name for name in names if name.isalpha() and len(name) > 2 and rare(model, name)), n)
    return found[:n]


def _is_one(text: Text, name: str) -> bool:
    ids = text.tokenizer(name, add_special_tokens=False)["input_ids"]
    return len(ids) == 1 and ids[0] != text.tokenizer.unk_token_id and bool(re.fullmatch(r"\w+", name))


def with_tokens(model: Model, tokens: Sequence[Token]) -> Model:
    """A new model that has more words; the given one is not changed, and shares all other weights.

    Raises InputError for a token that the model has, or whose rows are not those of its text encoders.
    """
    needed = widths(model)
    for token in tokens:
        check_new(model, token.name)
        fits = {part: rows.shape[1] for part, rows in token.rows.items()}
        if fits != needed:
            raise InputError(
                f"{token.name!r} was learned for another model: its rows are {_listed(fits)}, and this model's text "
                f"encoders take {_listed(needed) or 'none'}. Take the base that it was trained on."
            )
    notes = [[token.name, _hash(token)] for token in tokens]
    made = replace(copied(model, {}, {"tokens": notes}), tables=carried(model))
    for token in tokens:
        _add(made, token)
    return made


def _add(model: Model, token: Token) -> None:
    if (encoder := own_encoder(model)) is not None:
        encoder.add_tokens({token.name: token.rows[OWN]})
        return
    denoise: Any = model.denoise
    parts = {id(module): name for name, module in model.modules.items()}
    changed: dict[int, Any] = {}  # tokenizers, by those that they replace
    for text in dict.fromkeys((*denoise.texts, *denoise.negative.texts)):
        rows = token.rows[parts[id(text.encoder)]]
        names = [token.name, *(f"{token.name}_{i}" for i in range(1, len(rows)))]  # as diffusers has them
        if id(text.tokenizer) not in changed:
            tokenizer = copy.deepcopy(text.tokenizer)
            tokenizer.add_tokens([_added(name) for name in names])
            ids = torch.tensor(tokenizer.convert_tokens_to_ids(names))
            base = text.encoder.get_input_embeddings()
            text.encoder.set_input_embeddings(Rows(base, ids.to(base.weight.device), rows.to(base.weight.device)))
            changed[id(text.tokenizer)] = tokenizer
            _pool_at_the_end(text)
        text.tokenizer = changed[id(text.tokenizer)]
        text.added = of_several_rows(text.tokenizer)
    old = denoise.checkpoint.tokenizers
    tokenizers = {name: changed.get(id(tokenizer), tokenizer) for name, tokenizer in old.items()}
    denoise.checkpoint = replace(denoise.checkpoint, tokenizers=tokenizers)


def _pool_at_the_end(text: Text) -> None:
    """Let CLIP find the mark of the end by its number, and not, as old configurations say, as the largest of all."""
    for module in text.encoder.modules():
        if getattr(module, "eos_token_id", None) == 2:
            module.eos_token_id = text.encoder.config.eos_token_id = text.tokenizer.eos_token_id


def _added(name: str) -> Any:
    from transformers import AddedToken

    whole = re.fullmatch(r"\w(.*\w)?", name) is not None  # "bad" is not a part of "badminton"
    return AddedToken(name, normalized=False, special=False, single_word=whole)


@contextmanager
def as_embeddings(model: Model) -> Iterator[None]:
    """Within it added rows are rows of the text encoders' embeddings, as files of other programs have them."""
    before = {text.encoder: text.encoder.get_input_embeddings() for text in texts_of(model).values()}
    added = {encoder: rows for encoder, rows in before.items() if isinstance(rows, Rows)}
    sizes = {encoder: encoder.config.vocab_size for encoder in added}
    try:
        for encoder, rows in added.items():
            whole = torch.zeros(max(sizes[encoder], int(rows.ids.max()) + 1), rows.embedding_dim).to(rows.weight)
            whole[: len(rows.weight)], whole[rows.ids] = rows.weight.detach(), rows.rows.detach().to(rows.weight)
            encoder.set_input_embeddings(nn.Embedding.from_pretrained(whole))
            encoder.config.vocab_size = len(whole)
        yield
    finally:
        for encoder, rows in added.items():
            encoder.set_input_embeddings(rows)
            encoder.config.vocab_size = sizes[encoder]


def parameters(model: Model, name: str) -> dict[str, nn.Parameter]:
    """The rows of added tokens of each text encoder, to be trained."""
    if (encoder := own_encoder(model)) is not None:
        return {OWN: encoder.added_rows[list(encoder.signs).index(name)]}
    return {part: text.encoder.get_input_embeddings().rows for part, text in texts_of(model).items()}


# ---- files --------------------------------------------------------------------------------------------------------


def keys(model: Model) -> dict[str, str]:
    """What a file calls the rows of each text encoder of a model with several, as diffusers and others do."""
    found = {}
    for part, text in texts_of(model).items():
        kind = type(text.encoder).__name__
        clip = "clip_l" if "clip_l" not in found.values() else "clip_g"
        found[part] = clip if kind.startswith("CLIP") else "t5" if kind.startswith("T5") else part
    return found


def write(path: str | Path, model: Model, token: Token) -> None:
    """Write a token as a file that diffusers' ``load_textual_inversion`` reads: one tensor, or one for each encoder."""
    several = keys(model) if len(token.rows) > 1 else {}
    tensors = {several.get(part, token.name): rows.contiguous() for part, rows in token.rows.items()}
    note = {"token": token.name, "version": __version__}
    write_bytes(path, safetensors.torch.save(tensors, {"format": "pt", NOTE: json.dumps(note)}))


def of_file(model: Model, path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Token | None:
    """The token of a file of embeddings, of this program or another; None for any other file."""
    flat = [t for t in tensors.values() if t.ndim in (1, 2) and t.numel()]
    if not tensors or len(flat) < len(tensors) or any("lora" in key for key in tensors) or len(tensors) > 4:
        return None
    try:
        name = str(untrusted_json.parsed(metadata.get(NOTE, "{}")).get("token", ""))
    except (ValueError, AttributeError):
        name = ""
    rows = {key: t.float().reshape(-1, t.shape[-1]) for key, t in tensors.items()}
    if len(rows) == 1:
        ((key, only),) = rows.items()
        name = name or (path.stem if key == "emb_params" else key)
        part = next((part for part, width in widths(model).items() if width == only.shape[1]), OWN)
        return Token(name, {part: only})
    parts = {key: part for part, key in keys(model).items()}
    if not rows.keys() & {"clip_l", "clip_g", "t5", *parts}:
        return None
    return Token(name or path.stem, {parts.get(key, key): t for key, t in rows.items()})


def packed(tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """Tokens as JSON, for the metadata of a LoRA's file."""
    return [
        {"token": token.name, "rows": {part: _encoded(rows) for part, rows in token.rows.items()}} for token in tokens
    ]


def unpacked(entries: Any) -> list[Token]:
    """The inverse of :func:`packed`; raises InputError for what is no such list."""
    if isinstance(entries, list) and len(entries) > MOST:
        raise InputError(f"A LoRA brings {len(entries):,} tokens; at most {MOST} are read. Take another copy.")
    try:
        return [
            Token(str(entry["token"]), {part: _decoded(text) for part, text in entry["rows"].items()})
            for entry in entries
        ]
    except (KeyError, TypeError, ValueError, AttributeError, safetensors.SafetensorError) as error:
        raise InputError(f"The tokens in a LoRA's metadata cannot be read ({error}). Take another copy.") from None


def _encoded(rows: Tensor) -> str:
    return base64.b64encode(safetensors.torch.save({"rows": rows.contiguous()})).decode()


def _decoded(text: str) -> Tensor:
    return safetensors.torch.load(base64.b64decode(text, validate=True))["rows"].float()


def _hash(token: Token) -> str:
    from ..io.checkpoints import fingerprint

    return fingerprint(dict(token.rows))


def _listed(fits: Mapping[str, int]) -> str:
    return ", ".join(f"{part} {width}" for part, width in fits.items())
