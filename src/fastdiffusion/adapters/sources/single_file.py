"""A checkpoint that is one file in its authors' layout: what it lacks ships with this package or is in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, InputError, out_of_memory
from ...io.guarded import Undrawn, at_most_those_of
from ...models import folder
from . import layouts
from .clip_tokenizer import clip_tokenizer
from .conversion import NET, convert
from .folders import Folder, aligned, read_tokenizer
from .weights import WeightFile, open_weights


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
    layouts.check_is_model(weights)
    if rest is None and not layouts.is_known(weights) and folder.is_folder(path.parent.parent):
        raise InputError(f"{path} is a part of a checkpoint. Give the whole: {path.parent.parent}")
    if rest is not None and folder.is_folder(rest) and not layouts.is_known(weights):
        return NetFile(weights, rest)
    return SingleFile(weights, rest)


class NetFile(Folder):
    """A folder whose network's weights are those of a file."""

    def __init__(self, weights: WeightFile, place: Path):
        super().__init__(place)
        self.path, self.weights = weights.path, weights
        self.tensors = {name.removeprefix(NET): name for name in weights if layouts.is_net(name)}

    @property
    def added(self) -> dict[str, str]:
        return named(self.place)

    def numbers(self, part: str) -> int:
        return self.weights.numbers(self.tensors.values()) if layouts.is_net_part(part) else super().numbers(part)

    def precision(self, part: str) -> torch.dtype:
        return self.weights.precision(self.tensors.values()) if layouts.is_net_part(part) else super().precision(part)

    def module(self, part: str, kind: Any, dtype: torch.dtype) -> nn.Module:
        if not layouts.is_net_part(part):
            return super().module(part, kind, dtype)
        return build(self.weights, self.tensors, kind, self.config(part), dtype, str(self.place))


class SingleFile:
    """The parts of a checkpoint in one file, with what a folder in diffusers' layout would say of them.

    The arguments are those of :func:`open_file`.
    """

    def __init__(self, weights: WeightFile, rest: Path | None = None):
        self.weights, self.path, self.rest = weights, weights.path, rest
        self._folder = Folder(rest) if rest is not None and folder.is_folder(rest) else None
        self.layout, self.configs = layouts.identify(weights, None if self._folder is None else self._folder.configs)
        self.index: dict[str, Any] = self.configs["model_index.json"]

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
        return layouts.tensors_of(self.weights, self.layout, part)

    def has(self, part: str) -> bool:
        """Whether the file, or what comes with it, has a text encoder; of a tokenizer whether it has its encoder."""
        encoder = part.replace("tokenizer", "text_encoder")
        return bool(self.names(encoder)) or (self._folder is not None and self._folder.has(encoder))

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
    limit = at_most_those_of(len(names), weights.numbers(names.values()))
    try:
        with torch.random.fork_rng(devices=[]), Undrawn(), limit:
            module = kind.from_config(config) if hasattr(kind, "from_config") else kind(kind.config_class(**config))
        fill(module, convert(kind.__name__, tensors, config, module))
    except Exception as error:  # whatever another's configuration provokes in a constructor
        if out_of_memory(error):
            raise
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


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
