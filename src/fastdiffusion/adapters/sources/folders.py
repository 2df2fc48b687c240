"""A checkpoint that is a folder in diffusers' layout: safetensors only, no program of the folder is run.

Which classes are built is a closed table: what ``model_index.json`` says is compared with it and never imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import CheckpointError, InputError, out_of_memory
from ...io import untrusted_json
from ...io.guarded import at_most_those_of, check_network_config
from ...models import folder
from .weights import DTYPES, PICKLES, open_weights


class Folder:
    """The parts of a folder that ``pipeline.save_pretrained`` wrote or that a hub serves."""

    def __init__(self, place: Path):
        self.path = self.place = place
        self.index = read_json(place / folder.INDEX)

    @property
    def scheduler(self) -> dict[str, Any]:
        """Of the noise levels: the configuration of its scheduler."""
        return checked(self.place / "scheduler" / "scheduler_config.json")

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a network."""
        return checked(self.place / part / "config.json")

    @property
    def configs(self) -> dict[str, Any]:
        """The index, and the configurations of the networks and of the scheduler that are there, by their names."""
        nets = [part for part in self.index if self.has(part) and (self.place / part / "config.json").is_file()]
        there = [(folder.INDEX, self.index), *((part, self.config(part)) for part in nets)]
        return dict(there) | ({"scheduler": self.scheduler} if self.has("scheduler") else {})

    def has(self, part: str) -> bool:
        """Whether the folder names a part at all; see :meth:`check`."""
        named = self.index.get(part)
        return isinstance(named, list) and bool(named) and named[-1] is not None

    def check(self, part: str, kinds: Sequence[str]) -> None:
        """Raise CheckpointError for a part that is missing, and InputError for one of another class."""
        named = self.index.get(part) or [None, None]
        if not (self.place / part).is_dir() or not isinstance(named, list) or named[-1] is None:
            raise CheckpointError(f"{self.place} has no {part}. Download the whole folder of the model, {part}/ too.")
        if named[-1] not in kinds:
            raise InputError(f"The {part} of {self.place} is a {named[-1]}; {kinds[0]} is supported.")

    @property
    def added(self) -> dict[str, str]:
        """Nothing: the folder is all that there is."""
        return {}

    def numbers(self, part: str) -> int:
        """How many numbers a part's weights are."""
        return sum(open_weights(file).numbers() for file in self._files(part)[0])

    def precision(self, part: str) -> torch.dtype:
        """The type of a part's weights, after a look into each file's header; raises CheckpointError if one is cut."""
        files = [open_weights(file) for file in self._files(part)[0]]
        kinds = {entry.kind for file in files for entry in file.entries.values()}
        if odd := [kind for kind in kinds if kind.startswith("F") and kind not in DTYPES]:
            raise InputError(f"{self.place / part} holds {odd[0]}; of a folder float32, float16 and bfloat16 are read.")
        return files[0].precision()

    def module(self, part: str, kind: Any, dtype: torch.dtype) -> nn.Module:
        """A network with the weights of its folder, all of them."""
        place, (files, variant) = self.place / part, self._files(part)
        self.config(part)
        tensors = sum(len(open_weights(file)) for file in files)
        named = {"dtype" if kind.__module__.startswith("transformers") else "torch_dtype": dtype}
        try:
            with quiet(), at_most_those_of(tensors, self.numbers(part)):
                module, report = kind.from_pretrained(
                    str(place), variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True,
                    **named,
                )  # fmt: skip
        except Exception as error:  # whatever a hostile configuration provokes in a constructor
            if out_of_memory(error):
                raise
            raise CheckpointError(f"{place} cannot be loaded ({str(error)[:300]}). Download it anew.") from None
        absent = [name for name in report["missing_keys"] if not name.endswith("position_ids")]
        if absent or report.get("mismatched_keys"):
            first = (absent or [str(report["mismatched_keys"])])[0]
            raise CheckpointError(
                f"The weights in {place} do not fit its config.json, {first} for one. Download it anew."
            )
        for tensor in module.parameters():
            tensor.data = aligned(tensor.data)
        return module.eval().requires_grad_(False)

    def tokenizer(self, part: str, kind: Any) -> Any:
        """The tokenizer in a folder of it."""
        return read_tokenizer(kind, self.place / part)

    def _files(self, part: str) -> tuple[list[Path], str | None]:
        """The files of a part's weights, and their variant ("fp16", ...)."""
        place = self.place / part
        names = sorted(file.name for file in place.iterdir() if file.is_file())
        of_transformers = any(name.startswith("model.") and name.endswith((".safetensors", ".json")) for name in names)
        stem = "model" if of_transformers else "diffusion_pytorch_model"
        tensors = [name for name in names if name.endswith((".safetensors", ".safetensors.index.json"))
                   or (name.startswith(f"{stem}.safetensors.index.") and name.endswith(".json"))]  # fmt: skip
        single, sharded = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
        variant = None
        if single not in tensors and sharded not in tensors:
            chosen = [name for name in tensors if name.startswith(f"{stem}.") and "-of-" not in name]
            if not chosen:
                if pickles := [name for name in names if name.endswith(PICKLES)]:
                    raise CheckpointError(
                        f"{place} has only {pickles[0]}, a pickle, which can run any program when it is opened. "
                        "Download the .safetensors files of this model."
                    )
                raise CheckpointError(f"{place} has no {single}. Download the whole folder of the model.")
            rest = chosen[0].removeprefix(f"{stem}.")
            variant = rest.removeprefix("safetensors.index.").split(".")[0]
            single, sharded = f"{stem}.{variant}.safetensors", f"{stem}.safetensors.index.{variant}.json"
        weight_map = read_json(place / sharded).get("weight_map", {}) if single not in tensors else {}
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{place / sharded} is no index of weights. Download it anew.")
        return [place / name for name in sorted({Path(str(n)).name for n in weight_map.values()}) or [single]], variant


class Network(Folder):
    """A folder of one network alone, such as a ControlNet: its config.json and its weights."""

    def __init__(self, place: Path):
        self.path = self.place = place
        self.index = {}

    @property
    def weights(self) -> Path:
        """The first file of its weights."""
        return self._files("")[0][0]


def read_json(path: Path) -> dict[str, Any]:
    """A configuration of the folder; raises CheckpointError for anything else."""
    try:
        content = untrusted_json.parsed_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing. Download the whole folder of the model.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). Download it anew.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no configuration. Download it anew.")
    return content


def checked(path: Path) -> dict[str, Any]:
    """The configuration of a network; raises CheckpointError for one that asks for more than any network has."""
    content = read_json(path)
    try:
        check_network_config(content)
    except InputError as error:
        raise CheckpointError(f"{path} is no configuration of a network: {error}. Download it anew.") from None
    return content


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is mapped from a file, as it is or copied: CPU kernels round float32 otherwise there (1e-5).

    In half precision that is below rounding, and a mapped tensor takes no memory before it is used.
    """
    return tensor.clone() if tensor.dtype == torch.float32 and tensor.data_ptr() % 64 else tensor


def read_tokenizer(kind: Any, place: Path) -> Any:
    """The tokenizer in a folder; raises CheckpointError for anything else."""
    try:
        made = kind.from_pretrained(str(place), local_files_only=True)
        made("a", truncation=True, max_length=min(int(made.model_max_length), 2))  # or it fails with the first prompt
        return made
    except Exception as error:  # whatever its many formats provoke
        raise CheckpointError(f"The tokenizer in {place} cannot be read ({str(error)[:200]}).") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Neither diffusers nor transformers shows a bar, or what goes without saying."""
    import diffusers
    import transformers

    bar, level = transformers.utils.logging.is_progress_bar_enabled(), diffusers.utils.logging.get_verbosity()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers.utils.logging.set_verbosity(level)
        if bar:
            transformers.utils.logging.enable_progress_bar()
