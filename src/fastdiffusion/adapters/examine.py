"""Whether what the adapters promise holds on somebody's own weights: the loop here against the pipeline's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from .. import samplers
from ..errors import InputError
from ..guidance import cfg
from ..guidance.attention import Controller, attention_layers, control
from ..models import Model, folder
from ..nets.layers import AttentionCall
from .loading import NAMES, read_json
from .stable_diffusion import StableDiffusion

PROMPTS = ("a lighthouse at dusk", "a cat")
EXACT, ROUNDED = 1e-4, 5e-2  # of the largest value, in float32 and in half precision


def pipeline(model: Model) -> Any:
    """diffusers' own pipeline around the networks of a model, with its Euler scheduler; they are not copied."""
    import diffusers

    library: Any = diffusers
    family = _family(model)
    encoders = family.conditioner_class.encoders
    parts: dict[str, Any] = {part: model.modules[NAMES.get(part, part)] for part in ("unet", "vae", *encoders)}
    tokenizers = (name.replace("text_encoder", "tokenizer") for name in encoders)
    parts |= dict(zip(tokenizers, family.conditioner.tokenizers, strict=True))
    if len(encoders) == 1:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    else:
        index = read_json(family.path / folder.INDEX)
        parts["force_zeros_for_empty_prompt"] = bool(index.get("force_zeros_for_empty_prompt", True))
    config = read_json(family.path / "scheduler" / "scheduler_config.json")
    pipe = getattr(library, family.pipeline)(scheduler=library.EulerDiscreteScheduler.from_config(config), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def difference(model: Model, scale: float, steps: int = 4) -> float:
    """The greatest difference of the final latents from the pipeline's, relative to their largest value."""
    pipe, size = pipeline(model), (model.image_shape[-2], model.image_shape[-1])
    noise = torch.randn(len(PROMPTS), *model.shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    wanted = pipe(
        prompt=list(PROMPTS),
        latents=noise.to(pipe.unet.dtype),
        num_inference_steps=steps,
        guidance_scale=scale,
        height=size[0],
        width=size[1],
        output_type="latent",
        return_dict=False,
    )[0].float()
    table = samplers.table("euler", pipe.scheduler.sigmas.double().cpu())
    denoise = model.denoise if scale == 1 else cfg(model.denoise, scale, model.null(1, size))
    start = noise * float(pipe.scheduler.init_noise_sigma)
    got = samplers.final(samplers.run(denoise, start, table, model.encode_prompt(PROMPTS, size)))
    return float((got - wanted).abs().max() / wanted.abs().max())


class _Recorder(Controller):
    """Notes which layers attend."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

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
    for scale in (1.0, model.scale):
        found, limit = difference(model, scale), EXACT if dtype == torch.float32 else ROUNDED
        verdict = "equal" if found <= limit else f"NOT EQUAL (at most {limit:g}): please report it"
        yield (
            "pipeline",
            f"4 steps of Euler at scale {scale:g} differ from {family.pipeline} by {found:.1e} of the largest value: "
            f"{verdict}",
        )
    recorder, layers = _Recorder(), attention_layers(net)
    x, sigma = torch.zeros(1, *model.shape, device=model.device), torch.ones(1, device=model.device)
    cond = model.encode_prompt(PROMPTS[:1])
    with control(net, recorder):
        model.denoise(x, sigma, cond)
    yield "attention", f"{len(recorder.names)} of {len(layers)} layers can be seen and changed"
    spans = family.conditioner.token_spans(PROMPTS[0])
    understood = "weights, changes, AND and BREAK work" if any(b > a for a, b in spans) else "weights do NOT work"
    yield "prompts", f"{family.conditioner.max_tokens} tokens in a piece; {understood}"
    began = time.perf_counter()
    float(model.denoise(x, sigma, cond).sum())
    yield "speed", f"{time.perf_counter() - began:.2g} s for one evaluation of one image, {model.image_shape[-1]} px"


def _family(model: Model) -> StableDiffusion:
    if not isinstance(model.denoise, StableDiffusion):
        raise InputError("doctor MODEL examines a folder in diffusers' layout. For this machine: fastdiffusion doctor")
    return model.denoise
