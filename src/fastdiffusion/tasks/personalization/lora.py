"""``lora``: files of LoRAs as one, smaller, taken from a fine-tune, or in other programs' keys."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import choices
from ...adapters import tokens
from ...adapters.lora import algebra
from ...adapters.lora.writing import write
from ...data.dataset import digest
from ...errors import CheckpointError, InputError, UnavailableError, unknown
from ...io import untrusted_json
from ...io.checkpoints import fingerprint, read_safetensors
from ...io.outputs import numbered
from ...models import Model
from ...options import fill
from ..loading import loaded
from .options import LoraOptions

EXTRACTED = 16  # rank of an extracted LoRA where none is given


@dataclass(frozen=True)
class LoraResult:
    """A written LoRA.

    Attributes:
        path: Its file.
        layers: How many layers it changes.
        kept: Part of the squared size of the change that it has; 1 where it is exact.
        notes: What a person should know, in sentences.
    """

    path: Path
    layers: int
    kept: float
    notes: tuple[str, ...] = ()


def lora(
    action: str,
    files: Sequence[str | Path] | str | Path,
    model: Model | str | Path = "emoji",
    out: str | Path = "lora.safetensors",
    device: str | None = None,
    **options: Any,
) -> LoraResult:
    """Compute with LoRAs, and write the result.

    Args:
        action: "merge" makes one of several, each a file or FILE:scale. "resize" makes one of a smaller rank.
            "extract" takes a model that was trained from ``model`` and makes the LoRA between the two. "convert"
            writes one in the keys of another program.
        files: LoRAs, or for "extract" the model that was trained.
        model: The model that they are for.
        out: The file to write; where another lies there (one of ``files``, maybe), NAME-2 and so on.
        device: Where to compute; by default the best there is.
        options: See :class:`LoraOptions`: rank, keys.

    Raises:
        InputError: An action that there is not, or a LoRA for another model.
    """
    chosen = fill(LoraOptions, **options)
    if action not in choices.LORA_ACTIONS:
        raise unknown("action of lora", action, choices.LORA_ACTIONS)
    inputs = [files] if isinstance(files, str | Path) else list(files)
    if not inputs or (action in ("extract", "resize", "convert") and len(inputs) > 1):
        raise InputError(f"lora {action} takes {'at least one file' if action == 'merge' else 'one file'}.")
    if action == "resize" and chosen.rank is None:
        raise InputError("lora resize needs the new rank. Try --rank 4.")
    base = loaded(model, device)
    if action == "extract":
        trained = loaded(inputs[0], device)
        source, made = trained.id, algebra.extracted(base, trained, chosen.rank or EXTRACTED)
    else:
        made = algebra.opened(base, inputs)
        source = fingerprint({f"{key}.{i}": t for key, (*two, _) in made.matrices.items() for i, t in enumerate(two)})
        made = algebra.resized(made, chosen.rank) if chosen.rank is not None else made
    recipe = digest(action, source, chosen.rank, chosen.keys, base.id, tokens.packed(made.added))
    place = next(p for p in numbered(Path(out)) if not os.path.lexists(p) or _recipe(p) == recipe)
    if not os.path.lexists(place):
        write(place, base, made.matrices, made.added, chosen.keys, {"base": base.id, "recipe": recipe})
    notes = [f"It has {made.kept:.1%} of the change's squared size."] if made.kept < 0.9999 else []
    if made.added:
        notes.append(f"It brings {', '.join(token.name for token in made.added)}.")
    return LoraResult(place, len(made.matrices), made.kept, tuple(notes))


def _recipe(path: Path) -> str:
    """What a LoRA was made from and how; "" where its files do not say. Not its bits: factors vary in rounding."""
    try:
        metadata, _ = read_safetensors(path)
        return str(untrusted_json.parsed(metadata.get(tokens.NOTE, "{}")).get("recipe", ""))
    except (CheckpointError, UnavailableError, ValueError, AttributeError):
        return ""
