"""``export``: a folder with model, card and preview, that can be pushed to a hub, or with files of other programs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import choices
from ..errors import unknown
from ..models import Model, export_folder
from ..models.card import card
from ..options import fill
from .generation.options import ExportOptions
from .generation.sample import sample
from .loading import LoadOptions, loaded, of_run


def export(model: Model | str | Path, folder: str | Path, **options: Any) -> Path:
    """Write model file, model card, configuration and a preview of ``n`` samples into ``folder``.

    ``hf upload NAME folder`` then shares it. The card says what the run measured and nothing else. Another ``format``
    writes the networks for another program, without card and preview, once they answer as torch does.

    Args:
        model: A model, a model file or a training run's folder.
        folder: It is made if need be.
        options: See :class:`ExportOptions <fastdiffusion.tasks.generation.options.ExportOptions>`: format, name,
            license, data_license, and of the preview n, prompt, steps, scale, seed, ...
    """
    chosen = fill(ExportOptions, **options)
    rest = of_run(vars(chosen))
    notes = {key: rest.pop(key) for key in ("name", "license", "data_license")}
    if chosen.format not in choices.EXPORTS:
        raise unknown("format", chosen.format, choices.EXPORTS)
    if rest.pop("format") != "fastdiffusion":
        return _for_another(loaded(model, replace(chosen, device="cpu")), Path(folder), chosen.format)
    ready = loaded(model, chosen)
    ready = replace(ready, info={**ready.info, **{key: value for key, value in notes.items() if value is not None}})
    return export_folder(ready, folder, card(ready), sample(ready, **rest)._repr_png_())


def _for_another(model: Model, folder: Path, format: str) -> Path:
    from ..adapters import export_networks, export_pipeline

    if format == "diffusers":
        export_pipeline(model, folder, partial(loaded, options=LoadOptions(device="cpu", tuned=False)))
    else:
        export_networks(model, folder, format)
    return folder
