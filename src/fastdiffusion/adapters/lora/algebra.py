"""What can be computed with LoRAs: several as one, a smaller rank, one that leads from a model to its fine-tune."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...io.checkpoints import read_safetensors
from ...models import Model
from .. import tokens
from .layers import CONVOLUTIONS
from .reading import File, opened_file, placed_updates, split_scale
from .writing import Key, Matrices

KINDS = (nn.Linear, *CONVOLUTIONS)


class Combined(NamedTuple):
    """One LoRA.

    Attributes:
        matrices: Of each layer, with alpha equal to the rank.
        added: Its tokens.
        kept: Part of the squared size of the exact change that it has, 1 where it is exact.
    """

    matrices: Matrices
    added: list[tokens.Token]
    kept: float = 1.0


def opened(model: Model, loras: Sequence[str | Path]) -> Combined:
    """Files, each with its scale, as one LoRA that does what all together do: ranks add up.

    Raises InputError for a file that changes more than products of two matrices can (whole differences, biases).
    """
    ups: dict[Key, list[Tensor]] = {}
    downs: dict[Key, list[Tensor]] = {}
    added: list[tokens.Token] = []
    for path, scale in map(split_scale, loras):
        content = read_safetensors(path)
        if (alone := tokens.of_file(model, path, *content)) is not None:
            added.append(alone)
            continue
        file: File = opened_file(path, scale, *content)
        added += file.tokens
        for (part, layer, name), update, place in placed_updates(model, file):
            if update.down is None or update.mid is not None or name == "bias":
                raise InputError(
                    f"{path.name} changes {layer} by more than two small matrices. Merge it while sampling: "
                    f"--lora {path.name}."
                )
            weight = model.modules[part].get_submodule(layer).weight
            assert isinstance(weight, Tensor)
            up = update.up.float().flatten(1)[place.take] * update.factor
            if not bool(up.isfinite().all() and update.down.isfinite().all()):
                raise InputError(f"{layer} of {path.name} is not finite. Take another copy of the file.")
            whole = up.new_zeros(len(weight), up.shape[1])
            whole[place.put] = up
            ups.setdefault((part, layer), []).append(whole)
            downs.setdefault((part, layer), []).append(update.down.float().reshape(-1, *weight.shape[1:]))
    names = [token.name for token in added]
    if len(set(names)) < len(names):
        raise InputError("Two of these files have a token of the same name. Train one of them under another.")
    matrices = {}
    for key, parts in ups.items():
        down, up = torch.cat(downs[key]), torch.cat(parts, 1)
        matrices[key] = (down, up.reshape(*up.shape, *[1] * (down.ndim - 2)), float(len(down)))
    return Combined(matrices, added)


def resized(lora: Combined, rank: int) -> Combined:
    """The nearest LoRA of at most ``rank``, by the singular values of each layer's change (Eckart and Young 1936)."""
    if rank < 1:
        raise InputError(f"rank must be at least 1, got {rank}. Try 4.")
    matrices, kept, total = {}, 0.0, 0.0
    for key, (down, up, alpha) in lora.matrices.items():
        (q_up, r_up), (q_down, r_down) = (
            torch.linalg.qr(t) for t in (up.double().flatten(1), down.double().flatten(1).T)
        )
        u, s, v = torch.linalg.svd(r_up @ r_down.T * (alpha / len(down)))
        some = min(rank, len(s))
        root = s[:some].sqrt()
        small_up, small_down = q_up @ u[:, :some] * root, (q_down @ v.T[:, :some] * root).T
        total, kept = total + float(s.square().sum()), kept + float(s[:some].square().sum())
        new_down = small_down.float().reshape(some, *down.shape[1:])
        matrices[key] = (new_down, small_up.float().reshape(len(up), some, *up.shape[2:]), float(some))
    return Combined(matrices, lora.added, kept / total if total else 1.0)


def extracted(base: Model, tuned: Model, rank: int) -> Combined:
    """The LoRA of at most ``rank`` nearest to the difference between a model and one that was trained from it.

    Linear layers and convolutions alone: what else was trained is not in it, and counts as lost in ``kept``.
    Raises InputError where the two have other layers, or do not differ.
    """
    matrices, kept, total = {}, 0.0, 0.0
    for part, net in base.modules.items():
        other = tuned.modules.get(part)
        theirs = {} if other is None else dict(other.named_parameters())
        layers = {f"{name}.weight" for name, m in net.named_modules() if isinstance(m, KINDS) and _plain(m)}
        for name, weight in net.named_parameters():
            if name not in theirs or theirs[name].shape != weight.shape:
                raise InputError(f"The two models differ in their layers ({name}): one was not trained from the other.")
            change = (theirs[name].detach().double() - weight.detach().double()).cpu()
            total += (size := float(change.square().sum()))
            if name not in layers or size == 0:
                continue
            u, s, v = torch.linalg.svd(change.flatten(1), full_matrices=False)
            some = min(rank, len(s))
            kept += float(s[:some].square().sum())
            root = s[:some].sqrt()
            down = (root[:, None] * v[:some]).float().reshape(some, *weight.shape[1:])
            up = (u[:, :some] * root).float().reshape(len(weight), some, *[1] * (weight.ndim - 2))
            matrices[part, name.removesuffix(".weight")] = (down, up, float(some))
    if not matrices:
        raise InputError("The two models have the same weights: there is nothing to extract.")
    return Combined(matrices, [], kept / total)


def _plain(module: nn.Module) -> bool:
    return getattr(module, "groups", 1) == 1
