"""The page of an explanation: one file that needs nothing else, with every image inside it."""

from __future__ import annotations

import base64
import io
import json
from html import escape
from importlib.resources import files
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ...io.images import to_pil

SHOWN = 512  # pixels of the longer side of the image on the page
STEP = 128  # of a step's
MAP = 64  # of a map: finer ones say no more
MOST = 24  # steps, and MOST_WORDS words: a page stays below two megabytes
MOST_WORDS = 40


def page(explanation: Any) -> str:
    """Of an ``Explanation``: HTML, CSS and script in one text; what it shows is in it as JSON and as data URIs."""
    template = (files("fastdiffusion.tasks.attribution") / "page.html").read_text(encoding="utf-8")
    data = json.dumps(_data(explanation), ensure_ascii=False).replace("<", "\\u003c").replace("&", "\\u0026")
    return template.replace("{{title}}", escape(explanation.text)).replace("{{data}}", data)


def _data(explanation: Any) -> dict[str, Any]:
    """What the page's script reads."""
    e = explanation
    kept = [round(i * (len(e.maps) - 1) / max(1, MOST - 1)) for i in range(MOST)] if len(e.maps) > MOST else []
    steps = sorted(set(kept)) or list(range(len(e.maps)))
    rows, place = [], 0
    for row in e.terms:
        maps, peaks = [], []
        if row.kind == "word" and place < MOST_WORDS and place < e.maps.shape[1]:
            own = torch.cat([e.maps[steps, place], e.maps[:, place].mean(0, keepdim=True)])
            maps, peaks = [_gray(each) for each in own], own.flatten(1).amax(1).tolist()
        place += row.kind == "word"
        by_step = [row.by_step[i] for i in steps if i < len(row.by_step)]
        rows.append({**row._asdict(), "by_step": by_step, "maps": maps, "peaks": peaks})
    height, width = e.images.shape[-2:]
    return {
        "text": e.text,
        "width": width,
        "height": height,
        "image": _color(e.images[0], SHOWN),
        "steps": [_color(e.steps[i], STEP) for i in steps],
        "sigmas": [e.sigmas[i] for i in steps],
        "words": rows,
        "box": None if e.box is None else list(e.box),
        "method": e.method,
        "toward": e.toward,
        "notes": list(e.notes),
        "agreement": e.agreement,
    }


def _fitted(image: Float[Tensor, "c h w"], longest: int) -> Float[Tensor, "c p q"]:
    factor = min(1.0, longest / max(image.shape[-2:]))
    size = [max(1, round(side * factor)) for side in image.shape[-2:]]
    return functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0] if factor < 1 else image


def _color(image: Float[Tensor, "c h w"], longest: int) -> str:
    """An image as a data URI."""
    buffer = io.BytesIO()
    shown = to_pil(_fitted(image, longest)).convert("RGB")
    if max(shown.size) > STEP:
        shown.save(buffer, "WEBP", quality=90)
        return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    shown.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _gray(places: Float[Tensor, "h w"]) -> str:
    """A map as a data URI: white at its largest value."""
    small = _fitted(places[None], MAP)[0]
    levels = (small / small.flatten().max().clamp(min=1e-12)).clamp(0, 1).mul(255).round().byte()
    buffer = io.BytesIO()
    Image.fromarray(levels.numpy(), "L").save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
