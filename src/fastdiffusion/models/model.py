"""A trained model: a denoiser with all that its users must know, frozen, and one safetensors file on disk.

The file's configuration names every part by a closed table (``nets.NETS``, ``denoisers.PARAMETERIZATIONS``) and JSON
keywords: no class paths, no pickle. A configuration is first built on the meta device, where it costs nothing, and
compared with the tensors that came along; only what matches is then built for real.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import nets, schedules
from ..denoisers import Denoiser
from ..errors import CheckpointError, InputError, unknown
from ..guidance import self_conditioned
from ..io.atomic import write_bytes, write_json, write_text
from ..io.checkpoints import load_tensors, save_tensors, stored
from ..io.guarded import _at_most, _check_numbers, _Undrawn
from ..samplers import Table, table
from ..types import Cond, Denoise
from ..version import __version__

FILE = "model.safetensors"  # the model's name in a run folder and in an exported one


@dataclass(frozen=True)
class Model:
    """What every task starts from.

    Attributes:
        denoiser: The network with its preconditioning.
        shape: (channels, height, width) of one sample, in latent units where there is a ``codec``.
        classes: Names of the classes, in the order of their indices; empty when there are none.
        sigma_min: Lowest noise level that it was trained for.
        sigma_max: Highest noise level, where sampling starts.
        tables: Sampler tables fitted to this model, by number of steps.
        info: What the model card says: data, steps, losses, licence. JSON values; never a path or a user's name.
        codec: Autoencoder between pictures and latents, if it works in latents.
        corruption: What it undoes, as ``corruptions.parse`` reads it ("pairs" if it learned from pairs), if it
            restores pictures that are given to it as ``cond.image``.
    """

    denoiser: Denoiser
    shape: tuple[int, int, int]
    classes: tuple[str, ...] = ()
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    tables: Mapping[str, Table] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    autoencoder: nn.Module | None = None
    corruption: str | None = None

    def __post_init__(self) -> None:
        whole = len(self.shape) == 3 and all(type(n) is int and n > 0 for n in self.shape)
        if not whole or math.prod(self.shape) > 1 << 28:
            raise InputError(f"shape must be (channels, height, width), got {self.shape}. Example: (3, 64, 64).")
        if not 0 < self.sigma_min < self.sigma_max < math.inf or self.denoiser.sigma_data == math.inf:
            raise InputError(f"need 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}.")
        if len(set(self.classes)) < len(self.classes):
            raise InputError("Two classes have the same name. Give each its own.")
        config = getattr(self.denoiser.net, "config", {})
        made = (config.get("out_channels", self.shape[0]), config.get("classes", len(self.classes)))
        if made != (self.shape[0], len(self.classes)):
            wanted = f"{self.shape[0]} channels and {len(self.classes)} classes"
            raise InputError(f"The net was built for {made[0]} channels and {made[1]} classes, the model has {wanted}.")

    @property
    def denoise(self) -> Denoise:
        """The denoiser for sampling; a self-conditioned one is fed its last estimate."""
        return self_conditioned(self.denoiser) if self.denoiser.self_condition else self.denoiser

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.denoiser.parameters(), torch.empty(0)).device

    @property
    def parameters_count(self) -> int:
        """Number of trained parameters of the network (without the codec's)."""
        return sum(p.numel() for p in self.denoiser.parameters())

    def to(self, device: torch.device | str) -> Model:
        """Move the model's parts to a device; returns the model."""
        for part in self._components().values():
            part.to(device)
        return self

    @property
    def text_encoder(self) -> nets.TextEncoder | None:
        """The text encoder, of a model that takes words."""
        net = self.denoiser.net
        return net.text_encoder if isinstance(net, nets.TextConditioned) else None

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Cond:
        """The condition for a batch of captions, understood once for a whole run; "" says nothing.

        Raises InputError where the model takes no words.
        """
        net = self.denoiser.net
        if not isinstance(net, nets.TextConditioned):
            raise InputError("This model was trained without words. Leave the prompt out, or name classes.")
        return net.encode_prompt(Cond(tokens=net.text_encoder.tokens(prompts).to(self.device)))

    @property
    def factor(self) -> int:
        """Pixels per side of one latent number; 1 without a codec."""
        return int(self.autoencoder.factor) if self.autoencoder is not None else 1  # pyright: ignore[reportArgumentType]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the pictures that come out."""
        if self.autoencoder is None:
            return self.shape
        channels = int(self.autoencoder.config["channels"])  # pyright: ignore
        return (channels, self.shape[1] * self.factor, self.shape[2] * self.factor)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """What the denoiser works on, of pictures in [-1, 1] whose sides divide by ``factor``."""
        return images if self.autoencoder is None else self.autoencoder.encode(images)  # pyright: ignore[reportCallIssue]

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Pictures in about [-1, 1] of what the denoiser works on: latents go through the codec, 16 at a time."""
        if self.autoencoder is None:
            return x0
        return torch.cat([self.autoencoder.decode(part) for part in x0.split(16)])  # pyright: ignore[reportCallIssue]

    def cond(self, labels: Sequence[str | int] | Tensor | None) -> Cond | None:
        """The condition for a batch of class names or indices (-1 = no class); None stays None.

        Raises InputError for an unknown class, or for any class where the model has none.
        """
        if labels is None:
            return None
        if not self.classes:
            raise InputError("This model was trained without classes. Leave classes out.")
        labels = labels.tolist() if isinstance(labels, Tensor) else labels
        labels = [labels] if isinstance(labels, (str, int)) else labels
        indices = [self._label(label) for label in labels]
        return Cond(label=torch.tensor(indices, dtype=torch.long, device=self.device))

    def _label(self, label: str | int) -> int:
        if label in self.classes:
            return self.classes.index(str(label))
        try:
            index = int(label)
        except ValueError:
            raise unknown("class", label, self.classes) from None
        if not -1 <= index < len(self.classes):
            raise InputError(f"No class {index}: there are {len(self.classes)}, 0 to {len(self.classes) - 1}.")
        return index

    def table(self, steps: int, sampler: str | None = None, schedule: str | None = None) -> Table:
        """The table of a run: one fitted to this model unless a sampler or schedule is named, else the named one.

        Without a fitted table the default is ``dpmpp_2m`` on ``exponential`` sigmas, the best textbook choice for
        pictures at 5 to 12 calls (docs/samplers.md).
        """
        if sampler is None and schedule is None and str(steps) in self.tables:
            return self.tables[str(steps)]
        sigmas = schedules.schedule(
            schedule or "exponential", steps, sigma_min=self.sigma_min, sigma_max=self.sigma_max
        )
        return table(sampler or "dpmpp_2m", sigmas)

    def with_table(self, steps: int, fitted: Table) -> Model:
        """The same model with a table for runs of ``steps``."""
        return replace(self, tables={**self.tables, str(steps): fitted})

    # ---- to and from a configuration --------------------------------------------------------------------------

    def _components(self) -> dict[str, nn.Module]:
        return {"net": self.denoiser.net} | ({} if self.autoencoder is None else {"autoencoder": self.autoencoder})

    def tensors(self) -> dict[str, Tensor]:
        """All parameters and buffers by name: ``net.*`` and ``autoencoder.*``."""
        return {f"{part}.{name}": t for part, m in self._components().items() for name, t in m.state_dict().items()}

    def spec(self) -> dict[str, Any]:
        """The model as plain JSON, without its tensors; :meth:`from_spec` reads it."""
        spec = {
            **{_KEY.get(part, part): _net_spec(module) for part, module in self._components().items()},
            **{
                key: getattr(self.denoiser, name)
                for key, name in _HEAD.items()
                if key != "picture" or self.denoiser.cond_channels
            },
            "shape": self.shape,
            "classes": self.classes,
            "sigma_min": self.sigma_min,
            "sigma_max": self.sigma_max,
            "tables": {steps: asdict(table) for steps, table in self.tables.items()},
            "info": _anonymous({"fastdiffusion": __version__, **self.info}),
        } | ({} if self.corruption is None else {"corruption": self.corruption})
        return json.loads(json.dumps(spec))

    @staticmethod
    def from_spec(spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Model:
        """The model that ``spec`` and ``tensors`` (of :meth:`tensors`) describe, in float32 on the CPU.

        Both may come from a stranger: raises InputError for anything that is not of this form, or whose parts are not
        exactly of the tensors' names and shapes, before memory is allocated for it.
        """
        try:
            with torch.device("meta"), _Undrawn(), _at_most(2 * len(tensors) + 100):
                _check_tensors(_build(spec), tensors)
            with torch.random.fork_rng(devices=[]), _Undrawn():  # random buffers leave no trace in the user's stream
                model = _build(spec)
            for part, module in model._components().items():
                own = {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}
                module.eval().load_state_dict(own)
        except InputError:
            raise
        except Exception as error:  # a constructor may fail in any way on hostile keywords
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            raise InputError(f"The configuration does not describe a model ({reason}).") from None
        model.denoiser.eval()
        return model


_KEY = {"autoencoder": "codec"}  # files keep their first names
# the denoiser's own settings, by their names in files
_HEAD = {name: name for name in ("parameterization", "sigma_data", "self_condition")} | {"picture": "cond_channels"}
_KEYS = {"net", *_HEAD, *(_KEY.get(f.name, f.name) for f in fields(Model) if f.name != "denoiser")}


def _build(spec: Mapping[str, Any]) -> Model:
    """A model with fresh weights, on the default device."""
    spec = dict(spec)
    for key in spec:
        if key not in _KEYS:
            raise unknown("model setting", key, _KEYS)
    net, autoencoder = spec.pop("net"), spec.pop("codec", None)
    head = {name: spec.pop(key) for key, name in _HEAD.items() if key in spec}
    _check_numbers(net)
    _check_numbers(autoencoder)
    spec["shape"] = tuple(spec["shape"])
    spec["classes"] = tuple(str(name) for name in spec.get("classes", ()))
    spec["tables"] = {str(int(steps)): Table.from_json(raw) for steps, raw in spec.get("tables", {}).items()}
    spec["info"] = dict(spec.get("info", {}))
    built = None if autoencoder is None else nets.build(autoencoder)
    return Model(Denoiser(nets.build(net), **head), autoencoder=built, **spec)


def _net_spec(net: nn.Module) -> dict[str, Any]:
    """A network's name in the closed table and its constructor keywords."""
    if isinstance(net, nets.TextConditioned):
        return {**_net_spec(net.net), **net.config}
    for name, kind in nets.NETS.items():
        if type(net) is kind:
            return {"name": name, **cast("dict[str, Any]", net.config)}
    raise InputError(f"A {type(net).__name__} cannot be saved: only these nets can, {', '.join(nets.NETS)}.")


def _check_tensors(skeleton: Model, tensors: Mapping[str, Tensor]) -> None:
    """Compare names and shapes, and bound the buffers that are computed rather than stored."""
    wanted = skeleton.tensors()
    if wanted.keys() != tensors.keys():
        odd = sorted(wanted.keys() ^ tensors.keys())[0]
        raise InputError(f"The configuration and the tensors do not belong together: {odd[:100]!r} is in one only.")
    for name, tensor in wanted.items():
        if tensor.shape != tensors[name].shape:
            raise InputError(
                f"{name} should have shape {tuple(tensor.shape)}, the file has {tuple(tensors[name].shape)}."
            )
    computed = sum(b.numel() for part in skeleton._components().values() for b in part.buffers())
    if computed > (1 << 22) + sum(t.numel() for t in tensors.values()):
        raise InputError("The configuration asks for buffers far larger than the model.")


def _anonymous(value: Any) -> Any:
    """The same JSON with every absolute path cut to its last name: who trained it, and where, is nobody's business."""
    if isinstance(value, Mapping):
        return {str(key): _anonymous(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_anonymous(item) for item in value]
    if isinstance(value, str) and (value.startswith("~") or PurePosixPath(value).is_absolute()):
        return PurePosixPath(value).name
    if isinstance(value, str) and PureWindowsPath(value).is_absolute():
        return PureWindowsPath(value).name
    return value


# ---- files ------------------------------------------------------------------------------------------------------


def save(model: Model, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a model as one safetensors file, atomically.

    Args:
        model: What to save.
        path: Must end in ``.safetensors``.
        dtype: Store the parameters in this type; loaded they are float32 again. torch.float16 halves the file,
            torch.int8 quarters it (a scale for each row of a matrix).
    """
    if Path(path).suffix != ".safetensors":
        raise InputError(
            f"A model file ends in .safetensors, got {str(path)!r}. Try {Path(path).with_suffix('.safetensors')}."
        )
    save_tensors(path, stored(model.tensors(), dtype), model.spec())


def load_autoencoder(path: str | Path) -> nn.Module:
    """Read an autoencoder's file, or take the codec of a model's; raises CheckpointError for any other."""
    config, tensors = load_tensors(path)
    if "net" in config:
        autoencoder = load(path).autoencoder
        if autoencoder is None:
            raise CheckpointError(f"{path} is a model of pixels: it has no codec.")
        return autoencoder
    try:
        _check_numbers(config["codec"])
        with torch.device("meta"), _Undrawn():
            autoencoder = nets.build(config["codec"])
        if {k: t.shape for k, t in autoencoder.state_dict().items()} != {k: t.shape for k, t in tensors.items()}:
            raise ValueError("its tensors have other names or shapes")
        autoencoder.to_empty(device="cpu").load_state_dict({k: t.float() for k, t in tensors.items()})
    except Exception as error:  # a constructor may fail in any way on hostile keywords
        raise CheckpointError(f"{path} is not an autoencoder that was trained here ({str(error)[:200]}).") from None
    return autoencoder.eval()


def load(path: str | Path, device: torch.device | str | None = None) -> Model:
    """Read a model file, or the one in a run folder; bit-equal to what was saved.

    Raises CheckpointError for a missing, damaged or foreign file, or one of a newer fastdiffusion.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / FILE).is_file():
            raise CheckpointError(
                f"{path} is a folder without {FILE}. Give a model file, or a folder that training wrote."
            )
        path = path / FILE
    config, tensors = load_tensors(path)
    try:
        model = Model.from_spec(config, tensors)
    except InputError as error:
        raise CheckpointError(f"{path} is not a model file. {error}") from None
    return model if device is None else model.to(device)


def export_folder(model: Model, path: str | Path, card: str, preview: bytes | None = None) -> Path:
    """Write a folder that can be pushed to a hub as it is: model, card, configuration and preview picture.

    Args:
        model: What to share.
        path: The folder; it is made if need be.
        card: Markdown, usually ``fastdiffusion.models.card.card(model)``.
        preview: A PNG file's bytes.
    """
    path = Path(path)
    save(model, path / FILE)
    write_json(path / "config.json", model.spec())
    write_text(path / "README.md", card)
    if preview is not None:
        write_bytes(path / "preview.png", preview)
    return path
