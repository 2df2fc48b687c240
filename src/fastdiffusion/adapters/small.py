"""Small networks of other programs' own classes, built anew: a checkpoint in their format that one computer can train.

Small means at most seven million parameters, text encoders and autoencoder included; what they are is in ``NETS``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import missing
from .sources.clip_tokenizer import clip_tokenizer

LENGTH = 32  # tokens of a caption, marks included
VOCABULARY = 2560


def _libraries() -> tuple[Any, Any]:
    try:
        import diffusers
        import transformers
    except ImportError:
        raise missing("A network of another program", "diffusers and transformers", "sd") from None
    return diffusers, transformers


def tokenizer(texts: Sequence[str], size: int = VOCABULARY, length: int = LENGTH) -> Any:
    """CLIP's tokenizer with byte pairs learned from texts: every text has an encoding, in at most ``size`` tokens."""
    _, transformers = _libraries()
    kind = transformers.CLIPTokenizer
    base = clip_tokenizer(kind)
    learned = base.train_new_from_iterator([text.casefold() for text in texts], size, show_progress=False)
    pairs = learned.backend_tokenizer.to_str()
    import json

    merges = json.loads(pairs)["model"]["merges"][: size - 514]
    return clip_tokenizer(kind, [tuple(pair) for pair in merges], model_max_length=length)


def text_encoder(words: Any, width: int = 192, depth: int = 3, projected: bool = False) -> nn.Module:
    """A CLIP text encoder for the tokens of a tokenizer."""
    _, transformers = _libraries()
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=4 * width, projection_dim=width,
        num_hidden_layers=depth, num_attention_heads=max(width // 32, 1), max_position_embeddings=words.model_max_length,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


def autoencoder(channels: int = 4, scale: float = 1.0, shift: float | None = None) -> nn.Module:
    """An AutoencoderKL of factor 4 whose posterior is narrow."""
    diffusers, _ = _libraries()
    net = diffusers.AutoencoderKL(
        block_out_channels=(24, 48, 56), latent_channels=channels, layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, sample_size=64,
        scaling_factor=scale, shift_factor=shift, force_upcast=False,
    )  # fmt: skip
    with torch.no_grad():  # the variance says nothing: exp(-12)
        net.quant_conv.weight[channels:] = 0
        net.quant_conv.bias[channels:] = -12
    return net


def unet(width: int, side: int = 16, channels: int = 4) -> nn.Module:
    """A UNet2DConditionModel of three levels, which at first says that all of its input is noise."""
    diffusers, _ = _libraries()
    net = diffusers.UNet2DConditionModel(
        sample_size=side, in_channels=channels, out_channels=channels, block_out_channels=(32, 64, 128),
        layers_per_block=1, cross_attention_dim=width, attention_head_dim=(2, 4, 4), norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3, up_block_types=("CrossAttnUpBlock2D",) * 3,
    )  # fmt: skip
    begin_as_identity(net)
    return net


@torch.no_grad()
def begin_as_identity(net: Any, large: float = 3.0) -> None:
    """Let a fresh UNet return its input, which is the best guess of the noise where there is much of it.

    A guess of the noise that is wrong by a part p is a guess of the image that is wrong by p sigma. To learn to hand
    the input through so exactly takes long. Residual branches begin at zero, and the last normalisation sees x, -x, k
    and -k for each channel x, so that its standard deviation hardly depends on x; silu(x) - silu(-x) = x undoes the
    nonlinearity.
    """
    for name, module in net.named_modules():
        if name.endswith((".conv2", ".proj_out")):
            nn.init.zeros_(module.weight), nn.init.zeros_(module.bias)
    channels, first = net.config.in_channels, net.config.block_out_channels[0]
    middle = net.conv_in.weight.shape[-1] // 2
    net.conv_in.weight[:channels] = 0
    net.conv_in.bias[:channels] = 0
    shortcut = net.up_blocks[-1].resnets[-1].conv_shortcut
    net.conv_out.weight.mul_(0.0)
    nn.init.zeros_(net.conv_out.bias)
    spread = math.sqrt((1 + large**2) / 2)
    for c in range(channels):
        net.conv_in.weight[c, c, middle, middle] = 1
        rows = slice(4 * c, 4 * c + 4)
        shortcut.weight[rows] = 0
        shortcut.weight[4 * c, shortcut.in_channels - first + c] = 1
        shortcut.weight[4 * c + 1, shortcut.in_channels - first + c] = -1
        shortcut.bias[rows] = torch.tensor([0.0, 0.0, large, -large])
        net.conv_out.weight[c, 4 * c, middle, middle] = spread
        net.conv_out.weight[c, 4 * c + 1, middle, middle] = -spread


def transformer(width: int, pooled: int, side: int = 16, channels: int = 4) -> nn.Module:
    """An SD3Transformer2DModel of 64 tokens of an image of 64 pixels."""
    diffusers, _ = _libraries()
    return diffusers.SD3Transformer2DModel(
        sample_size=side, patch_size=2, in_channels=channels, out_channels=channels, num_layers=6,
        attention_head_dim=32, num_attention_heads=4, joint_attention_dim=width, caption_projection_dim=128,
        pooled_projection_dim=pooled, pos_embed_max_size=side,
    )  # fmt: skip


def write_folder(folder: Path, pipeline: str, parts: Mapping[str, Any], dtype: torch.dtype = torch.float16) -> None:
    """A folder in diffusers' layout, its weights rounded."""
    import copy

    diffusers, _ = _libraries()
    rounded = {name: copy.deepcopy(p).to(dtype) if isinstance(p, nn.Module) else p for name, p in parts.items()}
    kind = getattr(diffusers, pipeline)
    extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    rest = extra if pipeline == "StableDiffusionPipeline" else {"text_encoder_3": None, "tokenizer_3": None}
    kind(**rounded, **rest).save_pretrained(str(folder), safe_serialization=True)


def scheduler(net: str) -> Any:
    """How each net's noise levels are written down."""
    diffusers, _ = _libraries()
    if net == "sd-small":
        return diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
            steps_offset=1,
        )  # fmt: skip
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=1.5)
