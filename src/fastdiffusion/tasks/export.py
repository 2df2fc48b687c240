"""``export``: a folder with model, card and pictures, that can be pushed to a model hub as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..models import Model, export_folder
from ..models.card import card
from .generation.sample import loaded, sample


def export(
    model: Model | str | Path,
    folder: str | Path,
    name: str | None = None,
    license: str | None = None,
    data_license: str | None = None,
    n: int = 32,
    steps: int = 12,
    scale: float | None = None,
    prompt: str | None = None,
    seed: int = 0,
) -> Path:
    """Write model file, model card, configuration and a preview of ``n`` samples into ``folder``.

    ``hf upload NAME folder`` then shares it. The card says what the run measured and nothing else.

    Args:
        model: A model, a model file or a training run's folder.
        folder: It is made if need be.
        name: Title of the card; by default what the model's data are called.
        license: Of the model, an SPDX identifier such as "apache-2.0".
        data_license: Of the pictures that it was trained on.
        n: Samples in the preview.
        steps: Denoiser calls for each.
        scale: Classifier-free guidance.
        prompt: What the preview shows, for a model of words; several in lines.
        seed: Of the first.
    """
    ready = loaded(model)
    notes = {"name": name, "license": license, "data_license": data_license}
    ready = replace(ready, info={**ready.info, **{key: value for key, value in notes.items() if value is not None}})
    shown = sample(ready, prompt, n=n, steps=steps, scale=scale, seed=seed)
    return export_folder(ready, folder, card(ready), shown._repr_png_())
