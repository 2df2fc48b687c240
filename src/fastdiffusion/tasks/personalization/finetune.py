"""``finetune``: a model, taught a domain from images with captions, and held to what it knew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ...adapters import with_loras
from ...data import Dataset
from ...data.dataset import digest
from ...errors import DataError, warn
from ...io.images import safe_name
from ...models import Model
from ...options import fill
from ...training import report as reports
from ...training.trainer import check
from ..loading import loaded
from .adapting import ADAPTED, adapt, opened_base
from .course import Course, kept_step, notes_of, run
from .images import opened
from .objective import refuse_distilled
from .options import FinetuneOptions
from .result import PersonalizationResult
from .retention import Retention, compared_prompts, own_images, prompts_of
from .watching import images_retained

WATCHED = 16  # prompts whose answers are measured; none of them is trained on
DROPPED = 0.1  # part of the captions that is left out, for guidance


def finetune(model: Model | str | Path, data: Dataset | str | Path, **options: Any) -> PersonalizationResult:
    """Teach a model a domain; the same call goes on where the last one stopped.

    It ends, and keeps the best step, before held-out images come out worse or the model forgets too much.

    Args:
        model: A text-to-image model, of this package or of another family.
        data: Images with captions beside them; or a data set. Shapes are kept.
        options: See :class:`FinetuneOptions <fastdiffusion.tasks.personalization.options.FinetuneOptions>`: retain,
            method, rank, steps, ... The run goes to ``runs/NAME``, after the folder.

    Raises:
        InputError: A distilled model, an option that does not exist.
        DataError: Images without captions, for a model that takes prompts.
    """
    chosen = fill(FinetuneOptions, **options)
    chosen = replace(chosen, steps=chosen.budget["steps"], optimizer="adamw")
    check(chosen)
    base, chosen = opened_base(model, chosen)
    refuse_distilled(base)
    examples = opened(base, data, chosen.size, chosen.holdout, chosen.seed, aspect="bucket")
    lacking = sum(not own for own in examples.captions)
    if base.conditioner is not None and lacking:
        raise DataError(
            f"{lacking} of {len(examples.captions)} images of {examples.name!r} have no caption. Put a .txt file of "
            "the same name beside each; or, for one subject or style without captions, personalize."
        )
    for note in examples.notes:
        warn(note)
    chosen = chosen.in_runs(safe_name(examples.name))
    lora = {name: getattr(chosen, name) for name in ADAPTED}
    adaptation = adapt(base, chosen.method, **lora)
    watched, kept = prompts_of(chosen.prompts, WATCHED, chosen.retain)
    own = own_images(base, kept, chosen.seed + 1000, chosen.size) if kept else []
    retention = Retention(base, watched, own_images(base, watched, chosen.seed, chosen.size), chosen.seed)
    shown = [*(examples.captions[i][0] for i in examples.held_out[:4] if examples.captions[i]), *watched[:4]]
    compared = compared_prompts(chosen.prompts, kept, (chosen.steps or chosen.usual_steps) * chosen.batch_size)
    names = ("method", "retain", "rank", "alpha", "targets", "dropout", "text_encoder", "lr", "batch_size", "floor")
    identity = {name: str(getattr(chosen, name)) for name in names}
    identity |= {"model": base.id, "watched": digest(watched, kept)}
    course = Course(
        adaptation, examples, (), "", list(zip(kept, own, strict=True)), retention, shown, compared, DROPPED, identity
    )
    arguments = {"model": str(model), "data": str(data)} if isinstance(model, str | Path) else {}
    trainer, watch = run(course, chosen, "finetune", arguments)
    place = Path(str(chosen.folder))
    file, page = place / adaptation.file, place / reports.FILE
    notes = notes_of(watch, trainer, chosen)
    ready = loaded(file, chosen.device) if chosen.method == "full" else with_loras(base, [file]).eval()
    return PersonalizationResult(
        place, file, ready, page if page.exists() else None, "", kept_step(watch, chosen), tuple(watch.looks),
        (*examples.notes, *notes), images_retained(place)[0],
    )  # fmt: skip
