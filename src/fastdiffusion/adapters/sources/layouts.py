"""How the authors of families name the tensors of their files, and which of these names a file has.

``configs/`` has for each layout what a folder of diffusers would say of its parts. All is known from the header: no
weight is read of a file that cannot be used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...models.folder import INDEX
from .conversion import NET
from .weights import WeightFile

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Layout:
    """How the authors of a family name its tensors.

    Attributes:
        name: Of its file in ``configs/``.
        mark: A tensor of the network that files of this layout have, of those in :data:`LAYOUTS` no other.
        prefixes: What the names of each part's tensors begin with, one of several; the network's is ``NET`` or nothing.
    """

    name: str
    mark: str
    prefixes: Mapping[str, tuple[str, ...]]


_VAE = ("first_stage_model.", "vae.")
_L, _G, _T5 = (f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_g", "t5xxl"))
_UNET = "input_blocks.0.0.weight"
LAYOUTS = (
    Layout("stable-diffusion-1", _UNET, {"vae": _VAE, "text_encoder": ("cond_stage_model.transformer.",)}),
    Layout("stable-diffusion-2", _UNET, {"vae": _VAE, "text_encoder": ("cond_stage_model.model.",)}),
    Layout(
        "stable-diffusion-xl",
        "label_emb.0.0.weight",
        {
            "vae": _VAE,
            "text_encoder": ("conditioner.embedders.0.transformer.",),
            "text_encoder_2": ("conditioner.embedders.1.model.",),
        },
    ),
    Layout(
        "stable-diffusion-3",
        "joint_blocks.0.context_block.adaLN_modulation.1.bias",
        {"vae": _VAE, "text_encoder": (_L,), "text_encoder_2": (_G,), "text_encoder_3": (_T5,)},
    ),
    Layout(
        "flux-1",
        "double_blocks.0.img_attn.norm.key_norm.scale",
        {"vae": _VAE, "text_encoder": (_L,), "text_encoder_2": (_T5,)},
    ),
)
# What else people have in one file, by a tensor that only it has: for a sentence that names it
OTHERS = {
    "distilled_guidance_layer.": "Chroma",
    "single_stream_modulation.lin.": "FLUX.2",
    "cap_embedder.": "Lumina 2 or Z-Image",
    "txtfusion.": "Krea 2",
    "head.modulation": "Wan",
    "cross_attn.q_linear.": "PixArt or SANA",
    "txt_norm.": "Qwen-Image",
    "double_stream_blocks.": "HiDream",
    "edm_mean": "Playground 2.5",
    "control_model.": "a ControlNet",
    "motion_modules.": "AnimateDiff",
    "down_blocks.0.": "a part of a folder in diffusers' layout",
    "decoder.conv_in.": "an autoencoder alone",
    "text_model.": "a text encoder alone",
}
_LORA = (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", "_lora.down.", "_lora.up.")


def prefix_of(weights: WeightFile) -> str:
    """What stands before the network's tensors: ``NET``, or nothing."""
    return NET if any(name.startswith(NET) for name in weights) else ""


def is_net(name: str) -> bool:
    """Whether a tensor may be of the network: not of an autoencoder, a text encoder or an average of training."""
    return not name.startswith((*_VAE, "cond_stage_model.", "conditioner.", "text_encoders.", "model_ema."))


def called(weights: WeightFile) -> str:
    """What the file's network is, if it is none that can be built without a folder; else ""."""
    names = [name for name in weights if is_net(name)]
    return next((called for mark, called in OTHERS.items() if any(mark in name for name in names)), "")


def check_is_model(weights: WeightFile) -> None:
    """Raise InputError for a LoRA."""
    if any(mark in name for name in weights for mark in _LORA):
        raise InputError(
            f"{weights.path} is a LoRA, which changes a model and is none. Give the model, and --lora {weights.path}"
        )


def is_known(weights: WeightFile) -> bool:
    """Whether a file's network is of one of :data:`LAYOUTS`."""
    return not called(weights) and any(prefix_of(weights) + layout.mark in weights for layout in LAYOUTS)


def identify(weights: WeightFile, folder: Mapping[str, Any] | None = None) -> tuple[Layout, dict[str, Any]]:
    """The layout of a file, and the configurations of its parts, as the file's own size has them.

    Those of a ``folder`` of the same class count where the usual ones do not fit.

    Raises InputError for a file of none, and where something else would have to be guessed.
    """
    if other := called(weights):
        raise InputError(
            f"{weights.path} is {other}, which cannot be read as one file. Give its folder; of a network alone the "
            "folder that has the rest: --tokenizer FOLDER"
        )
    problems: list[str] = []
    marked = [layout for layout in LAYOUTS if prefix_of(weights) + layout.mark in weights]
    for own in ({}, folder or {}):
        for layout in sorted(marked, key=lambda each: not tensors_of(weights, each, "text_encoder")):
            configs = json.loads((CONFIGS / f"{layout.name}.json").read_text())
            if own and own[INDEX].get("_class_name") != configs[INDEX]["_class_name"]:
                continue
            configs |= {name: config for name, config in own.items() if name in configs and name != INDEX}
            if problem := _problem(weights, configs):
                problems.append(f": {problem}")
                continue
            _check_encoders(weights, layout, configs)
            _read_prediction(weights, configs["scheduler"])
            return layout, configs
        if not folder:
            break
    known = ", ".join(layout.name for layout in LAYOUTS)
    raise InputError(
        f"The layout of {weights.path} is not known{(problems or [''])[0]}. One file can hold {known}; of other models "
        "give the folder in diffusers' layout, of smaller or larger ones of these classes their folder besides: "
        "--tokenizer FOLDER"
    )


def _problem(weights: WeightFile, configs: dict[str, Any]) -> str:
    """Why a file is not what the configurations say, which become those of its size; "" if it is."""
    try:
        _adapt(configs, net := _Net(weights))
        return _misfit(configs, net)
    except (IndexError, KeyError, ZeroDivisionError) as error:
        return f"parts of its network are missing ({error})"


class _Net:
    """The shapes of a file's network, by the names of its tensors without prefix."""

    def __init__(self, weights: WeightFile):
        self.weights, self.prefix = weights, prefix_of(weights)
        self.names = [name.removeprefix(self.prefix) for name in weights if is_net(name)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor; () for one that is not there."""
        return self.weights.shape(self.prefix + name)


def _misfit(configs: Mapping[str, Any], own: _Net) -> str:
    """Why the file is not of this layout, by the shapes that tell its kinds apart; "" if it is."""
    unet = configs.get("unet")
    net = configs["transformer"] if unet is None else unet
    inputs = own.shape(_UNET if unet is not None else "x_embedder.proj.weight")
    inputs = inputs or own.shape("img_in.weight")
    if inputs[1:2] != (net["in_channels"],):
        found = inputs[1] if len(inputs) > 1 else "no"
        return f"its network takes {found} channels, as those for inpainting, depth or editing do"
    if unet is None:
        return ""
    width = next((own.shape(name)[-1] for name in own.names if "attn2.to_k.weight" in name), 0)
    if width != unet["cross_attention_dim"]:
        return f"its network takes texts of width {width}"
    more = bool(own.shape("label_emb.0.0.weight"))
    return "" if more == (unet.get("addition_embed_type") is not None) else "its network takes other conditions"


def tensors_of(weights: WeightFile, layout: Layout, part: str) -> dict[str, str]:
    """The file's tensors of a part, by their names without its prefix; none if the file lacks the part."""
    if is_net_part(part):
        prefix = prefix_of(weights)
        return {name.removeprefix(prefix): name for name in weights if is_net(name) and name.startswith(prefix)}
    prefixes = layout.prefixes.get(part, ())
    return {name.removeprefix(p): name for p in prefixes for name in weights if name.startswith(p)}


def is_net_part(part: str) -> bool:
    """Whether a part is the one that denoises."""
    return part in ("unet", "transformer")


def _check_encoders(weights: WeightFile, layout: Layout, configs: Mapping[str, Any]) -> None:
    """Refuse text encoders of another width than the layout's, such as two of one width: nothing is guessed."""
    for part in layout.prefixes:
        wanted, names = configs[part].get("hidden_size"), tensors_of(weights, layout, part)
        name = next((stored for name, stored in names.items() if name.endswith("token_embedding.weight")), "")
        width = weights.shape(name)[-1:]
        if wanted and width and width != (wanted,):
            raise InputError(
                f"The {part} of {weights.path} has width {width[0]}; that of {layout.name} has {wanted}. Which encoder "
                "is which is not guessed: give the folder in diffusers' layout."
            )


def _read_prediction(weights: WeightFile, scheduler: dict[str, Any]) -> None:
    """v and zero-terminal SNR, where tensors or a text in the header say so."""
    noted = weights.metadata.get("modelspec.prediction_type", "")
    if "edm_vpred.sigma_max" in weights:
        raise InputError(f"{weights.path} predicts v of EDM's levels, which is not supported. Give its folder.")
    if "prediction_type" not in scheduler:
        return
    if "v_pred" in weights or noted.startswith("v"):
        scheduler["prediction_type"] = "v_prediction"
    elif noted == "epsilon":
        scheduler["prediction_type"] = "epsilon"
    if "ztsnr" in weights:
        scheduler["rescale_betas_zero_snr"] = True


def _adapt(configs: dict[str, Any], own: _Net) -> None:
    """Let a layout of several sizes (SD3 and 3.5, FLUX.1 dev and schnell) be that of the file, by names and shapes."""
    if (net := configs.get("transformer")) is None:
        return
    blocks: dict[str, set[int]] = {}
    for name in own.names:
        if match := re.search(r"\b(joint|double|single)_blocks\.(\d+)\.(.*)", name):
            blocks.setdefault(match[1], set()).add(int(match[2]))
            if match[3] == "x_block.attn2.qkv.weight":
                blocks.setdefault("dual", set()).add(int(match[2]))
    if "joint" in blocks:
        net["num_layers"] = len(blocks["joint"])
        net["num_attention_heads"] = own.shape("x_embedder.proj.weight")[0] // net["attention_head_dim"]
        net["caption_projection_dim"] = own.shape("context_embedder.weight")[0]
        net["pos_embed_max_size"] = math.isqrt(own.shape("pos_embed")[1])
        net["dual_attention_layers"] = sorted(blocks.get("dual", ()))
        net["qk_norm"] = "rms_norm" if own.shape("joint_blocks.0.x_block.attn.ln_q.weight") else None
    else:
        net["num_layers"], net["num_single_layers"] = len(blocks["double"]), len(blocks.get("single", ()))
        net["guidance_embeds"] = bool(own.shape("guidance_in.in_layer.weight"))
        if not net["guidance_embeds"]:  # schnell
            configs["scheduler"] |= {"shift": 1.0, "use_dynamic_shifting": False}
