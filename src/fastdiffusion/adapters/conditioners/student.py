"""Languages of a checkpoint: students of its text encoders, which encode the prompts of their languages in their place.

A student answers with the condition that the checkpoint's own encoders would give, so the network, guidance and the
prompt language see no difference. All other prompts are encoded as ever, to the bit. A file of one is small, and names
its base.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ...errors import CheckpointError, InputError
from ...io import guarded, untrusted_json
from ...io.atomic import write_bytes
from ...io.checkpoints import fingerprint, stored
from ...models import Model
from ...nets.student import StudentEncoder
from ...version import __version__
from ..copies import carried, copied
from ..texts import Student
from ..tokens import NOTE, texts_of

PART = "student_encoder"  # what a Model calls it; of several, and a number
FORM = 1  # of the files; a later one is refused


def students_of(model: Model) -> tuple[Student, ...]:
    """The students of a model, in the order in which they are asked."""
    return getattr(model.denoise, "students", ())


def with_student(model: Model, encoder: StudentEncoder) -> Model:
    """A new model in which a student encodes the prompts of its languages; the given one is not changed.

    The newest student is asked first.
    """
    check(model)
    encoder = encoder.eval().requires_grad_(False)
    made = copied(model, {}, {"languages": [fingerprint(encoder.state_dict())]})
    denoise: Any = made.denoise
    denoise.students = (Student(encoder.to(model.device)), *students_of(made))
    denoise.__dict__.pop("negative", None)  # a copy of before
    number = len(denoise.students)
    name = PART if number == 1 else f"{PART}_{number}"
    return replace(made, modules={**made.modules, name: encoder}, tables=carried(model))


# ---- files --------------------------------------------------------------------------------------------------------


def write(path: str | Path, model: Model, encoder: StudentEncoder) -> None:
    """Write a student of ``model`` as a safetensors file, atomically; it says what it is for."""
    if Path(path).suffix != ".safetensors":
        raise InputError(f"The file of a language ends in .safetensors, got {str(path)!r}.")
    note = {
        "language": encoder.config, "form": FORM, "version": __version__, "family": model.info.get("family"),
        "base": _base(model), "base_name": model.info.get("name"), "text_encoders": text_encoders(model),
    }  # fmt: skip
    tensors = {name: t.detach().cpu().contiguous() for name, t in rounded(encoder).items()}
    write_bytes(path, safetensors.torch.save(tensors, {"format": "pt", NOTE: json.dumps(note)}))


def rounded(encoder: StudentEncoder) -> dict[str, Tensor]:
    """The tensors of a student as its file has them: numbers in float16."""
    return stored(encoder.state_dict(), torch.float16)


def _base(model: Model) -> str:
    """The hash of a checkpoint's files, whatever was loaded on top of it."""
    return str(getattr(model.denoise, "id", ""))


def text_encoders(model: Model) -> str:
    """What a student was taught by: a hash of the text encoders, the same in float32 and in a copy of half of it."""
    return fingerprint({
        f"{part}.{name}": t.detach().cpu().half()
        for part, text in texts_of(model).items()
        for name, t in text.encoder.state_dict().items()
        if t.is_floating_point()
    })  # fmt: skip


def of_file(
    model: Model, path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> StudentEncoder | None:
    """The student of a file, for ``model``; None for any other file.

    Raises:
        CheckpointError: A damaged file, or one of a newer version.
        InputError: A student of other text encoders.
    """
    try:
        note = dict(untrusted_json.parsed(metadata.get(NOTE, "{}")))
    except (ValueError, TypeError):
        return None
    if "language" not in note:
        return None
    if note.get("form") != FORM:
        raise CheckpointError(f"{path} was written by fastdiffusion {note.get('version')}. Update: pip install -U.")
    same = note.get("base") == _base(model) or note.get("text_encoders") == text_encoders(model)
    if not same:
        raise InputError(
            f"{path.name} is a language for {str(note.get('base_name'))[:80]} ({str(note.get('base'))[:12]}), and this "
            f"model{_named(model)} has other text encoders. Load that one, or teach this one: "
            "fastdiffusion add-language."
        )
    encoder = guarded.module(path, note["language"], StudentEncoder, tensors)
    assert isinstance(encoder, StudentEncoder)
    len(encoder.encoder.tokenizer)  # its merges are checked
    return encoder


def _named(model: Model) -> str:
    name = model.info.get("name")
    return f", {name} ({_base(model)[:12]})," if name and _base(model) else ""


def check(model: Model) -> None:
    """InputError for a model that a student cannot be given to."""
    if not texts_of(model):
        raise InputError(
            "A language can be added to a model that takes prompts. "
            f"{model.info.get('name', 'This one')} has no text encoder."
        )
    if getattr(model.denoise, "clip_skip", 0):
        raise InputError(
            "A language answers as the usual layer of CLIP does, and this model takes another. Leave --clip-skip out."
        )
