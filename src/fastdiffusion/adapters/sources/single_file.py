"""A checkpoint that is one file, in its authors' layout: known by its header, built from the configurations in here.

``configs/`` has for each layout what a folder of diffusers would say of its parts, and the merges of CLIP's tokenizer
(see ``configs/README.md``). The network is never asked.
"""

from __future__ import annotations

import json
import lzma
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, InputError
from ...io.guarded import Undrawn
from ...models import folder
from .conversion import NET, convert
from .folders import Folder, aligned, read_tokenizer
from .weights import WeightFile, open_weights

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


def open_file(path: Path, rest: Path | None = None) -> Folder | SingleFile:
    """A checkpoint in one file; a network alone of any family, if its folder is ``rest``.

    Args:
        path: A file of :func:`open_weights`.
        rest: A folder in diffusers' layout that has what the file lacks, or of its tokenizer alone.

    Raises:
        InputError: A layout that is not known.
        CheckpointError: A known one that is not whole.
    """
    if rest is not None and not rest.is_dir():
        raise InputError(f"There is no folder {str(rest)!r}. Name one that has the tokenizers: --tokenizer FOLDER")
    weights = open_weights(path)
    if any(mark in name for name in weights for mark in _LORA):
        raise InputError(f"{path} is a LoRA, which changes a model and is none. Give the model, and --lora {path}")
    known = any(prefix + layout.mark in weights for layout in LAYOUTS for prefix in ("", NET)) and not _called(weights)
    if rest is not None and folder.is_folder(rest) and not known:
        return NetFile(weights, rest)
    return SingleFile(weights, rest)


class NetFile(Folder):
    """A folder whose network's weights are those of a file."""

    def __init__(self, weights: WeightFile, place: Path):
        super().__init__(place)
        self.path, self.weights = weights.path, weights
        self.tensors = {name.removeprefix(NET): name for name in weights if _is_net(name)}

    @property
    def added(self) -> dict[str, str]:
        return named(self.place)

    def numbers(self, part: str) -> int:
        return self.weights.numbers(self.tensors.values()) if _is_net_part(part) else super().numbers(part)

    def precision(self, part: str) -> torch.dtype:
        return self.weights.precision(self.tensors.values()) if _is_net_part(part) else super().precision(part)

    def module(self, part: str, kind: Any, dtype: torch.dtype) -> nn.Module:
        if not _is_net_part(part):
            return super().module(part, kind, dtype)
        return build(self.weights, self.tensors, kind, self.config(part), dtype, str(self.place))


class SingleFile:
    """The parts of a checkpoint in one file, with what a folder in diffusers' layout would say of them.

    The arguments are those of :func:`open_file`.
    """

    def __init__(self, weights: WeightFile, rest: Path | None = None):
        self.weights, self.path, self.rest = weights, weights.path, rest
        self._folder = Folder(rest) if rest is not None and folder.is_folder(rest) else None
        self.net_prefix = NET if any(name.startswith(NET) for name in weights) else ""
        self.layout, self.configs = self._identify()
        self.index: dict[str, Any] = self.configs["model_index.json"]
        self._check_encoders()
        self._read_prediction()

    # ---- what the file is --------------------------------------------------------------------------------------

    def _identify(self) -> tuple[Layout, dict[str, Any]]:
        path, own = self.path, [name for name in self.weights if _is_net(name)]
        if called := _called(self.weights):
            raise InputError(
                f"{path} is {called}, which cannot be read as one file. Give its folder; of a network alone the folder "
                "that has the rest: --tokenizer FOLDER"
            )
        problems = []
        for layout in LAYOUTS:
            if self.net_prefix + layout.mark in self.weights:
                configs = json.loads((CONFIGS / f"{layout.name}.json").read_text())
                _adapt(configs, self._net_shape, own)
                if not (problem := self._misfit(configs)):
                    return layout, configs
                problems.append(f": {problem}")
        known = ", ".join(layout.name for layout in LAYOUTS)
        raise InputError(
            f"The layout of {path} is not known{(problems or [''])[0]}. One file can hold {known}; "
            "of other models give the folder in diffusers' layout."
        )

    def _net_shape(self, name: str) -> tuple[int, ...]:
        return self.weights.shape(self.net_prefix + name)

    def _misfit(self, configs: Mapping[str, Any]) -> str:
        """Why the file is not of this layout, by the shapes that tell its kinds apart; "" if it is."""
        unet = configs.get("unet")
        net = configs["transformer"] if unet is None else unet
        inputs = self._net_shape(_UNET if unet is not None else "x_embedder.proj.weight")
        inputs = inputs or self._net_shape("img_in.weight")
        if inputs[1:2] != (net["in_channels"],):
            found = inputs[1] if len(inputs) > 1 else "no"
            return f"its network takes {found} channels, as those for inpainting, depth or editing do"
        if unet is None:
            return ""
        width = next((self.weights.shape(n)[-1] for n in self.weights if _is_net(n) and "attn2.to_k.weight" in n), 0)
        if width != unet["cross_attention_dim"]:
            return f"its network takes texts of width {width}"
        more = bool(self._net_shape("label_emb.0.0.weight"))
        return "" if more == (unet.get("addition_embed_type") is not None) else "its network takes other conditions"

    def _check_encoders(self) -> None:
        """Refuse text encoders of another width than the layout's, such as two of one width: nothing is guessed."""
        for part in self.layout.prefixes:
            wanted = self.configs[part].get("hidden_size")
            name = next((n for short, n in self.names(part).items() if short.endswith("token_embedding.weight")), "")
            width = self.weights.shape(name)[-1:]
            if wanted and width and width != (wanted,):
                raise InputError(
                    f"The {part} of {self.path} has width {width[0]}; that of {self.layout.name} has {wanted}. "
                    "Which encoder is which is not guessed: give the folder in diffusers' layout."
                )

    def _read_prediction(self) -> None:
        """v and zero-terminal SNR, where tensors or a text in the header say so."""
        names, noted = self.weights, self.weights.metadata.get("modelspec.prediction_type", "")
        scheduler = self.configs["scheduler"]
        if "edm_vpred.sigma_max" in names:
            raise InputError(f"{self.path} predicts v of EDM's levels, which is not supported. Give its folder.")
        if "prediction_type" not in scheduler:
            return
        if "v_pred" in names or noted.startswith("v"):
            scheduler["prediction_type"] = "v_prediction"
        elif noted == "epsilon":
            scheduler["prediction_type"] = "epsilon"
        if "ztsnr" in names:
            scheduler["rescale_betas_zero_snr"] = True

    # ---- its parts ---------------------------------------------------------------------------------------------

    @property
    def scheduler(self) -> dict[str, Any]:
        """Of the noise levels: what a folder's scheduler would say."""
        return self.configs["scheduler"]

    @property
    def added(self) -> dict[str, str]:
        """What comes from elsewhere, by name and content."""
        return {} if self.rest is None else named(self.rest)

    def names(self, part: str) -> dict[str, str]:
        """The file's tensors of a part, by their names without its prefix; none if the file lacks the part."""
        if _is_net_part(part):
            prefix, names = self.net_prefix, [name for name in self.weights if _is_net(name)]
            return {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
        prefixes = self.layout.prefixes.get(part, ())
        return {name.removeprefix(p): name for p in prefixes for name in self.weights if name.startswith(p)}

    def check(self, part: str, kinds: Sequence[str]) -> None:
        """Raise CheckpointError for a part that neither the file has nor what comes with it."""
        if part.startswith("tokenizer"):
            if "CLIPTokenizer" not in kinds and self._tokenizer_place(part) is None:
                raise CheckpointError(
                    f"{self.path} has no {part}, and a {kinds[0]} is too large to ship. Name a folder that has it (one "
                    f"in diffusers' layout, or the tokenizer's files alone): --tokenizer FOLDER"
                )
        elif not self.names(part):
            if self._folder is None:
                raise CheckpointError(
                    f"{self.path} has no {part}. Name a folder in diffusers' layout that has it: --tokenizer FOLDER"
                )
            self._folder.check(part, kinds)

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a network."""
        return self.configs[part] if self._folder is None or self.names(part) else self._folder.config(part)

    def numbers(self, part: str) -> int:
        """How many numbers a part's weights are."""
        names = self.names(part)
        return self.weights.numbers(names.values()) if self._folder is None or names else self._folder.numbers(part)

    def precision(self, part: str) -> torch.dtype:
        """The type of a part's tensors, as the file has most of them."""
        names = self.names(part)
        return self.weights.precision(names.values()) if self._folder is None or names else self._folder.precision(part)

    def module(self, part: str, kind: Any, dtype: torch.dtype) -> nn.Module:
        """A network with the file's weights, all of them, in ``dtype``; raises CheckpointError if they do not fit."""
        names, config = self.names(part), self.configs[part]
        if self._folder is not None and not names:
            return self._folder.module(part, kind, dtype)
        return build(self.weights, names, kind, config, dtype, self.layout.name)

    def tokenizer(self, part: str, kind: Any) -> Any:
        """A tokenizer of the folder that comes with the file, else CLIP's own."""
        place = self._tokenizer_place(part)
        return clip_tokenizer(kind, **self.configs[part]) if place is None else read_tokenizer(kind, place)

    def _tokenizer_place(self, part: str) -> Path | None:
        if self.rest is None or (self.rest / part).is_dir():
            return None if self.rest is None else self.rest / part
        alone = any((self.rest / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
        return self.rest if alone and part not in self.configs else None


def build(
    weights: WeightFile, names: Mapping[str, str], kind: Any, config: Mapping[str, Any], dtype: torch.dtype, what: str
) -> nn.Module:
    """A network with a file's weights, all of them, in ``dtype``; raises CheckpointError if they do not fit.

    Args:
        weights: The file.
        names: Its tensors of this network, by their names within it.
        kind: A class of diffusers or transformers.
        config: Its configuration.
        dtype: Of its floats.
        what: What the configuration is of, for the error.
    """
    tensors = {name: _as(weights[stored], dtype) for name, stored in names.items()}
    with torch.random.fork_rng(devices=[]), Undrawn():
        module = kind.from_config(config) if hasattr(kind, "from_config") else kind(kind.config_class(**config))
    try:
        fill(module, convert(kind.__name__, tensors, config, module))
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        raise CheckpointError(
            f"The {kind.__name__} in {weights.path} is not {what}'s ({str(error)[:200]}). Download the file anew, or "
            "give the folder in diffusers' layout."
        ) from None
    return module.eval().requires_grad_(False)


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors into a network, without a copy if possible; raises ValueError unless they are exactly its own."""
    ready = {name: aligned(tensor.contiguous()) for name, tensor in tensors.items()}
    missing, unexpected = module.load_state_dict(ready, strict=False, assign=True)
    if odd := [*missing, *unexpected]:
        raise ValueError(f"{odd[0]} is {'missing' if missing else 'one too many'}")


def named(place: Path) -> dict[str, str]:
    """How a recipe keeps the folder that came with a file: by name and content."""
    return {"tokenizer": f"{place.resolve().name}@{folder.digest(place)}"}


def _called(weights: WeightFile) -> str:
    """What the file's network is, if it is none that can be built without a folder; else ""."""
    names = [name for name in weights if _is_net(name)]
    return next((called for mark, called in OTHERS.items() if any(mark in name for name in names)), "")


def _is_net_part(part: str) -> bool:
    return part in ("unet", "transformer")


def _is_net(name: str) -> bool:
    """Whether a tensor may be of the network: not of an autoencoder, a text encoder or an average of training."""
    return not name.startswith((*_VAE, "cond_stage_model.", "conditioner.", "text_encoders.", "model_ema."))


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _adapt(configs: dict[str, Any], shape: Callable[[str], tuple[int, ...]], names: Iterable[str]) -> None:
    """Let a layout of several sizes (SD3 and 3.5, FLUX.1 dev and schnell) be that of the file, by names and shapes."""
    if (net := configs.get("transformer")) is None:
        return
    blocks: dict[str, set[int]] = {}
    for name in names:
        if match := re.search(r"\b(joint|double|single)_blocks\.(\d+)\.(.*)", name):
            blocks.setdefault(match[1], set()).add(int(match[2]))
            if match[3] == "x_block.attn2.qkv.weight":
                blocks.setdefault("dual", set()).add(int(match[2]))
    if "joint" in blocks:
        net["num_layers"] = len(blocks["joint"])
        net["num_attention_heads"] = shape("x_embedder.proj.weight")[0] // net["attention_head_dim"]
        net["caption_projection_dim"] = shape("context_embedder.weight")[0]
        net["pos_embed_max_size"] = math.isqrt(shape("pos_embed")[1])
        net["dual_attention_layers"] = sorted(blocks.get("dual", ()))
        net["qk_norm"] = "rms_norm" if shape("joint_blocks.0.x_block.attn.ln_q.weight") else None
    else:
        net["num_layers"], net["num_single_layers"] = len(blocks["double"]), len(blocks.get("single", ()))
        net["guidance_embeds"] = bool(shape("guidance_in.in_layer.weight"))
        if not net["guidance_embeds"]:  # schnell
            configs["scheduler"] |= {"shift": 1.0, "use_dynamic_shifting": False}


# ---- CLIP's tokenizer ------------------------------------------------------------------------------------------------


@cache
def _pairs(path: Path) -> tuple[tuple[str, str], ...]:
    text = lzma.decompress(path.read_bytes()).decode()
    return tuple((a, b) for a, b in (pair.split() for pair in text.splitlines()))


def clip_tokenizer(kind: Any, **options: Any) -> Any:
    """CLIP's tokenizer (Radford et al. 2021, sec. 2.4): its vocabulary follows from the 48,894 pairs that it joins."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes with a printable letter; the rest gets others
    letters = [*map(chr, shown), *(chr(256 + i) for i in range(256 - len(shown)))]
    merges = _pairs(CONFIGS / "clip-merges.txt.xz")
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return kind(vocab=vocabulary, merges=list(merges), **options)
