"""Whether what the adapters promise holds on somebody's own weights: the loop here against the pipeline's."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .. import samplers
from ..errors import InputError
from ..guidance.attention import Controller, attention_layers, control
from ..models import Model, Size
from ..nets.layers import AttentionCall
from ..samplers import Table
from .families import FAMILIES
from .family import Family
from .levels import FlowLevels
from .table_scheduler import TableScheduler
from .tuning import available

PROMPTS = ("a lighthouse at dusk", "a cat")
SMALL = 256  # pixels a side that are compared: what holds there holds everywhere
EXACT, ROUNDED = 1e-4, 5e-2  # of the largest value, in float32 and in half precision


def pipeline(model: Model) -> Any:
    """diffusers' own pipeline around the networks of a model, with its Euler scheduler; they are not copied."""
    import diffusers

    library: Any = diffusers
    family, kind = _family(model), getattr(library, pipeline_class(model))
    checkpoint, config = family.checkpoint, dict(family.checkpoint.scheduler)
    if isinstance(family.levels, FlowLevels):
        euler = library.FlowMatchEulerDiscreteScheduler.from_config(config, shift=family.levels.shift)
    else:
        euler = library.EulerDiscreteScheduler.from_config(config)
    settings = {name: value for name, value in checkpoint.settings.items() if not _is_part(value)}
    has = settings | {**checkpoint.modules, **checkpoint.tokenizers, "scheduler": euler}
    wanted = dict(inspect.signature(kind).parameters)
    if wanted.pop("requires_safety_checker", None):  # without one it would warn
        has["requires_safety_checker"] = False
    empty = {name: None for name, parameter in wanted.items() if parameter.default is inspect.Parameter.empty}
    pipe = kind(**empty | {name: has[name] for name in inspect.signature(kind).parameters if name in has})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _is_part(value: Any) -> bool:
    """Whether an entry of an index names a library and a class."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str | None) for v in value)


def pipeline_class(model: Model) -> str:
    """The class of diffusers' pipeline that a model is used with."""
    family = _family(model)
    own = str(family.checkpoint.settings.get("_class_name"))
    names = [name for name, kind in FAMILIES.items() if kind is type(family)]
    return own if own in names else names[0]


@torch.no_grad()
def difference(
    model: Model,
    scale: float,
    steps: int = 4,
    prompts: Sequence[str] = PROMPTS,
    size: Size | None = None,
    table: Table | None = None,
) -> float:
    """The greatest difference of the final latents from the pipeline's, relative to their largest value.

    Both take ``steps`` of the pipeline's Euler scheduler, or a ``table``: in the pipeline as a ``TableScheduler``.
    """
    pipe, family = pipeline(model), _family(model)
    size = size or (model.image_shape[-2], model.image_shape[-1])
    shape = (*model.shape[:-2], *(side // model.factor for side in size))
    noise = torch.randn(len(prompts), *shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    flow, first = isinstance(family.levels, FlowLevels), 1.0
    if table is not None:
        pipe.scheduler, steps = TableScheduler.from_table(table, pipe.scheduler), len(table.sigmas) - 1
        first = pipe.scheduler.init_noise_sigma if flow else 1.0  # which flow pipelines take for 1
    pipe.default_sample_size = math.isqrt(shape[-2] * shape[-1])  # HiDream's changes sizes to this area
    wanted = pipe(
        prompt=list(prompts),
        latents=family.to_pipeline(first * noise).to(family.net.dtype),
        num_inference_steps=steps,
        height=size[0],
        width=size[1],
        output_type="latent",
        return_dict=False,
        **family.pipeline_options(scale),
    )[0].float()
    if table is None:
        sigmas = pipe.scheduler.sigmas.double().cpu()
        sigmas = (sigmas / (1 - sigmas)).clamp(max=FlowLevels.TOP) if flow else sigmas  # a flow's are times
        table = samplers.table("euler", sigmas)
        start = noise * (1 + float(sigmas[0]) if flow else float(pipe.scheduler.init_noise_sigma))
    else:
        start = noise * table.sigmas[0]
    denoise = model.guide(model.denoise, scale, model.null(1, size))
    cond = model.encode_prompt(prompts, size)
    got = samplers.final(samplers.run(denoise, start, table, cond, range(len(prompts))))
    return float((got - family.from_pipeline(wanted, shape)).abs().max() / wanted.abs().max())


class _Recorder(Controller):
    """Notes which layers attend."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def sees(self, call: AttentionCall) -> bool:
        return True

    def matches(self, name: str) -> bool:
        return False  # a layer that it cannot see is no error

    def __call__(self, call: AttentionCall) -> None:
        self.names.add(call.name)


@torch.no_grad()
def examine(model: Model) -> Iterator[tuple[str, str]]:
    """Findings, one after the other, as (what, sentence); raises InputError for a model of no adapter."""
    family, net = _family(model), model.modules["net"]
    dtype, weights = next(net.parameters()).dtype, sum(p.nbytes for m in model.modules.values() for p in m.parameters())
    yield (
        "model",
        f"{family.name}, predicts {family.levels.prediction}, sigma {model.sigma_min:.4g} to {model.sigma_max:.5g}, "
        f"{str(dtype).removeprefix('torch.')} on {model.device.type}, {weights / 1e9:.2f} GB of weights",
    )
    small: Size = (min(model.image_shape[-2], SMALL), min(model.image_shape[-1], SMALL))
    for what, scale in {"pipeline": 1.0, "guidance": model.scale if model.scale != 1 else 4.0}.items():
        found, limit = difference(model, scale, size=small), EXACT if dtype == torch.float32 else ROUNDED
        verdict = "equal" if found <= limit else f"NOT EQUAL (at most {limit:g}): please report it"
        yield (
            what,
            f"4 steps of Euler at scale {scale:g} and {small[1]}x{small[0]} differ from {pipeline_class(model)} by "
            f"{found:.1e} of the largest value: {verdict}",
        )
    recorder, layers = _Recorder(), attention_layers(net)
    x, sigma = torch.zeros(1, *model.shape, device=model.device), torch.ones(1, device=model.device)
    cond = model.encode_prompt(PROMPTS[:1])
    with control(net, recorder):
        model.denoise(x, sigma, cond)
    yield "attention", f"{len(recorder.names)} of {len(layers)} layers can be seen and changed"
    spans = family.token_spans(PROMPTS[0])
    understood = "weights, changes, AND and BREAK work" if any(b > a for a, b in spans) else "weights do NOT work"
    yield "prompts", f"{family.max_tokens} tokens in a piece; {understood}"
    began = time.perf_counter()
    float(model.denoise(x, sigma, cond).sum())
    seconds, (height, width) = time.perf_counter() - began, model.image_shape[-2:]
    yield "speed", f"{seconds:.2g} s for one evaluation of one image of {width}x{height}"
    free = available(model.device)
    yield "memory", f"{weights / 1e9:.2f} GB of weights; {free / 1e9:.1f} GB are free on {model.device.type}"
    yield "settings", _settings(model, free, dtype)


def _settings(model: Model, free: float, dtype: torch.dtype) -> str:
    """What a run here should be asked for, as far as it can be said without measuring."""
    tables = ", ".join(model.tables) or f"none: fastdiffusion fit {model.info.get('name', 'MODEL')} --steps 6,8"
    parts = [f"--scale {model.scale:g} ({model.guidance})", f"--mem {free / 1e9:.0f}G", f"fitted tables: {tables}"]
    if dtype == torch.float32 and model.device.type == "cuda":
        parts.insert(0, "--precision bf16")
    return "; ".join(parts) + ". --tune measures more, and writes it down for load"


def _family(model: Model) -> Family:
    if not isinstance(model.denoise, Family):
        raise InputError("doctor MODEL examines a folder in diffusers' layout. For this machine: fastdiffusion doctor")
    return model.denoise
