"""Where each entry of a LoRA file belongs in a network of diffusers, whatever its trainer called it.

Files call a layer by the name it has in diffusers or by that of the original code, which diffusers has renamed, split
or (``norm_out``) stored with its halves in the other order. Trainers of the kohya family write "_" for ".", so that
names are compared in that form.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from torch import nn

QKV = ("to_q", "to_k", "to_v")
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
ALL = slice(None)


class Place(NamedTuple):
    """A part of a file's entry: the rows ``take`` of its update belong to the rows ``put`` of a module's weight."""

    module: str
    take: slice = ALL
    put: slice = ALL


@dataclass(frozen=True)
class Layout:
    """The original names of a family's layers.

    Attributes:
        segments: Parts of dotted names here, and what the original calls them.
        whole: Whole names here, and the original's.
        fused: Names of original layers, and the layers here that hold their rows, one after the other.
        swapped: Layers here whose halves, scale and shift, are in the other order.
    """

    segments: Mapping[str, str]
    whole: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, Sequence[str]] = field(default_factory=dict)
    swapped: Sequence[str] = ()

    def rename(self, name: str) -> str:
        """The original name of a layer, or of a block of layers."""
        if name in self.whole:
            return self.whole[name]
        segments = "|".join(re.escape(segment) for segment in sorted(self.segments, key=len, reverse=True))
        return re.sub(rf"(?<![^.])(?:{segments})(?![^.])", lambda match: self.segments[match[0]], name)


def _within(block: str, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{block}.{name}" for name in names)


FLUX = Layout(
    {
        "transformer_blocks": "double_blocks", "single_transformer_blocks": "single_blocks",
        "attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj",
        "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2",
        "norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin",
        "proj_out": "linear2", "norm.linear": "modulation.lin",
    },
    {
        "x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        **{
            f"time_text_embed.{name}_embedder.linear_{i}": f"{original}.{'in' if i == 1 else 'out'}_layer"
            for name, original in {"timestep": "time_in", "text": "vector_in", "guidance": "guidance_in"}.items()
            for i in (1, 2)
        },
    },
    {
        "img_attn.qkv": _within("attn", QKV), "txt_attn.qkv": _within("attn", ADDED),
        "linear1": (*_within("attn", QKV), "proj_mlp"),
        "qkv_lora1": _within("attn", QKV), "qkv_lora2": _within("attn", ADDED), "qkv": _within("attn", QKV),  # XLabs'
        "proj_lora1": ("attn.to_out.0",), "proj_lora2": ("attn.to_add_out",), "proj": ("proj_out",),
    },
    ("norm_out.linear",),
)  # fmt: skip
FLUX2 = Layout(
    {
        "transformer_blocks": "double_blocks", "single_transformer_blocks": "single_blocks",
        "attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj",
        "ff.linear_in": "img_mlp.0", "ff.linear_out": "img_mlp.2",
        "ff_context.linear_in": "txt_mlp.0", "ff_context.linear_out": "txt_mlp.2",
        "attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2",
    },
    {
        "x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        **{
            f"time_guidance_embed.{name}_embedder.linear_{i}": f"{original}.{'in' if i == 1 else 'out'}_layer"
            for name, original in {"timestep": "time_in", "guidance": "guidance_in"}.items()
            for i in (1, 2)
        },
        **{f"{name}.linear": f"{name}.lin" for name in (
            "single_stream_modulation", "double_stream_modulation_img", "double_stream_modulation_txt"
        )},
    },
    {"img_attn.qkv": _within("attn", QKV), "txt_attn.qkv": _within("attn", ADDED)},
    ("norm_out.linear",),
)  # fmt: skip
SD3 = Layout(
    {
        "transformer_blocks": "joint_blocks", "attn2.to_out.0": "x_block.attn2.proj",
        "attn.to_out.0": "x_block.attn.proj", "attn.to_add_out": "context_block.attn.proj",
        "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2",
        "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2",
        "norm1.linear": "x_block.adaLN_modulation.1", "norm1_context.linear": "context_block.adaLN_modulation.1",
    },
    {"proj_out": "final_layer.linear", "norm_out.linear": "final_layer.adaLN_modulation.1"},
    {
        "x_block.attn.qkv": _within("attn", QKV), "x_block.attn2.qkv": _within("attn2", QKV),
        "context_block.attn.qkv": _within("attn", ADDED),
    },
    ("norm_out.linear",),
)  # fmt: skip
LUMINA2 = Layout(
    {
        "attn.to_out.0": "attention.out", "norm1.linear": "adaLN_modulation.1",
        **{f"feed_forward.linear_{i}": f"feed_forward.w{i}" for i in (1, 2, 3)},
    },
    fused={"attention.qkv": _within("attn", QKV)},
)  # fmt: skip
Z_IMAGE = Layout({"attention.to_out.0": "attention.out"}, fused={"attention.qkv": _within("attention", QKV)})
WAN = Layout(
    {
        "attn1": "self_attn", "attn2": "cross_attn", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o",
        "add_k_proj": "k_img", "add_v_proj": "v_img", "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2",
        "norm2": "norm3",
    },
    {
        "condition_embedder.time_proj": "time_projection.1", "proj_out": "head.head",
        **{
            f"condition_embedder.{name}_embedder.linear_{i}": f"{name}_embedding.{2 * i - 2}"
            for name in ("time", "text")
            for i in (1, 2)
        },
    },
)  # fmt: skip
LAYOUTS = {
    "FluxTransformer2DModel": FLUX, "ChromaTransformer2DModel": FLUX, "Flux2Transformer2DModel": FLUX2,
    "SD3Transformer2DModel": SD3, "Lumina2Transformer2DModel": LUMINA2, "ZImageTransformer2DModel": Z_IMAGE,
    "WanTransformer3DModel": WAN,
}  # fmt: skip
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip


def places(net: nn.Module) -> dict[str, list[Place]]:
    """Where entries go, by their names with "_" for "."."""
    own = [name for name, module in net.named_modules() if getattr(module, "weight", None) is not None]
    table: dict[str, list[Place]] = {}
    for name, found in originals(net, own):
        table[_flat(name)] = found
    for name in own:  # the names of diffusers come first
        of_clip = re.sub(r"self_attn\.(\w+)_proj$", r"self_attn.to_\1", name)  # of diffusers before 0.18
        for alias in (name, name.removeprefix("text_model."), re.sub(r"to_out\.0$", "to_out", name), of_clip):
            table[_flat(alias)] = [Place(name)]
    return table


def find(table: Mapping[str, list[Place]], name: str) -> list[Place]:
    """The places of an entry; none if it has none."""
    flat = _flat(name.replace(".processor.", "."))  # of diffusers before 0.21
    return table.get(flat) or table.get(flat.removeprefix("text_model_")) or []


@dataclass(frozen=True)
class Family:
    """What the names in a file say of the models that it is for.

    Attributes:
        name: For people.
        sign: A pattern that one of the names has.
        nets: Classes of networks with these names.
    """

    name: str
    sign: str
    nets: tuple[str, ...]

    def has(self, net: Any) -> bool:
        """Whether a network is one of these, as far as its class says."""
        known = {kind for family in FAMILIES for kind in family.nets}
        return type(net).__name__ in self.nets or type(net).__name__ not in known


FAMILIES = (
    Family("FLUX.2", r"to_qkv_mlp_proj|_stream_modulation", ("Flux2Transformer2DModel",)),
    Family("FLUX", r"double_blocks|single_blocks|single_transformer_blocks", (
        "FluxTransformer2DModel", "ChromaTransformer2DModel", "Flux2Transformer2DModel",
    )),
    Family("Qwen-Image", r"transformer_blocks.\d+.(img|txt)_(mlp|mod)", ("QwenImageTransformer2DModel",)),
    Family("HiDream", r"(double|single)_stream_blocks", ("HiDreamImageTransformer2DModel",)),
    Family("Stable Diffusion 3", r"joint_blocks", ("SD3Transformer2DModel",)),
    Family("Lumina 2 or Z-Image", r"(layers|refiner).\d+.(attn|attention).", (
        "Lumina2Transformer2DModel", "ZImageTransformer2DModel",
    )),
    Family("Stable Diffusion 1, 2 or XL", r"(input|middle|output|down|mid|up)_block", ("UNet2DConditionModel",)),
    Family("Wan", r"^blocks.\d+.(self_attn|cross_attn|attn[12])", ("WanTransformer3DModel",)),
    Family("PixArt or SANA", r"transformer_blocks.\d+.attn1", ("PixArtTransformer2DModel", "SanaTransformer2DModel")),
)  # fmt: skip
TEXT_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}


def family_of(widths: Mapping[str, int | None]) -> Family | None:
    """The first family whose sign is in one of the names of layers, which come with their inputs' widths."""
    text = "\n".join(widths)
    family = next((family for family in FAMILIES if re.search(family.sign, text, re.M)), None)
    names = {TEXT_WIDTHS[n] for name, n in widths.items() if n in TEXT_WIDTHS and re.search(r"attn2.to_k$", name)}
    return replace(family, name=names.pop()) if family is not None and len(names) == 1 else family


def _flat(name: str) -> str:
    return name.replace(".", "_")


def originals(net: Any, own: Sequence[str]) -> Iterator[tuple[str, list[Place]]]:
    """The names of a family's original code for the layers ``own`` of a net, and where the rows of each belong."""
    kind = type(net).__name__
    if kind == "UNet2DConditionModel":
        for name, original in _unet(net, own):
            yield original, [Place(name)]
    if kind not in LAYOUTS:
        return
    layout, known = LAYOUTS[kind], set(own)
    for name in own:
        half = net.get_submodule(name).weight.shape[0] // 2
        low, high = slice(0, half), slice(half, 2 * half)
        swapped = name in layout.swapped or _is_last_context(net, name)
        yield layout.rename(name), [Place(name, high, low), Place(name, low, high)] if swapped else [Place(name)]
    for original, parts in layout.fused.items():
        for first in own:
            block = first.removesuffix(parts[0])
            names = [block + part for part in parts]
            if first.endswith(f".{parts[0]}") and known.issuperset(names):
                ends = np.cumsum([0, *(net.get_submodule(name).weight.shape[0] for name in names)]).tolist()
                rows = (slice(a, b) for a, b in itertools.pairwise(ends))
                yield layout.rename(block) + original, [Place(*pair) for pair in zip(names, rows, strict=True)]


def _is_last_context(net: Any, name: str) -> bool:
    """Whether it is SD3's last norm of the text, which like ``norm_out`` has a scale and a shift only."""
    blocks = list(getattr(net, "transformer_blocks", []))
    last = f"transformer_blocks.{len(blocks) - 1}.norm1_context.linear"
    return name == last and getattr(blocks[-1], "context_pre_only", False)


def _unet(net: Any, own: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The original names (of "sgm") of a UNet's layers: its blocks counted through, one for each change of x."""
    blocks: dict[str, str] = {}
    for side, levels, i in (("input_blocks", net.down_blocks, 1), ("output_blocks", net.up_blocks, 0)):
        here = "down_blocks" if side == "input_blocks" else "up_blocks"
        for b, level in enumerate(levels):
            attends = bool(getattr(level, "attentions", None))
            for j in range(len(level.resnets)):
                blocks[f"{here}.{b}.resnets.{j}"] = f"{side}.{i}.0"
                blocks[f"{here}.{b}.attentions.{j}"] = f"{side}.{i}.1"
                i += 1
            if getattr(level, "downsamplers", None):
                blocks[f"{here}.{b}.downsamplers.0.conv"] = f"{side}.{i}.0.op"
                i += 1
            if getattr(level, "upsamplers", None):
                blocks[f"{here}.{b}.upsamplers.0.conv"] = f"{side}.{i - 1}.{1 + attends}.conv"
    mid_block = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}
    blocks |= {f"mid_block.{name}": f"middle_block.{i}" for name, i in mid_block.items()}
    for name in own:
        if name in UNET:
            yield name, UNET[name]
        for block, original in blocks.items():
            if name == block or name.startswith(f"{block}."):
                rest = name.removeprefix(block).removeprefix(".")
                rest = RESNET.get(rest, rest) if ".resnets." in block else rest
                yield name, f"{original}.{rest}".rstrip(".")
