"""Small networks of other programs' own classes, made anew: checkpoints in their format that one CPU can train.

Small means at most seven million parameters, text encoders and autoencoder included (docs/checkpoints.md).
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import missing, unknown
from .sources.clip_tokenizer import learn_clip_tokenizer
from .sources.folders import quiet

PIPELINES = {"sd-small": "StableDiffusionPipeline", "sd3-small": "StableDiffusion3Pipeline"}
WIDTH = 192  # of a token's state
LENGTH = 32  # most tokens of a caption, marks included
VOCABULARY = 2560  # most tokens of a tokenizer
CHANNELS = 4  # of latents
FACTOR = 4  # pixels per side of a latent


def _libraries() -> tuple[Any, Any]:
    try:
        import diffusers
        import transformers
    except ImportError:
        raise missing("A network of another program", "diffusers and transformers", "sd") from None
    return diffusers, transformers


def parts(net: str, tokenizer: Any, side: int, scale: float, shift: float) -> dict[str, Any]:
    """Fresh parts of a checkpoint, by the names that diffusers has for them, in float32.

    Args:
        net: A name in ``PIPELINES``.
        tokenizer: Of :func:`learn_tokenizer`.
        side: Of its latents.
        scale: One over their standard deviation.
        shift: Their mean; a Stable Diffusion of the first kind takes none.
    """
    if net not in PIPELINES:
        raise unknown("net", net, PIPELINES)
    diffusers, _ = _libraries()
    if net == "sd-small":
        scheduler = diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1,
            set_alpha_to_one=False,
        )  # fmt: skip
        return {
            "vae": autoencoder(side, scale), "text_encoder": text_encoder(tokenizer), "tokenizer": tokenizer,
            "unet": unet(side), "scheduler": scheduler,
        }  # fmt: skip
    second = 96
    return {
        "vae": autoencoder(side, scale, shift),
        # the states before the last layer are what the transformer sees: one layer more than a UNet's encoder has
        "text_encoder": text_encoder(tokenizer, depth=4, projected=True), "tokenizer": tokenizer,
        "text_encoder_2": text_encoder(tokenizer, second, 2, projected=True), "tokenizer_2": tokenizer,
        "transformer": transformer(side, WIDTH + second),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=1.5),
    }  # fmt: skip


def learn_tokenizer(texts: Sequence[str], size: int = VOCABULARY, length: int = LENGTH) -> Any:
    """CLIP's tokenizer with byte pairs learned from texts, in at most ``size`` tokens; it can write any text."""
    return learn_clip_tokenizer(_libraries()[1].CLIPTokenizer, texts, size, model_max_length=length)


def text_encoder(tokenizer: Any, width: int = WIDTH, depth: int = 3, projected: bool = False) -> nn.Module:
    """A CLIP text encoder of a tokenizer's texts."""
    transformers = _libraries()[1]
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, projection_dim=width,
        num_hidden_layers=depth, num_attention_heads=width // 32, max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


def take_text_encoder(net: nn.Module, learned: nn.Module) -> None:
    """Let the first layers of a text encoder be those of another, which may have fewer."""
    own = {name.removeprefix("text_model."): name for name in net.state_dict()}
    taken = {name.removeprefix("text_model."): tensor for name, tensor in learned.state_dict().items()}
    net.load_state_dict({own[name]: tensor for name, tensor in taken.items()}, strict=False)


def autoencoder(side: int, scale: float = 1.0, shift: float | None = None) -> Any:
    """An AutoencoderKL of factor 4, for latents of which it is sure: their variance is exp(-12)."""
    net = _libraries()[0].AutoencoderKL(
        block_out_channels=(24, 48, 56), latent_channels=CHANNELS, layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        sample_size=FACTOR * side, scaling_factor=scale, shift_factor=shift, force_upcast=False,
    )  # fmt: skip
    with torch.no_grad():
        net.quant_conv.weight[CHANNELS:] = 0
        net.quant_conv.bias[CHANNELS:] = -12
    return net


class Moments(nn.Module):
    """An AutoencoderKL whose latents are as it makes them, neither shifted nor scaled."""

    def __init__(self, net: Any):
        super().__init__()
        self.net, self.config = net, {"channels": net.config.in_channels}

    def encode(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d s t"]:
        """The mode of the posterior."""
        return self.net.encode(x).latent_dist.mode()

    def decode(self, z: Float[Tensor, "b d s t"]) -> Float[Tensor, "b c h w"]:
        """Images."""
        return self.net.decode(z).sample


def unet(side: int) -> Any:
    """A UNet2DConditionModel of three levels, each with cross-attention, which at first returns its input."""
    net = _libraries()[0].UNet2DConditionModel(
        sample_size=side, in_channels=CHANNELS, out_channels=CHANNELS, block_out_channels=(32, 64, 128),
        layers_per_block=1, cross_attention_dim=WIDTH, norm_num_groups=8,
        attention_head_dim=(2, 4, 4),  # heads, whatever its name: on the first level few, since 256 places are slow
        down_block_types=("CrossAttnDownBlock2D",) * 3, up_block_types=("CrossAttnUpBlock2D",) * 3,
    )  # fmt: skip
    begin_as_identity(net)
    return net


@torch.no_grad()
def begin_as_identity(net: Any, large: float = 3.0) -> None:
    """Let a fresh UNet return its input, which is the best guess of the noise where there is much of it.

    A guess of the noise that is wrong by a part p is a guess of the image that is wrong by p sigma, and to learn to
    hand the input through so exactly takes long. So residual branches begin at zero, and the last normalisation sees x,
    -x, k and -k for each channel x: its standard deviation hardly depends on x. silu(x) - silu(-x) = x undoes the
    nonlinearity that follows.
    """
    for name, module in net.named_modules():
        if name.endswith((".conv2", ".proj_out")) or module is net.conv_out:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    first, shortcut = net.config.block_out_channels[0], net.up_blocks[-1].resnets[-1].conv_shortcut
    spread = math.sqrt((1 + large**2) / 2)  # standard deviation of x, -x, k, -k
    for c in range(net.config.in_channels):
        net.conv_in.weight[c], net.conv_in.bias[c] = 0, 0
        net.conv_in.weight[c, c, 1, 1] = 1
        rows, column = slice(4 * c, 4 * c + 4), shortcut.in_channels - first + c
        shortcut.weight[rows] = 0
        shortcut.weight[4 * c, column], shortcut.weight[4 * c + 1, column] = 1, -1
        shortcut.bias[rows] = torch.tensor([0.0, 0.0, large, -large])
        net.conv_out.weight[c, 4 * c, 1, 1], net.conv_out.weight[c, 4 * c + 1, 1, 1] = spread, -spread


def transformer(side: int, width: int) -> Any:
    """An SD3Transformer2DModel of six blocks, for texts of ``width``, with a token for 2x2 latents."""
    return _libraries()[0].SD3Transformer2DModel(
        sample_size=side, patch_size=2, in_channels=CHANNELS, out_channels=CHANNELS, num_layers=6,
        attention_head_dim=32, num_attention_heads=4, joint_attention_dim=width, caption_projection_dim=128,
        pooled_projection_dim=width, pos_embed_max_size=side,
    )  # fmt: skip


def write(folder: Path, net: str, made: Mapping[str, Any], dtype: torch.dtype = torch.float16) -> None:
    """A folder in diffusers' layout with the parts, rounded; each file takes its place whole."""
    diffusers, _ = _libraries()
    rounded = {
        name: nn.Module.to(deepcopy(part), dtype) if isinstance(part, nn.Module) else part
        for name, part in made.items()
    }
    without = {"text_encoder_3": None, "tokenizer_3": None}
    if net == "sd-small":
        without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as place, quiet():
        getattr(diffusers, PIPELINES[net])(**rounded, **without).save_pretrained(place, safe_serialization=True)
        for file in sorted(Path(place).rglob("*")):
            if file.is_file():
                _forget_place(file)
                goal = folder / file.relative_to(place)
                goal.parent.mkdir(exist_ok=True)
                os.replace(file, goal)


def _forget_place(file: Path) -> None:
    """Take out of a configuration where its part was loaded from."""
    if file.suffix == ".json" and "name_or_path" in (text := file.read_text("utf-8")):
        kept = {name: value for name, value in json.loads(text).items() if not name.endswith("name_or_path")}
        file.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
