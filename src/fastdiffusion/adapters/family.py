"""What a model family is: one class that says how its checkpoints are used (docs/add-a-family.md).

A family says what parts a checkpoint has, how its texts become a condition, and how its network is called. From that
follow a denoiser, a conditioner and a ``Model``; sampling, guidance, the prompt language and fitting are what this
package does anyway.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .. import prompts as language
from ..denoisers import expand, scaling
from ..errors import InputError
from ..guidance import Guided, Scale, cfg, embedded
from ..guidance.core import Startable, to_rows
from ..models import Model, Size, folder
from ..samplers import Table
from ..types import Cond, Denoise, Run
from .attention import Layout, register
from .autoencoders import Vae
from .levels import FlowLevels, TrainedLevels
from .texts import Spans, Student, Text, compact, grouped

NAMES = {"unet": "net", "transformer": "net", "vae": "autoencoder"}  # what a Model calls the parts


class Encoder(NamedTuple):
    """One text encoder of a family.

    Attributes:
        network: Class of transformers, or several that it may be called; the first one is built.
        tokenizer: The same of its tokenizer.
        limit: Most tokens of a text, marks and template included.
    """

    network: str | tuple[str, ...]
    tokenizer: str | tuple[str, ...]
    limit: int


CLIP = Encoder("CLIPTextModel", ("CLIPTokenizer", "CLIPTokenizerFast"), 77)
CLIP_WITH_PROJECTION = CLIP._replace(network="CLIPTextModelWithProjection")
T5 = Encoder("T5EncoderModel", ("T5Tokenizer", "T5TokenizerFast"), 512)


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a checkpoint, whatever kind of file they came from, by the names that diffusers has for them.

    Attributes:
        path: Where it is.
        modules: The networks: "unet" or "transformer", "vae", "text_encoder", "text_encoder_2", ...
        tokenizers: "tokenizer", "tokenizer_2", ...: one for each text encoder.
        scheduler: The configuration of its scheduler: how it was trained, and its usual noise levels.
        settings: What else its ``model_index.json`` says.
    """

    path: Path
    modules: Mapping[str, Any]
    tokenizers: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)


class Control:
    """A further condition of a family's network, such as a ControlNet; see ``adapters.conditioners``."""

    def extra(self, shown: bool) -> Mapping[str, Tensor]:
        """Parts of ``cond.extra``, of one row; if not ``shown``, what stands for none of it in guidance."""
        return {}

    def inputs(
        self, family: Family, inputs: Mapping[str, Any], x: Tensor, t: Tensor, cond: Cond, size: Size
    ) -> dict[str, Any]:
        """The keywords of the network, with its own added; images are of ``size``."""
        return dict(inputs)


class Family(Startable):
    """A denoiser and its conditioner; a subclass says what stands up to ``__init__``, most of which has a default.

    The network keeps its own precision; x, sigma, conditions and results are float32.
    """

    name: ClassVar[str]
    network: ClassVar[str]  # class of diffusers
    encoders: ClassVar[tuple[Encoder, ...]]
    optional: ClassVar[tuple[str, ...]] = ()  # parts that a checkpoint may lack
    pad: ClassVar[str] = "max_length"  # "longest" where padding means nothing to the network
    time: ClassVar[str] = "t"  # what a flow's network takes for t, in ``levels.TIMES``
    spacing: ClassVar[str] = "1/n"  # where a flow's usual run ends; see ``levels.FlowLevels``
    masks: ClassVar[bool] = False  # whether the network takes a mask of tokens; else see :meth:`tokens`
    patch: ClassVar[int] = 1  # latents per side of one token of an image
    side: ClassVar[int] = 128  # of the latents by default, where the network's configuration does not say
    joint: ClassVar[str] = ""  # "text first" or "image first", where both are the keys of one attention
    multiple: ClassVar[int] = 1  # of tokens, to which both are padded there
    refiners: ClassVar[tuple[str, ...]] = ()  # parts of names of layers in which text attends to text alone
    vae: ClassVar[type[Vae]] = Vae
    clip_layer: ClassVar[int] = 0  # whose states ``emb`` has, counted from CLIP's last, which is 1; 0 where it has none
    guidance: str = "cfg"  # "embedded" where the scale is an input of the network, ``cond.extra["guidance"]``
    scale: float = 1.0  # the usual one
    sampler: str = "dpmpp_2m"  # the usual one
    image: str = ""  # "input" where the network was trained to take an image, "prompt" where one stands for the text
    clip_skip: int = 0  # how many layers before that one they are taken; see ``adapters.clip_layers``
    students: tuple[Student, ...] = ()  # encode the prompts of their languages
    controls: tuple[Control, ...] = ()  # further conditions, of ``adapters.conditioners``
    shown: bool = True  # whether they show what they have; not to what guidance compares with
    run: Run | None = None  # that this object was started for

    # ---- what a family says -----------------------------------------------------------------------------------

    def noise_levels(self, scheduler: Mapping[str, Any]) -> TrainedLevels | FlowLevels:
        """Its noise levels: rectified flow, unless it says otherwise."""
        return FlowLevels(scheduler, self.time, self.spacing)

    def reader(self, encoder: Any, tokenizer: Any, limit: int) -> Text:
        """How one text encoder is used."""
        return Text(encoder, tokenizer, limit, self.pad)

    def condition(self, prompts: Sequence[str], size: Size) -> Cond:
        """The texts as a condition for images of ``size``, by ``self.texts``; in float32."""
        raise NotImplementedError

    def nothing(self, size: Size) -> Cond:
        """The condition of one row that means "no prompt"."""
        return self.condition([""], size)

    def predict(self, x: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Float[Tensor, "b *d"]:
        """The network's output for scaled latents: noise, v, or for a flow the velocity noise - x0."""
        raise NotImplementedError

    def guide(self, denoise: Denoise, scale: Scale, uncond: Cond | None = None) -> Guided:
        """Its own guidance, which ``scale`` belongs to."""
        return (embedded if self.guidance == "embedded" else cfg)(denoise, scale, uncond)

    def tokens(self, cond: Cond) -> Bool[Tensor, "b n"] | None:
        """Which rows of ``emb`` go into the network, None for all: texts of equally many go together."""
        return None if self.masks else cond.mask

    def layout(self, x: Tensor, cond: Cond) -> Layout | None:
        """Where text and image are in joint attention, for ``guidance.attention``."""
        if not self.joint or cond.emb is None:
            return None
        pixels = math.prod(x.shape[2:]) // self.patch**2
        return Layout.of(cond.emb.shape[1], pixels, self.joint == "text first", self.multiple)

    def check(self) -> None:
        """Raise InputError for a variant that is not supported."""

    def start(self, run: Run) -> Denoise:
        """Itself, or with controls a copy that knows where its run is."""
        if not self.controls:
            return self
        started = copy.copy(self)
        started.run = run
        return started

    # ---- what diffusers' own pipeline calls it (for comparison: ``examine``, tests) -----------------------------

    def to_pipeline(self, z: Tensor) -> Tensor:
        """Latents as the pipeline takes and gives them."""
        return z

    def from_pipeline(self, z: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of :meth:`to_pipeline`; ``shape`` is that of one sample."""
        return z

    def pipeline_options(self, scale: float) -> dict[str, Any]:
        """How the pipeline is asked for a guidance scale, and for all else that has another default there."""
        return {"guidance_scale": scale}

    # -------------------------------------------------------------------------------------------------------------

    def __init__(self, checkpoint: Checkpoint):
        modules = checkpoint.modules
        self.checkpoint = checkpoint
        self.net: Any = next(modules[name] for name in ("transformer", "unet") if name in modules)
        self.attention = register(self.net, self.refiners)
        self.autoencoder = self.vae(modules["vae"])
        self.levels = self.noise_levels(checkpoint.scheduler)
        self.texts = [
            self.reader(modules[f"text_encoder{n}"], tokenizer, min(encoder.limit, int(tokenizer.model_max_length)))
            for n, encoder in self.numbered()
            if (tokenizer := checkpoint.tokenizers.get(f"tokenizer{n}")) is not None
        ]
        self.check()

    @classmethod
    def numbered(cls) -> list[tuple[str, Encoder]]:
        """The text encoders and what their parts' names end in: "", "_2", "_3", ..."""
        return [(f"_{i}" if i > 1 else "", encoder) for i, encoder in enumerate(cls.encoders, 1)]

    @classmethod
    def variant(cls, config: Mapping[str, Any]) -> type[Family]:
        """Itself, or the family of the same parts that a network of this configuration belongs to."""
        return cls

    @classmethod
    def parts(cls) -> dict[str, tuple[str, ...]]:
        """The parts of a checkpoint, and the classes that each may have."""
        named: dict[str, str | tuple[str, ...]] = {
            "unet" if cls.network.startswith("UNet") else "transformer": cls.network
        }
        named["vae"] = cls.vae.network
        for n, encoder in cls.numbered():
            named |= {f"text_encoder{n}": encoder.network, f"tokenizer{n}": encoder.tokenizer}
        return {name: (kinds,) if isinstance(kinds, str) else kinds for name, kinds in named.items()}

    @cached_property
    def id(self) -> str:
        """sha256 of the checkpoint's files."""
        return folder.digest(self.checkpoint.path)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the latents of one image of the usual size."""
        return (self.autoencoder.latent_channels, *sides(getattr(self.net.config, "sample_size", None) or self.side))

    def schedule(self, steps: int, size: Size | None = None) -> Tensor:
        """The usual noise levels of a run for images of ``size``."""
        height, width = size or self._pixels(self.shape)
        return self.levels.schedule(steps, (height * width) // (self.autoencoder.factor * self.patch) ** 2)

    # ---- the denoiser -----------------------------------------------------------------------------------------

    def __call__(
        self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b *d"]:
        """The expected clean latents."""
        if any(side % self.patch for side in x.shape[-2:]):
            step = self.autoencoder.factor * self.patch
            raise InputError(f"This model makes sizes that divide by {step}, got {self._pixels(x.shape)}. Try 1024.")
        cond = self._complete(x, cond)
        cond = compact(cond) if self.masks else cond
        groups = grouped(cond, self.tokens(cond))
        if len(groups) == 1:
            return self._estimate(x, sigma, groups[0][1])
        x0 = torch.empty_like(x)
        for rows, some in groups:
            x0[rows] = self._estimate(x[rows], sigma[rows], some)
        return x0

    def _estimate(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        c, dtype = scaling(self.levels.prediction, expand(sigma, x), 1.0), self.net.dtype
        if cond.mask is not None and bool(cond.mask.all()):
            cond = replace(cond, mask=None)
        texts = {name: v.to(dtype) for name, v in cond.parts().items() if name in ("emb", "pooled")}
        self.attention.layout = self.layout(x, cond)
        out = self.predict((c.c_in * x).to(dtype), self.levels.t(sigma), Cond.of(cond.parts() | texts))
        return c.c_skip * x + c.c_out * out.to(x.dtype)

    def _complete(self, x: Tensor, cond: Cond | None) -> Cond:
        """The condition with one row per image, and the family's "nothing" in rows without any text."""
        rows, size = len(x), self._pixels(x.shape)
        cond = (cond or Cond()).map(lambda v: to_rows(v, rows).to(x.device))
        if self.guidance == "embedded" and "guidance" not in cond.extra:
            cond = replace(cond, extra={**cond.extra, "guidance": x.new_full((rows,), self.scale)})
        if cond.emb is None:
            return cond.with_text(self.null(rows, size).to(x.device))
        empty = [] if cond.mask is None else (~cond.mask.any(1)).tolist()  # ``Cond.null`` hides all tokens
        if any(empty):
            without = cond.with_text(self.null(rows, size).to(x.device))
            cond = Cond.cat([(without if gone else cond)[[i]] for i, gone in enumerate(empty)])
        return cond

    def _pixels(self, shape: Sequence[int]) -> Size:
        return shape[-2] * self.autoencoder.factor, shape[-1] * self.autoencoder.factor

    # ---- the conditioner --------------------------------------------------------------------------------------

    @property
    def main(self) -> Text:
        """The text encoder whose token states are ``emb``: a text is too long where it has no room there."""
        return self.texts[-1]

    @property
    def max_tokens(self) -> int:
        """Most tokens of a text, its marks of start and end included; ``prompts.compile`` cuts longer texts."""
        return self.main.limit - self.main.drop

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], size: Size | None = None) -> Cond:
        """One row for each text; a text that is too long loses its end, with a warning."""
        size = size or self._pixels(self.shape)
        students = [self.student_of(text) for text in prompts]
        conds: list[Cond] = [Cond()] * len(prompts)
        for student in dict.fromkeys(students):
            rows = [i for i, own in enumerate(students) if own is student]
            cond = self._encoded([prompts[i] for i in rows], size, student)
            if len(rows) == len(prompts):
                return self._with_controls(cond, self.shown)
            for row, i in enumerate(rows):
                conds[i] = cond[[row]]
        return self._with_controls(Cond.cat(conds), self.shown)

    def student_of(self, text: str) -> Student | None:
        """Who encodes a text, if not this family's own encoders, which alone know added tokens."""
        if any(name in text for name, _ in getattr(self, "settings", {}).get("tokens", ())):
            return None
        return next((student for student in self.students if student.reads(text)), None)

    def _encoded(self, prompts: list[str], size: Size, student: Student | None) -> Cond:
        if student is not None:
            return student.condition(prompts, self.condition([""], size))
        self.main.check(prompts)
        return self.condition(prompts, size)

    @torch.no_grad()
    def null(self, n: int, size: Size | None = None) -> Cond:
        """``n`` rows of what this family takes for "no prompt"."""
        return self._with_controls(self.nothing(size or self._pixels(self.shape)), False).expand(n)

    @cached_property
    def negative(self) -> Family:
        """The conditioner of negative prompts: itself, unless the family reads them in another way."""
        if not any(each.extra(True) for each in self.controls):
            return self
        other = copy.copy(self)
        other.shown = False
        return other

    def _with_controls(self, cond: Cond, shown: bool) -> Cond:
        """With what the controls add to a condition."""
        added = {name: to_rows(v, len(cond)) for each in self.controls for name, v in each.extra(shown).items()}
        return replace(cond, extra={**cond.extra, **added}) if added else cond

    def token_spans(self, text: str) -> Spans:
        """Which characters of the raw text each row of ``emb`` covers; empty for marks, padding and templates."""
        student = self.student_of(text)
        return self.own_spans(text) if student is None else student.spans(text)

    def own_spans(self, text: str) -> Spans:
        """The same of a text that this family's own encoders encode."""
        return self.main.spans(text)

    def measure(self, text: str) -> Spans:
        """The same of the tokens that :attr:`max_tokens` counts."""
        student = self.student_of(text)
        return self.main.spans(text) if student is None else student.measure(text)

    def unknown_words(self, text: str) -> list[str]:
        """The words that the tokenizer cannot write."""
        student = self.student_of(text)
        return language.unknown_words(text, self.main.knows if student is None else student.knows)


def sides(size: Any) -> Size:
    """Height and width of latents, of a configuration that has one number for both or two."""
    height, width = size if isinstance(size, Sequence) else (size, size)
    return int(height), int(width)


def model(family: Family, tables: Mapping[str, Table]) -> Model:
    """A checkpoint as a ``Model``, with tables that were fitted to it."""
    checkpoint = family.checkpoint
    modules: dict[str, nn.Module] = {NAMES.get(name, name): module for name, module in checkpoint.modules.items()}
    return Model(
        family,
        family.shape,
        sigma_min=family.levels.sigma_min,
        sigma_max=family.levels.sigma_max,
        sigma_data=1.0,
        tables=tables,
        info={"name": folder.title(checkpoint.path), "family": family.name},
        modules=modules,
        schedule=family.schedule,
        scale=family.scale,
        guidance=family.guidance,
        autoencoder=family.autoencoder,
        conditioner=family,
    )
