"""``export``: a folder with model, card and preview, that can be pushed to a model hub as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..models import Model, export_folder
from ..models.card import card
from ..options import fill
from .generation.options import ExportOptions
from .generation.sample import sample
from .loading import loaded, of_run


def export(model: Model | str | Path, folder: str | Path, **options: Any) -> Path:
    """Write model file, model card, configuration and a preview of ``n`` samples into ``folder``.

    ``hf upload NAME folder`` then shares it. The card says what the run measured and nothing else.

    Args:
        model: A model, a model file or a training run's folder.
        folder: It is made if need be.
        options: See :class:`ExportOptions <fastdiffusion.tasks.generation.options.ExportOptions>`: name, license,
            data_license, and of the preview n, prompt, steps, scale, seed, ...
    """
    chosen = fill(ExportOptions, **options)
    rest = of_run(vars(chosen))
    notes = {key: rest.pop(key) for key in ("name", "license", "data_license")}
    ready = loaded(model, chosen)
    ready = replace(ready, info={**ready.info, **{key: value for key, value in notes.items() if value is not None}})
    return export_folder(ready, folder, card(ready), sample(ready, **rest)._repr_png_())
