"""A language for a checkpoint of another program: a student of its text encoders, which stay as they are.

The student learns to answer a text with the condition that the checkpoint's own encoders give the text that means the
same, row by row: as AltCLIP's did (Chen et al. 2022, arXiv:2211.06679, stage 1), but for all rows. Neither images nor
the network are needed, and the same few lines serve every family.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...adapters.conditioners import student as students
from ...data.emoji.translations import Pair
from ...errors import InputError, counted
from ...models import Model
from ...nets import tokenizer as tokenizers
from ...nets.layers import drawn
from ...nets.student import StudentEncoder, recognized
from ...nets.text import normalized
from ...noise import Stream, generator
from ...training.distributed import place
from ...training.report import TrainingResult
from ...training.task import Part, Task, Updates
from ...training.trainer import train
from ...types import Cond
from .options import AddLanguageOptions
from .pairs import batches

FILE = "language.safetensors"
WIDEST = 768  # of a student: of some teachers a row is 30,000 numbers
LOOKED_AT = 1024  # texts whose conditions say what the teacher's are like
KEPT = 1 << 31  # bytes of conditions that are kept, and not encoded anew


class Teacher:
    """The conditions of known texts, by a checkpoint's own encoders.

    Args:
        model: The checkpoint.
        texts: That it will be asked; some of them say how many rows there are, and what texts change.
    """

    def __init__(self, model: Model, texts: Sequence[str]):
        self.family: Any = model.denoise
        self.size, self.kept, self.bytes = model.pixels, dict[str, Cond](), 0
        longest = sorted(texts, key=len)[-LOOKED_AT // 4 :]
        some = list(dict.fromkeys([*longest, *texts[:: max(len(texts) // LOOKED_AT, 1)]]))
        self.looked = Cond.cat([self._one(text) for text in some])
        self._check()
        assert self.looked.emb is not None
        self.rows, self.masked = self.looked.emb.shape[1], self.looked.mask is not None

    def _check(self) -> None:
        """InputError where texts do more than an answer says, or nothing."""
        name, parts = self.family.name, self.looked.parts()
        moved = {part for part, t in parts.items() if bool((t != t[:1]).any())}
        if more := moved - {"emb", "mask", "pooled"}:
            raise InputError(
                f"{name} is conditioned on more of a text than token states and one vector "
                f"({', '.join(sorted(more))}), which a student does not learn. Take another family."
            )
        if "emb" not in moved:
            raise InputError(f"No text changes what {name} is conditioned on: it has no language. Take another family.")

    def __call__(self, texts: Sequence[str]) -> Cond:
        """One row for each text, on the CPU."""
        cond = Cond.cat([self._one(text) for text in texts])
        assert cond.emb is not None
        if not self.masked:
            return cond
        mask = torch.ones(cond.emb.shape[:2], dtype=torch.bool) if cond.mask is None else cond.mask
        more = self.rows - mask.shape[1]  # below 0 for a text longer than those that were looked at
        return cond.with_text(Cond(emb=F.pad(cond.emb, (0, 0, 0, more)), mask=F.pad(mask, (0, more))))

    @torch.no_grad()
    def _one(self, text: str) -> Cond:
        """Of one text; encoded alone, for another batch would move its last bits, and so a run that is resumed."""
        if text in self.kept:
            return self.kept[text]
        cond = self.family.condition([text], self.size).to("cpu")
        if self.bytes < KEPT:
            self.kept[text] = cond
            self.bytes += sum(t.nbytes for t in cond.parts().values())
        return cond


def add_student(model: Model, pairs: Sequence[Pair], chosen: AddLanguageOptions) -> TrainingResult[Model]:
    """The model with a student of its text encoders; see ``multilingual.add_language``, whose arguments these are."""
    students.check(model)
    device = place(chosen.device)
    before, model = model.device, model.to(device)
    known = list(dict.fromkeys(pair.known for pair in pairs))
    teacher = Teacher(model, known)
    old = students.students_of(model)
    if chosen.resume_languages and not old:
        raise InputError("This model has no other languages to go on with. Leave resume_languages out.")
    student = _student(model, teacher, pairs, known, chosen)
    student = _resumed(student, old[0].encoder) if chosen.resume_languages else student
    scales = student.scales.to(device)

    def draw(step: int) -> tuple[list[str], Cond]:
        new, same = texts(generator(chosen.seed, Stream.LANGUAGE_PAIRS, step))
        return new, teacher(same)

    def loss(batch: tuple[list[str], Cond]) -> Tensor:
        new, wanted = batch
        answer, parts = student(student.encoder.tokens(new).to(device)), list[Tensor]()
        assert wanted.emb is not None
        parts.append(((answer.emb - wanted.emb) / scales[0]).square().mean())
        if answer.pooled is not None and wanted.pooled is not None:
            parts.append(((answer.pooled - wanted.pooled) / scales[1]).square().mean())
        if answer.present is not None and wanted.mask is not None:
            parts.append(F.binary_cross_entropy_with_logits(answer.present, wanted.mask.to(answer.present)))
        return torch.stack(parts).mean()

    def write(folder: Any) -> None:
        students.write(folder / FILE, model, student)

    texts = batches(pairs, student.encoder, chosen)
    identity = {
        "words": student.config, "pairs": hashlib.sha256(repr([tuple(p) for p in pairs]).encode()).hexdigest()[:16],
        "model": model.id[:16], "batch_size": chosen.batch_size, "lr": chosen.lr, "keep": chosen.keep,
    }  # fmt: skip
    train(Task(
        {"student": Part(student, loss, chosen.optimizer, chosen.lr)}, draw, identity, counted(len(pairs), "pair"),
        chosen.usual_examples, "add-language", updates=Updates(warmup=100), write=write, file=FILE,
    ), chosen)  # fmt: skip
    student.load_state_dict(students.rounded(student))  # as its file has it
    return TrainingResult.of(students.with_student(model.to(before), student.to(before)), chosen.folder)


def _student(
    model: Model, teacher: Teacher, pairs: Sequence[Pair], known: Sequence[str], chosen: AddLanguageOptions
) -> StudentEncoder:
    """A student with weights of its own, that answers every text with the teacher's mean."""
    new, emb, pooled = [pair.text for pair in pairs], teacher.looked.emb, teacher.looked.pooled
    assert emb is not None and model.conditioner is not None
    tokenizer = tokenizers.train([normalized(text) for text in (*new, *known)], chosen.vocabulary)
    lists, width = recognized(new, known), min(emb.shape[2], WIDEST)
    config = {
        "rows": teacher.rows, "emb": emb.shape[2], "pooled": 0 if pooled is None else pooled.shape[1],
        "masked": teacher.masked, "vocabulary": len(tokenizer), "width": width, "depth": chosen.depth,
        "head": next(head for head in range(64, 0, -1) if width % head == 0),
        "length": model.conditioner.max_tokens or 256, "terms": len(lists[0]), "shared": len(lists[1]),
        "letters": len(lists[2]),
    }  # fmt: skip
    student: StudentEncoder = drawn(lambda: StudentEncoder(**config), chosen.seed, Stream.LANGUAGE_PAIRS)
    student.set_vocabulary(tokenizer, lists)
    student.set_teacher(teacher.looked)
    return student


def _resumed(fresh: StudentEncoder, old: StudentEncoder) -> StudentEncoder:
    """A copy of a student, its tokenizer and weights, that recognizes the texts of a fresh one."""
    lists = {name: getattr(fresh, name) for name in ("terms", "shared", "letters")}
    made = StudentEncoder(**{**old.config, **{name: len(t) for name, t in lists.items()}})
    made.load_state_dict({**old.state_dict(), **lists})
    return made
