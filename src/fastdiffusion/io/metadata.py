"""How an image was made, from its metadata: our recipe, or another program's, translated as far as possible."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections import deque
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..version import __version__
from . import untrusted_json

KEY = "fastdiffusion"  # of the text in an image that holds our recipe
_FIELD = re.compile(r'\s*([^:,]*)(?::\s*("(?:\\.|[^"\\])*"|[^,]*))?[^,]*(?:,|$)')
SAMPLERS = {  # what AUTOMATIC1111 calls ours
    "consistency": "LCM", "ddim": "DDIM", "dpm_2": "DPM2", "dpmpp_2m": "DPM++ 2M", "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2s_ancestral": "DPM++ 2S a", "dpmpp_3m_sde": "DPM++ 3M SDE", "euler": "Euler", "euler_ancestral": "Euler a",
    "heun": "Heun", "lms": "LMS", "restart": "Restart", "unipc": "UniPC",
}  # fmt: skip
_LINKS = 50  # nodes of a graph that are followed for one answer


def without_paths(value: Any, existing: bool = False) -> Any:
    """The same JSON with every absolute path cut to its last name, so that no user's name and no folder is published.

    With ``existing``, only paths that are there: a prompt may begin with a slash.
    """
    if isinstance(value, Mapping):
        return {str(key): without_paths(item, existing) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(item, existing) for item in value]
    if isinstance(value, os.PathLike):
        return Path(value).name
    if isinstance(value, str) and existing:
        return Path(value).name if os.path.isabs(value) and os.path.exists(value) else value
    if isinstance(value, str) and (value.startswith("~") or PurePosixPath(value).is_absolute()):
        return PurePosixPath(value).name
    if isinstance(value, str) and PureWindowsPath(value).is_absolute():
        return PureWindowsPath(value).name
    return value


def recipe(command: str, options: Mapping[str, Any], *inputs: object) -> dict[str, Any]:
    """What a verb's result carries: its options, and the names, not the places, of those inputs that are files."""
    plain = {key: value if isinstance(value, str | int | float | bool) else None for key, value in options.items()}
    plain |= {key: value.name for key, value in options.items() if isinstance(value, Path)}
    names = [Path(path).name for path in inputs if isinstance(path, str | os.PathLike)]
    return {"fastdiffusion": __version__, "verb": command, "inputs": names, "parameters": plain}


MADE, MIXED, ENHANCED = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "algorithmicallyEnhanced"
COMPOSITE = "composite"  # of what captures or anything else show, and no model has learned
_SOURCES = {
    "sample": MADE, "sample-tokens": MADE, "variations": MADE, "edit": MADE, "stylize": MIXED, "translate": MIXED,
    "rearrange": COMPOSITE, "remove-watermark": MIXED, "restore": ENHANCED,
}  # fmt: skip
_FILLED = ("mask", "inpaint", "scratches", "watermark", "logo")  # restorations that draw what is not there


def source_type(recipe: Mapping[str, Any]) -> str | None:
    """What IPTC calls the source of such an image (https://cv.iptc.org/newscodes/digitalsourcetype), None if unknown.

    What a model made of a prompt is ``trainedAlgorithmicMedia``; where a model's work and somebody's image are put
    together (image to image, inpainting, an edit, a style) it is ``compositeWithTrainedAlgorithmicMedia``. A
    restoration shows what its input shows: it is ``algorithmicallyEnhanced``, unless holes were filled. What is
    laid out of images' own patches is a ``composite``: nothing was trained.
    """
    kind, p = _SOURCES.get(str(recipe.get("verb"))), recipe.get("parameters")
    has_image = isinstance(p, Mapping) and (p.get("image") or "inpaint" in str(p.get("guidance")))
    if kind == ENHANCED and any(name in str(recipe.get("corruption")) for name in _FILLED):
        return MIXED
    if recipe.get("verb") == "stylize" and isinstance(p, Mapping) and p.get("method") == "patches":
        return COMPOSITE
    return MIXED if kind == MADE and has_image else kind


def xmp(recipe: Mapping[str, Any]) -> str | None:
    """The XMP packet that says :func:`source_type`."""
    if (kind := source_type(recipe)) is None:
        return None
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
        f"<Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/{kind}"
        "</Iptc4xmpExt:DigitalSourceType></rdf:Description></rdf:RDF></x:xmpmeta>"
    )


def parse(texts: Mapping[str, str]) -> dict[str, Any] | None:
    """The recipe in the named texts of an image; None if there is none.

    Another program's says so in ``made_by`` and has, where they are known, ``prompt``, ``negative_prompt``, ``model``,
    ``sampler``, ``steps``, ``cfg_scale``, ``seed``, ``size``, ``clip_skip``.
    """
    try:
        if KEY in texts:
            recipe = untrusted_json.parsed(texts[KEY])
        elif "parameters" in texts:
            recipe = automatic1111(texts["parameters"])
        elif "prompt" in texts:
            recipe = comfyui(untrusted_json.parsed(texts["prompt"]))
        else:
            recipe = None
    except (ValueError, RecursionError):
        return None
    return recipe if isinstance(recipe, dict) else None


def automatic1111(text: str) -> dict[str, Any]:
    """prompt / "Negative prompt: ..." / "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, ..." as a dict."""
    *head, last = text.strip().split("\n")
    if not last.startswith("Steps:"):
        head, last = [*head, last], ""
    prompt, _, negative_prompt = "\n".join(head).partition("Negative prompt:")
    recipe = {"made_by": "AUTOMATIC1111", "prompt": prompt.strip(), "negative_prompt": negative_prompt.strip()}
    for key, value in _FIELD.findall(last):  # each match begins where the last one ended: linear in the text
        if not re.fullmatch(r"[\w /-]+", key):
            continue
        number = re.fullmatch(r"-?\d+(\.\d+)?", value)
        recipe[key.strip().lower().replace(" ", "_")] = (
            json.loads(value) if number and len(value) < 400 else value.strip()
        )
    return recipe


def as_automatic1111(recipe: Mapping[str, Any]) -> str | None:
    """A recipe of ``sample`` with a prompt, as that program and what reads its images know it; None for any other.

    :func:`automatic1111` reads it.
    """
    p = recipe.get("parameters")
    if recipe.get("verb") != "sample" or not isinstance(p, Mapping) or p.get("prompt") is None:
        return None
    prompt = recipe.get("class", p["prompt"] if isinstance(p["prompt"], str) else "\n".join(p["prompt"]))
    table: Mapping[str, Any] = recipe.get("table") or {}
    sampler = p.get("sampler") or table.get("name")
    size = p.get("size")
    fields = {
        "Steps": p.get("steps"),
        "Sampler": SAMPLERS.get(str(sampler), sampler),
        "Schedule type": p.get("schedule") and str(p["schedule"]).capitalize(),
        "CFG scale": p.get("scale"),
        "Seed": recipe.get("seed", p.get("seed")),
        "Size": f"{size}x{size}" if isinstance(size, int) else size,
        "Model": recipe.get("model", {}).get("name"),
        "Denoising strength": p.get("strength") if p.get("image") else None,
        "Clip skip": (recipe.get("model", {}).get("loaded") or {}).get("clip_skip"),
        "RNG": "CPU" if p.get("rng") == "a1111" else None,
        "Version": f"fastdiffusion {recipe.get('fastdiffusion')}",
    }
    negative = [f"Negative prompt: {p['negative_prompt']}"] if p.get("negative_prompt") else []
    known = ", ".join(f"{key}: {_quoted(value)}" for key, value in fields.items() if value is not None)
    return "\n".join([prompt, *negative, known])


def _quoted(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"\n]', text) else text


def as_command(recipe: Mapping[str, Any]) -> str:
    """What to type to make another program's image alike, as far as its recipe says; its model stands as MODEL."""
    named = re.fullmatch(r"(?i)(.*?)(?: +(karras|exponential))?", str(recipe.get("sampler", "")).strip())
    schedule = str(recipe.get("schedule_type") or recipe.get("schedule") or (named and named[2]) or "").lower()
    program, skip = recipe["made_by"], recipe.get("clip_skip")  # AUTOMATIC1111's 1 is whatever is usual
    flags = {
        "negative": recipe.get("negative_prompt"),
        "steps": recipe.get("steps"),
        "scale": recipe.get("cfg_scale"),
        "seed": recipe.get("seed"),
        "size": recipe.get("size"),
        "sampler": named and named[1],
        "schedule": schedule if schedule in ("karras", "exponential") else None,
        "clip-skip": skip if isinstance(skip, int) and skip > 0 and (skip, program) != (1, "AUTOMATIC1111") else None,
        "rng": {"AUTOMATIC1111": "a1111", "ComfyUI": "comfy"}[program],
    }
    typed = [f"--{name} {shlex.quote(str(value))}" for name, value in flags.items() if value not in (None, "")]
    return " ".join(["fastdiffusion sample MODEL", shlex.quote(str(recipe.get("prompt", ""))), "-n 1", *typed])


def comfyui(graph: Any) -> dict[str, Any] | None:
    """What the first sampler of a graph {id: {"class_type", "inputs"}} was given, and the graph itself."""
    nodes = {key: node for key, node in graph.items() if isinstance(node, dict)} if isinstance(graph, dict) else {}
    node_inputs = {key: node["inputs"] for key, node in nodes.items() if isinstance(node.get("inputs"), dict)}
    if not node_inputs:
        return None
    recipe: dict[str, Any] = {"made_by": "ComfyUI"}
    sampler = next((inputs for inputs in node_inputs.values() if {"steps", "seed"} <= inputs.keys()), None)
    sampler = sampler or next(
        (inputs for inputs in node_inputs.values() if "seed" in inputs or "noise_seed" in inputs), {}
    )

    def find(start: Any, *keys: str) -> Any:
        """The first plain value under one of the keys, from a node on, along its links [id, output]."""
        waiting, visited = deque([start]), set()
        while waiting and len(visited) < _LINKS:
            link = waiting.popleft()
            if not (isinstance(link, list) and link and str(link[0]) in node_inputs) or str(link[0]) in visited:
                continue
            visited.add(str(link[0]))
            inputs = node_inputs[str(link[0])]
            for key in keys:
                if isinstance(inputs.get(key), str | int | float):
                    return inputs[key]
            waiting += list(inputs.values())
        return None

    values = {
        "prompt": find(sampler.get("positive"), "text", "text_g", "string"),
        "negative_prompt": find(sampler.get("negative"), "text", "text_g", "string"),
        "model": find(sampler.get("model"), "ckpt_name", "unet_name", "model_name"),
        "sampler": sampler.get("sampler_name"),
        "schedule": sampler.get("scheduler"),
        "steps": sampler.get("steps"),
        "cfg_scale": sampler.get("cfg"),
        "strength": sampler.get("denoise"),
        "seed": sampler.get("seed", sampler.get("noise_seed")),
    }
    width, height = (find(sampler.get("latent_image"), key) for key in ("width", "height"))
    values["size"] = f"{width}x{height}" if width and height else None
    stop = find(sampler.get("positive"), "stop_at_clip_layer")  # -1 is the last layer
    values["clip_skip"] = -stop if isinstance(stop, int) and stop < 0 else None
    recipe |= {key: value for key, value in values.items() if isinstance(value, str | int | float)}
    return {**recipe, "comfyui": graph}


def summarize(recipe: Mapping[str, Any]) -> str:
    """Another program's recipe in a line."""
    known = ("model", "prompt", "negative_prompt", "sampler", "steps", "cfg_scale", "seed", "size", "clip_skip")
    return ", ".join(f"{key} {str(recipe[key])[:60]!r}" for key in known if recipe.get(key) not in (None, ""))
