"""A trained model: a denoiser with all that its users must know, as a frozen value.

Its parts are what ``protocols`` says, whoever made them: a model of this package and one of another family differ in
their parts only. A ``Denoiser`` brings its parts itself (``native``); files are the business of ``serialization``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast
from unicodedata import normalize

import torch
from torch import Tensor, nn

from .. import nets, schedules
from ..denoisers import Denoiser
from ..errors import InputError, counted, unknown
from ..guidance import Guided, cfg
from ..io.checkpoints import fingerprint, on_disk
from ..io.guarded import BUDGET
from ..samplers import Table, table
from ..types import Cond, Denoise
from . import native
from .protocols import Autoencoder, Conditioner, Schedule, Size

TEXTBOOK = cast("Schedule", None)  # left out: a ``Textbook`` of the model's own noise levels
FITTED_TO = "model"  # in a table's ``info``: the id of the model it was fitted to, where this one was made from that
GUIDANCE = ("cfg", "embedded", "none")


@dataclass(frozen=True)
class Textbook:
    """The schedule of a model without one of its own: sigmas even in their logarithm (docs/samplers.md)."""

    sigma_min: float
    sigma_max: float

    def __call__(self, steps: int, size: Size | None = None) -> Tensor:
        return schedules.exponential(steps, self.sigma_min, self.sigma_max)


@dataclass(frozen=True, eq=False)
class Model:
    """What every task starts from.

    Attributes:
        denoise: From noisy data, noise level and condition to the expected clean data. Of a ``Denoiser`` the fields
            ``modules``, ``sigma_data`` and ``conditioner`` follow. Other callables may have the attributes ``loss``,
            ``guide`` and ``settings``: JSON that ``id`` covers, such as a family's name, LoRAs, what it predicts.
        shape: Of one sample: (channels, height, width) of an image, in latent units where there is an autoencoder;
            any length from 1.
        classes: Names of the classes, in the order of their indices; empty when there are none.
        sigma_min: Lowest noise level that it was trained for.
        sigma_max: Highest noise level, where sampling starts.
        sigma_data: Standard deviation of the data, in the units of ``x``.
        tables: Sampler tables fitted to this model, by ``table_key``.
        info: What the model card says: data, steps, losses, licence. JSON values; never a path or a user's name.
        modules: The networks by name ("net", "autoencoder", "text_encoder", ...): for devices, hooks and tuning.
        schedule: The default sigmas of a run, ``schedule(steps, size)``.
        scale: The default guidance scale; 1 is off.
        guidance: What ``scale`` is: "cfg" (classifier-free), "embedded" (an input of the network), or "none".
        autoencoder: Between images and latents, if it works in latents.
        conditioner: From prompts to conditions, if it takes prompts.
        corruption: What it undoes, as ``corruptions.parse`` reads it ("pairs" if it learned from pairs), if it
            restores images that are given to it as ``cond.image``.
    """

    denoise: Denoise
    shape: tuple[int, ...]
    classes: tuple[str, ...] = ()
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.0  # 0: what the denoiser says of itself, or 1
    tables: Mapping[str, Table] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    schedule: Schedule = TEXTBOOK
    scale: float = 1.0
    guidance: str = "cfg"
    autoencoder: Autoencoder | None = None
    conditioner: Conditioner | None = None
    corruption: str | None = None

    def __post_init__(self) -> None:
        whole = len(self.shape) >= 1 and all(type(n) is int and n > 0 for n in self.shape)
        if not whole or math.prod(self.shape) > 1 << 28:
            raise InputError(f"shape must be whole numbers above 0, got {self.shape}. Example: (3, 64, 64).")
        if len(set(self.classes)) < len(self.classes):
            raise InputError("Two classes have the same name. Give each its own.")
        if self.guidance not in GUIDANCE:
            raise unknown("kind of guidance", self.guidance, GUIDANCE)
        values: dict[str, Any] = {"sigma_data": self.sigma_data or float(getattr(self.denoise, "sigma_data", 1.0))}
        if (denoiser := native.own_denoiser(self.denoise)) is not None:
            native.check(denoiser, self.shape, self.classes)
            values |= native.parts(denoiser, self.autoencoder, self.conditioner)
        if self.schedule is None or isinstance(self.schedule, Textbook):
            values["schedule"] = Textbook(self.sigma_min, self.sigma_max)
        for name, value in values.items():
            object.__setattr__(self, name, value)
        low, high = 1 / BUDGET.number, BUDGET.number  # float32 must still compute with them
        if not low < self.sigma_min < self.sigma_max < high or not low < self.sigma_data < high:
            raise InputError(f"need 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}.")

    def __repr__(self) -> str:
        of = f"samples of {'x'.join(map(str, self.image_shape))}"
        asked = "prompts" if self.conditioner else counted(len(self.classes), "class") if self.classes else "nothing"
        name = self.info.get("name") or self.info.get("data") or type(self.denoise).__name__
        return f"Model({name}: {of} from {asked}, {self.parameters_count / 1e6:.2f} M parameters, on {self.device})"

    @cached_property
    def id(self) -> str:
        """sha256 over what decides the model's samples: its configuration without tables and notes, and its tensors.

        Computed when it is first asked for: what changes tensors in place afterwards needs a new model. A denoiser of
        another family may bring the ``id`` of its files; its ``settings`` count too.
        """
        own, settings = getattr(self.denoise, "id", None), dict(getattr(self.denoise, "settings", {}))
        if isinstance(own, str):
            return fingerprint({}, {"files": own, **settings}) if settings else own
        return fingerprint(tensors(self), configuration(self) | settings)

    @property
    def sampler(self) -> str:
        """The usual sampler where no table was fitted; a denoiser may name its own."""
        return getattr(self.denoise, "sampler", "dpmpp_2m")

    @property
    def loss(self) -> Callable[..., Tensor] | None:
        """``loss(x0, sigma, noise, cond)``, one number for each sample, for training; None if it cannot be trained."""
        denoiser = native.own_denoiser(self.denoise)
        return getattr(self.denoise, "loss", None) if denoiser is None else native.loss(denoiser)

    @property
    def guide(self) -> Callable[..., Guided]:
        """``guide(denoise, scale, uncond)``: the guidance that ``scale`` belongs to, ``guidance.cfg`` for most."""
        return getattr(self.denoise, "guide", cfg)

    # ---- devices ----------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where it computes: where the parameters are, unless an ``offload`` of the denoiser moves them there."""
        if (offload := getattr(self.denoise, "offload", None)) is not None:
            return offload.device
        return next((p.device for module in self.modules.values() for p in module.parameters()), torch.device("cpu"))

    @property
    def parameters_count(self) -> int:
        """Number of trained parameters of the network (without the autoencoder's)."""
        return sum(p.numel() for p in self.modules["net"].parameters()) if "net" in self.modules else 0

    def to(self, device: torch.device | str) -> Model:
        """Move the model's modules to a device; returns the model."""
        if (offload := getattr(self.denoise, "offload", None)) is not None:
            offload.device = torch.device(device)
            return self
        for module in self.modules.values():
            module.to(device)
        return self

    def eval(self) -> Model:
        """Set the modules to evaluation (dropout would draw from a global state); returns the model."""
        for module in self.modules.values():
            module.eval()
        return self

    # ---- conditions -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str], size: Size | None = None) -> Cond:
        """The condition for a batch of prompts, encoded once for a whole run; raises InputError without a conditioner.

        ``size`` is the images' height and width, for families that are conditioned on it.
        """
        if self.conditioner is None:
            raise InputError("This model was trained without words: it takes no prompt. Leave it out, or name classes.")
        return self.conditioner.encode(prompts, size)

    @torch.no_grad()
    def null(self, n: int = 1, size: Size | None = None) -> Cond | None:
        """``n`` rows of what "unconditional" is for this model; None where nothing conditions it."""
        text = None if self.conditioner is None else self.conditioner.null(n, size)
        label = self.cond([-1] * n) if self.classes else None
        return label if text is None else text if label is None else replace(text, label=label.label)

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
        names = [normalize("NFC", name) for name in self.classes]  # a Mac decomposes the letters of folders' names
        if isinstance(label, str) and normalize("NFC", label) in names:
            return names.index(normalize("NFC", label))
        try:
            index = int(label)
        except (TypeError, ValueError):
            raise unknown("class", label, self.classes) from None
        if not -1 <= index < len(self.classes):
            raise InputError(f"No class {index}: there are {len(self.classes)}, 0 to {len(self.classes) - 1}.")
        return index

    # ---- images and latents -----------------------------------------------------------------------------------

    @property
    def factor(self) -> int:
        """Pixels per side of one latent; 1 without an autoencoder."""
        return 1 if self.autoencoder is None else self.autoencoder.factor

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of what comes out: (channels, height, width), or with more axes before the last two."""
        if self.autoencoder is None:
            return self.shape
        (*frames, height, width), more = self.shape[1:], getattr(self.autoencoder, "temporal_factor", 1)
        frames = [1 + (n - 1) * more for n in frames]  # the first frame of a film is encoded alone
        return (self.autoencoder.image_channels, *frames, height * self.factor, width * self.factor)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """What the denoiser works on, of images in [-1, 1] whose sides divide by ``factor``."""
        return images if self.autoencoder is None else self.autoencoder.encode(images)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Images in about [-1, 1] of what the denoiser works on: latents go through the autoencoder, 16 at a time."""
        if self.autoencoder is None:
            return x0
        return torch.cat([self.autoencoder.decode(part) for part in x0.split(16)])

    # ---- sampling ---------------------------------------------------------------------------------------------

    def table(
        self,
        steps: int,
        sampler: str | None = None,
        schedule: str | None = None,
        size: Size | None = None,
        scale: float | None = None,
    ) -> Table:
        """The table of a run: one fitted to this model unless a sampler or schedule is named, else the named one.

        A table holds for one guidance scale and image size (``table_key``), and is taken where both are these; those
        that earlier versions fitted say neither, and are taken for their number of steps.
        Without a fitted table the default is the model's ``sampler``, mostly ``dpmpp_2m``, the best textbook choice for
        images at 5 to 12 evaluations (docs/samplers.md), on the model's own schedule for images of ``size``.
        """
        if sampler is None and schedule is None:
            exactly = table_key(steps, self.scale if scale is None else scale, size or self.pixels)
            fitted = self.tables.get(exactly) or self.tables.get(str(steps))
            if fitted is not None:
                return fitted
        levels = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max}
        sigmas = schedules.schedule(schedule, steps, **levels) if schedule else self.schedule(steps, size)
        return table(sampler or self.sampler, sigmas)

    def with_table(self, steps: int, fitted: Table, scale: float | None = None, size: Size | None = None) -> Model:
        """The same model with a table for ``steps``: at one guidance scale and image size, if they are given."""
        key = str(steps) if scale is None else table_key(steps, scale, size or self.pixels)
        return replace(self, tables={**self.tables, key: fitted})

    def table_note(self, used: Table, steps: int, size: Size | None, scale: float | None) -> str | None:
        """What a run should say about its table: that it is a fitted one, or that one was fitted for other settings."""
        exactly = table_key(steps, self.scale if scale is None else scale, size or self.pixels)
        if used in (self.tables.get(exactly), self.tables.get(str(steps))):
            fitted_to = "the model that this one was made from" if FITTED_TO in used.info else "this model"
            how = "fitted to" if used.info.get("fitted", True) else "chosen for"  # textbook tables may be kept
            return f"The sampler is the table that was {how} {fitted_to} for {exactly}."
        if others := [key for key in self.tables if key.startswith(f"{steps} steps, ")]:
            return f"No table is fitted for {exactly}, but one for {others[0]}. fastdiffusion fit makes another."
        return None

    @property
    def pixels(self) -> Size:
        """Height and width of the usual image; (0, 0) where the samples are no images."""
        return (self.image_shape[-2], self.image_shape[-1]) if len(self.shape) > 2 else (0, 0)


def table_key(steps: int, scale: float, size: Size) -> str:
    """The key in ``Model.tables`` of a table that holds for one guidance scale and one image size only."""
    return f"{steps} steps, scale {scale:g}, {size[0]}x{size[1]}"


def checked_key(key: str) -> str:
    """A key of ``Model.tables``, of this or an earlier version; ValueError for anything else."""
    if re.fullmatch(r"\d{1,4}( steps, scale -?[\d.e+-]{1,12}, \d{1,6}x\d{1,6})?", key) is None:
        raise ValueError(f"{key[:40]!r} says no number of steps")
    return key


def tensors(model: Model) -> dict[str, Tensor]:
    """All parameters and buffers of a model's modules by name: ``net.*``, ``autoencoder.*``, ..."""
    return {f"{part}.{name}": t for part, module in model.modules.items() for name, t in module.state_dict().items()}


def configuration(model: Model) -> dict[str, Any]:
    """What decides a model's samples besides its tensors, as JSON with the keys of model files."""
    denoiser, parts = native.own_denoiser(model.denoise), {}
    if denoiser is not None:
        parts = {on_disk(name): nets.describe(module) for name, module in model.modules.items()}
        parts |= {key: getattr(denoiser, key) for key in ("parameterization", "self_condition")}
        parts |= {"picture": denoiser.cond_channels} if denoiser.cond_channels else {}
    own = {key: getattr(model, key) for key in ("shape", "classes", "sigma_min", "sigma_max", "sigma_data")}
    return parts | own | ({} if model.corruption is None else {"corruption": model.corruption})


def native_denoiser(model: Model, purpose: str = "This") -> Denoiser:
    """The ``Denoiser`` of a model of this package; raises InputError for another's, for which ``purpose`` is not."""
    denoiser = native.own_denoiser(model.denoise)
    if denoiser is None:
        raise InputError(
            f"{purpose} needs a network that was built by fastdiffusion, and this model brings its own. "
            "Take a model that fastdiffusion train made."
        )
    return denoiser
