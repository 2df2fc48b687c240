"""The model card: what a person should know before using a model, from what was measured while it was made."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Mapping
from typing import Any

from ..errors import counted
from .model import Model
from .native import own_denoiser
from .serialization import notes

# what Model.info may say of training, and how the card calls it; any other entry is listed under its own name
LABELS = {
    "data": "data set",
    "net": "network",
    "pictures": "images",
    "steps": "training steps",
    "images_seen": "images seen (with repetition)",
    "minutes": "minutes of training",
    "train_loss": "training loss",
    "validation_loss": "validation loss",
    "sigma_data": "standard deviation of the data",
    "ema": "length of the weights' average (sigma_rel)",
    "fastdiffusion": "made with fastdiffusion",
}
_APART = {"name", "license", "data_license", "metrics", "intended_use", "limits"}  # entries with a place of their own


def card(model: Model, preview: str | None = "preview.png") -> str:
    """A model card in Markdown with a YAML header, filled from the model and its ``info``; ``preview`` is shown in it.

    ``info`` may hold, besides the entries of ``LABELS``: ``name``, ``license`` and ``data_license`` (SPDX identifiers),
    ``metrics`` (name to value, or to (low, value, high)), ``intended_use`` and ``limits`` (sentences). Nothing is
    claimed that is not there, and no text can bring markup of its own.
    """
    info = {"sigma_data": model.sigma_data, **notes(model)["info"]}
    name, data = info.get("name", "A fastdiffusion model"), info.get("data", "unnamed data")
    shape, near = ("x".join(map(str, sides)) for sides in (model.image_shape, model.image_shape[1:]))
    denoiser = own_denoiser(model.denoise)
    predicts = "" if denoiser is None else f", parameterization {_text(denoiser.parameterization)}"
    classes = f", {counted(len(model.classes), 'class')}" if model.classes else ", without classes"
    chosen = f" --classes {_shell(model.classes[:2])}" if model.classes else ""
    names = [*map(_text, model.classes[:20]), *(["..."] if len(model.classes) > 20 else [])]
    listed = f"Classes: {', '.join(names)}" if names else "It has no classes to choose from."
    shown = f"![Samples]({preview})" if preview else "No preview was stored with it."
    limits = _text(info["limits"]) if "limits" in info else "Limits were not studied beyond what stands above."
    kind = "class-conditional" if model.classes else "unconditional"
    classes, use = f"samples{classes}", f"sample model.safetensors -n 16 --steps 12 --seed 0{chosen}"
    if model.conditioner is not None:
        kind, listed, classes = "text-to-image", "It draws what words say, as its captions said it.", "samples"
        use = "sample model.safetensors 'some words' -n 16 --steps 12 --seed 0"
    elif model.corruption is not None:
        kind, classes, undoes = "restoration", "images", shlex.quote(model.corruption.split(" | ")[0])
        use = f"restore photo.jpg --corruption {undoes} --model model.safetensors"
        listed = f"It undoes: {_text(model.corruption)}."
    return f"""{_header(info, kind)}
# {_text(name)}

A {kind} diffusion model of {_text(data)}: {shape} {classes}, {model.parameters_count:,}
parameters{predicts}.

{shown}

## Use

```bash
pip install fastdiffusion
fastdiffusion {use}
```

The file holds numbers and a JSON configuration, no code; its checksum is verified when it is loaded.
{listed}

## Intended use

{_text(info.get("intended_use", "Study, teaching and experiments with generative models."))}

## Training

{_table({label: info[key] for key, label in LABELS.items() if key in info} | _others(info))}

Licence of the training data: {_text(info.get("data_license", "not stated"))}.
Noise levels: {model.sigma_min:g} to {model.sigma_max:g}.

## Measured

{_measured(info.get("metrics"))}

## Limits

{limits}
It knows only what its training data show, with their gaps and biases, and may reproduce single training images.
It is made for images near {near}; other sizes, and noise levels outside of its range, were not measured.
Licence of the model: {_text(info.get("license", "not stated"))}.
"""


def _header(info: Mapping[str, Any], kind: str) -> str:
    """YAML front matter as model hubs read it. JSON strings are YAML strings, so nothing can break out."""
    task = {"text-to-image": kind, "restoration": "image-to-image"}.get(kind, "unconditional-image-generation")
    entries = ["library_name: fastdiffusion", f"pipeline_tag: {task}", f"tags: [diffusion, {kind}]"]
    if "license" in info:
        entries.insert(0, f"license: {json.dumps(str(info['license']).lower())}")
    return "\n".join(["---", *entries, "---"])


def _others(info: Mapping[str, Any]) -> dict[str, Any]:
    simple = (str, int, float)
    return {k: v for k, v in info.items() if k not in LABELS and k not in _APART and isinstance(v, simple)}


def _measured(metrics: Any) -> str:
    if not isinstance(metrics, Mapping) or not metrics:
        return "Nothing was measured yet. Run: `fastdiffusion evaluate model.safetensors DATA`"
    return _table(metrics)


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| what | value |", "|---|---|", *(f"| {_text(k)} | {_value(v)} |" for k, v in rows.items())])


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)) and len(value) == 3:
        low, center, high = map(_value, value)
        return f"{center} ({low} to {high})"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if type(value) is int else _text(value)


def _text(value: Any) -> str:
    """Text on one line, without the signs that HTML or Markdown would act on."""
    line = html.escape(" ".join(str(value).split()), quote=False)
    return "".join("\\" + c if c in "\\`*_[]|#!~" else c for c in line)


def _shell(names: tuple[str, ...]) -> str:
    """Class names as one shell word: in single quotes, unless they are plain."""
    quoted = ",".join(" ".join(name.split()) for name in names)
    return quoted if quoted.replace(",", "").isalnum() else "'" + quoted.replace("'", "'\\''") + "'"
