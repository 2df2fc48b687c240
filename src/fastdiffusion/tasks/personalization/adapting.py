"""What of a model is trained: rows of a new word, a LoRA, or all of the network; and the files that come of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...adapters import export_pipeline, tokens
from ...adapters.copies import copied
from ...adapters.lora import Lora
from ...adapters.lora.writing import write
from ...device import choose_precision, device_of
from ...errors import InputError
from ...models import Model, save
from ...models import folder as model_folder
from ...models.native import own_denoiser
from ..loading import HUB, LoadOptions, loaded
from .options import AdaptationOptions

RATES = {"embedding": 0.2, "lora": 3e-3, "dreambooth": 3e-3, "full": 3e-4}
OTHERS = {"lora": 3e-4, "dreambooth": 3e-4}  # of another program's checkpoint
ROWS = 0.18  # the rate of the rows of a new word beside other weights, for their size: near that of rows alone
FILES = {"embedding": "embedding.safetensors", "full": "model.safetensors"}
ADAPTED = ("rank", "alpha", "targets", "dropout", "text_encoder", "gradient_checkpointing", "seed")  # options of it
OWN_PARTS = ("text_encoder.", "caption_mean.")  # in the network of a native text-to-image model


Options = TypeVar("Options", bound=AdaptationOptions)


def opened_base(model: Model | str | Path, options: Options) -> tuple[Model, Options]:
    """What is taught, and the options that remain.

    A checkpoint of another program is not trained itself: where the run computes in bfloat16, its weights are of that,
    which is half the memory. What is trained beside them is in float32.
    """
    device = device_of(options.device)
    other = not isinstance(model, Model) and (str(model).startswith(HUB) or model_folder.is_other(model))
    if other and getattr(options, "method", "") == "full":
        return loaded(model, LoadOptions(device=options.device, precision="float32")), options
    if not other or choose_precision(options.precision, device) != "bfloat16":
        return loaded(model, options.device), options
    base = loaded(model, LoadOptions(device=options.device, precision="bf16"))
    return base, replace(options, precision="float32")


@dataclass
class Adaptation:
    """A copy of a model, of which a part is trained.

    Attributes:
        base: The model as it was.
        model: The copy, which shares all weights with it that are not trained.
        part: What is trained, as one module.
        rows: The rows of the new word, which are in ``part``; empty without one.
        lora: Its LoRA, if it has one.
        token: The new word; "" without one.
        method: A name in ``choices.PERSONALIZATIONS``.
    """

    base: Model
    model: Model
    part: nn.Module
    rows: Mapping[str, nn.Parameter]
    lora: Lora | None
    token: str
    method: str

    @property
    def file(self) -> str:
        """Name of the file that is written; of all weights of another program's checkpoint a folder."""
        if self.method == "full" and own_denoiser(self.base.denoise) is None:
            return "model"
        return FILES.get(self.method, "lora.safetensors")

    @property
    def reads_texts(self) -> bool:
        """Whether the text encoders are part of what is trained."""
        names = {part for part, _ in self.lora.layers} if self.lora is not None else set()
        inner = any(layer.startswith("text_encoder.") for _, layer in (self.lora.layers if self.lora else ()))
        return bool(self.rows) or inner or any(name.startswith("text_encoder") for name in names)

    @property
    def rate(self) -> float:
        """The usual highest learning rate."""
        own = own_denoiser(self.base.denoise) is not None
        return RATES[self.method] if own else OTHERS.get(self.method, RATES[self.method])

    def optimizer(self, module: nn.Module, lr: float) -> list[Any]:
        """AdamW without decay; rows move in proportion to how large the rows of their encoder are.

        Beside other weights they have a rate of their own: these can be slow, and forget little, and the word be fast.
        """
        own = list(self.rows.values())
        others = [p for p in module.parameters() if p.requires_grad and not any(p is row for row in own)]
        groups: list[dict[str, Any]] = [{"params": others}] if others else []
        for row in own:
            size = float(row.detach().square().mean().sqrt())
            rate = 1.0 if self.method == "embedding" else ROWS / lr
            groups.append({"params": [row], "factor": max(size, 1e-3) * rate})
        return [torch.optim.AdamW(groups, lr, betas=(0.9, 0.99), weight_decay=0.0)]

    def added(self) -> list[tokens.Token]:
        """The new word as it is now."""
        rows = {part: row.detach().cpu().float().clone() for part, row in self.rows.items()}
        return [tokens.Token(self.token, rows)] if rows else []

    def write(self, folder: Path, notes: Mapping[str, Any]) -> Path:
        """Write what was trained into a folder."""
        path = folder / self.file
        if self.method == "embedding":
            tokens.write(path, self.base, self.added()[0])
        elif self.lora is not None:
            write(path, self.base, self.lora.matrices(), self.added(), notes={"base": self.base.id, **notes})
        elif own_denoiser(self.base.denoise) is not None:
            save(self.model, path)
        else:
            self._write_folder(path)
        return path

    def _write_folder(self, path: Path) -> None:
        """In the layout of diffusers; it is opened again and compared, on the CPU."""
        new, device = path.with_name(f".{path.name}.new"), self.model.device
        shutil.rmtree(new, ignore_errors=True)  # of a run that was killed
        try:
            export_pipeline(
                self.model.to("cpu"), new, lambda made: loaded(made, LoadOptions(device="cpu", tuned=False))
            )
        finally:
            self.model.to(device)
        shutil.rmtree(path, ignore_errors=True)  # only now: the one of before stands until the new one is whole
        new.rename(path)


def adapt(
    base: Model,
    method: str,
    token: str = "",
    class_name: str = "",
    vectors: int = 1,
    *,
    rank: int = 8,
    alpha: float | None = None,
    targets: str = "auto",
    dropout: float = 0.0,
    text_encoder: bool = False,
    gradient_checkpointing: bool = False,
    seed: int = 0,
) -> Adaptation:
    """A copy of a model whose chosen part asks for gradients.

    Raises InputError for a token that is a word already, and for what a full fine-tune of another program's checkpoint
    cannot hold: a new word, and text encoders.
    """
    native = own_denoiser(base.denoise) is not None
    if method == "full" and not native and token:
        such = " or ".join(map(repr, tokens.rare_words(base)))
        raise InputError(
            f"A folder of another program has no place for a new word: it takes one that the model has and rarely met, "
            f"and {token!r} is none. {f'Take {such}, with --class-name; or train' if such else 'Train'} a LoRA; or "
            "finetune with captions."
        )
    if method == "full" and not native and text_encoder:
        raise InputError("All weights are trained of the denoiser alone. Leave --text-encoder out, or train a LoRA.")
    started = [tokens.Token(token, _first_rows(base, class_name, vectors, seed))] if token else []
    if token:
        tokens.check_new(base, token)
        model = tokens.with_tokens(base, started)
    else:
        model = copied(base, {}, {"trained": [method]})
    if method == "full":
        weights = {id(p): p.detach().clone() for p in model.modules["net"].parameters()}
        model = copied(model, weights, {"trained": [method]})
    for module in model.modules.values():
        module.requires_grad_(False)
    net: Any = model.modules["net"]
    if gradient_checkpointing and getattr(net, "_supports_gradient_checkpointing", False):
        net.enable_gradient_checkpointing()
    rows = tokens.parameters(model, token) if token else {}
    for row in rows.values():
        row.requires_grad_(True)
    part, lora = nn.ModuleDict(), None
    if rows:
        part["tokens"] = nn.ParameterDict(rows)
    if method in ("lora", "dreambooth"):
        names = [name for name in model.modules if name.startswith(("net", "text_encoder") if text_encoder else "net")]
        left_out = () if text_encoder else OWN_PARTS
        targets = targets if targets != "auto" else "all" if native else "attention"
        chosen = {name: model.modules[name] for name in names}
        part["lora"] = lora = Lora(chosen, targets, rank, alpha, dropout, seed, left_out)
    if method == "full":
        for name, p in net.named_parameters():
            p.requires_grad_(text_encoder or not name.startswith(OWN_PARTS))
        for row in rows.values():
            row.requires_grad_(True)
        part = nn.ModuleDict({"net": net})
    return Adaptation(base, model, part, rows, lora, token, method)


def _first_rows(model: Model, class_name: str, vectors: int, seed: int) -> dict[str, Tensor]:
    """What a new word starts as: the rows of known words, in turn; further ones a little apart."""
    draw, made = torch.Generator().manual_seed(seed), {}
    for part, rows in tokens.rows_of_text(model, class_name).items():
        if not len(rows):
            raise InputError(f"{class_name!r} is no word that this model has. Give another with --class-name.")
        own = rows.mean(0, keepdim=True) if vectors == 1 else rows[[i % len(rows) for i in range(vectors)]]
        apart = 0.1 * rows.std() * torch.randn(own.shape, generator=draw).to(own)
        apart[: 1 if vectors == 1 else len(rows)] = 0
        made[part] = own + apart
    return made
