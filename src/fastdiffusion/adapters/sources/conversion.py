"""From the names of tensors in one file, its authors' own, to diffusers' and transformers' names.

diffusers has these translations, and they are used; but FLUX.1's is for the published width only there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]
NET = "model.diffusion_model."  # stands before the network's tensors, unless the file holds nothing else
_IGNORED = ("position_ids", "logit_scale")  # computed, or of training only


def _unet(tensors: Tensors, config: Mapping[str, Any], module: nn.Module) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    return convert_ldm_unet_checkpoint({NET + name: tensor for name, tensor in tensors.items()}, dict(config))


def _vae(tensors: Tensors, config: Mapping[str, Any], module: nn.Module) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    return convert_ldm_vae_checkpoint(tensors, dict(config))


def _sd3(tensors: Tensors, config: Mapping[str, Any], module: nn.Module) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    return convert_sd3_transformer_checkpoint_to_diffusers(dict(tensors))


def _clip(tensors: Tensors, config: Mapping[str, Any], module: nn.Module) -> Tensors:
    """A text encoder of CLIP, in transformers' own names or in those of open_clip."""
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    if "token_embedding.weight" in tensors:
        last = f"transformer.resblocks.{config['num_hidden_layers']}."  # SD 2's, of which nobody asks the states
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(last)}
        tensors = convert_open_clip_checkpoint(module, tensors, prefix="")
    own = module.state_dict()
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(_IGNORED)}
    if not any(name.startswith("text_model.") for name in own):
        tensors = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    projection = "text_projection.weight"
    if projection not in own:
        tensors.pop(projection, None)
    elif "text_projection.weight" not in tensors:  # SD 3's first encoder has none
        tensors[projection] = torch.eye(own[projection].shape[0]).to(next(iter(tensors.values())))
    return tensors


def _t5(tensors: Tensors, config: Mapping[str, Any], module: nn.Module) -> Tensors:
    return {"encoder.embed_tokens.weight": tensors["shared.weight"], **tensors}


# FLUX.1: (name in the file, name in diffusers) as patterns; what is fused there is split afterwards
_FLUX = (
    (r"^(time|guidance)_in\.in_layer", r"time_text_embed.\1_embedder.linear_1"),
    (r"^(time|guidance)_in\.out_layer", r"time_text_embed.\1_embedder.linear_2"),
    (r"time_embedder", "timestep_embedder"),
    (r"^vector_in\.in_layer", "time_text_embed.text_embedder.linear_1"),
    (r"^vector_in\.out_layer", "time_text_embed.text_embedder.linear_2"),
    (r"^txt_in", "context_embedder"),
    (r"^img_in", "x_embedder"),
    (r"^final_layer\.linear", "proj_out"),
    (r"^final_layer\.adaLN_modulation\.1", "norm_out.linear"),
    (r"^double_blocks", "transformer_blocks"),
    (r"^single_blocks", "single_transformer_blocks"),
    (r"img_mod\.lin", "norm1.linear"),
    (r"txt_mod\.lin", "norm1_context.linear"),
    (r"img_mlp\.0", "ff.net.0.proj"),
    (r"img_mlp\.2", "ff.net.2"),
    (r"txt_mlp\.0", "ff_context.net.0.proj"),
    (r"txt_mlp\.2", "ff_context.net.2"),
    (r"img_attn\.proj", "attn.to_out.0"),
    (r"txt_attn\.proj", "attn.to_add_out"),
    (r"img_attn\.norm\.(q|k)\w+\.scale", r"attn.norm_\1.weight"),
    (r"txt_attn\.norm\.(q|k)\w+\.scale", r"attn.norm_added_\1.weight"),
    (r"(?<=\d\.)norm\.(q|k)\w+\.scale", r"attn.norm_\1.weight"),
    (r"modulation\.lin", "norm.linear"),
    (r"(?<=\d\.)linear2", "proj_out"),
)
_FUSED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
}


def _flux(tensors: Tensors, config: Mapping[str, Any], module: nn.Module) -> Tensors:
    width, made = config["num_attention_heads"] * config["attention_head_dim"], {}
    for name, tensor in tensors.items():
        for pattern, to in _FLUX:
            name = re.sub(pattern, to, name)
        fused = next((old for old in _FUSED if f".{old}." in name), None)
        if fused is not None:  # queries, keys, values, and in the single blocks what enters the MLP
            sizes = [width] * 3 + [len(tensor) - 3 * width] * (len(_FUSED[fused]) - 3)
            made |= {
                name.replace(fused, part): rows for part, rows in zip(_FUSED[fused], tensor.split(sizes), strict=True)
            }
        elif name.startswith("norm_out."):  # shift and scale in the file, scale and shift in diffusers
            made[name] = torch.cat(tensor.chunk(2)[::-1])
        else:
            made[name] = tensor
    return made


CONVERTERS: dict[str, Callable[[Tensors, Mapping[str, Any], nn.Module], Tensors]] = {
    "UNet2DConditionModel": _unet,
    "AutoencoderKL": _vae,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "CLIPTextModel": _clip,
    "CLIPTextModelWithProjection": _clip,
    "T5EncoderModel": _t5,
}


def convert(kind: str, tensors: Tensors, config: Mapping[str, Any], module: nn.Module) -> Tensors:
    """The tensors of a network of class ``kind`` by the names that they have there; raises ValueError for no such kind.

    Args:
        kind: Of diffusers or transformers.
        tensors: By their names in the file, without what stands before all of them.
        config: Of the network.
        module: It, without weights.
    """
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    if tensors.keys() == module.state_dict().keys():
        return tensors
    if kind in CONVERTERS:
        return CONVERTERS[kind](tensors, config, module)
    if kind not in SINGLE_FILE_LOADABLE_CLASSES:
        raise ValueError("its names are not known")
    return SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"](checkpoint=dict(tensors), config=dict(config))
