"""What a corruption is: a description with ranges in it, and its operator on one batch once its numbers are drawn.

A :class:`Corruption` describes what may happen to an image ("blur 0.5..3"). With the images' shape and a seed for each,
it becomes an :class:`Operator`, whose numbers are fixed: ``y = forward(x)``. Where that is linear up to a constant and
noise, ``y = A x + b + std * noise``, it has the adjoint of A and its pseudo-inverse as well.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..noise import Stream, generator

Shape = tuple[int, int, int]
Value = float | str | tuple[float, float] | Tensor


# ---- what is done to a batch ------------------------------------------------------------------------------------


def _same(y: Tensor) -> Tensor:
    return y


@dataclass(frozen=True)
class Operator:
    """A corruption of one batch, its numbers drawn. All tensors have one row per image.

    Attributes:
        shape: (c, h, w) of the clean images.
        out: The same of the degraded ones.
        mean: The degradation without its noise; A x + b where ``linear``.
        linear: Whether ``mean`` is linear up to a constant.
        std: Standard deviation of the noise that is added to it, (b,).
        noise: That noise as it was drawn.
        inverse: The pseudo-inverse of A where it has a closed form.
        lift: The degraded image brought back to the grid of the clean one, to be looked at or learned from.
        nearest: ``nearest(x, y)`` is the image nearest to x whose degradation is y, where that is not linear algebra.
        text: What was drawn, one string per image.
        gain: Of A, where it does nothing but multiply each pixel by a number of its own.
    """

    shape: Shape
    out: Shape
    mean: Callable[[Tensor], Tensor]
    linear: bool = True
    std: Tensor | None = None
    noise: Tensor | None = None
    inverse: Callable[[Tensor], Tensor] | None = None
    lift: Callable[[Tensor], Tensor] = _same
    nearest: Callable[[Tensor, Tensor], Tensor] | None = None
    text: tuple[str, ...] = ()
    gain: Tensor | None = None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o p q"]:
        """The degraded images, noise included."""
        y = self.mean(x)
        return y if self.noise is None else y + self.noise.to(y)

    __call__ = forward

    def adjoint(self, y: Float[Tensor, "b o p q"]) -> Float[Tensor, "b c h w"]:
        """A' y: the gradient of <A x, y> in x, which is exact because A is linear."""
        self._linear()
        with torch.enable_grad():
            x = y.new_zeros(len(y), *self.shape).requires_grad_()
            (gradient,) = torch.autograd.grad((self.mean(x) * y.detach()).sum(), x)
        return gradient

    def pinv(self, y: Float[Tensor, "b o p q"], steps: int = 60) -> Float[Tensor, "b c h w"]:
        """The smallest x whose A x + b is nearest to y: in closed form, or by conjugate gradients (CGLS).

        Stopping after ``steps`` leaves out the directions that A nearly loses, as a cut-off of its singular values
        does.
        """
        self._linear()
        offset = self.mean(y.new_zeros(len(y), *self.shape))
        if self.inverse is not None:
            return self.inverse(y - offset)
        x, r = y.new_zeros(len(y), *self.shape), y - offset
        s = p = self.adjoint(r)
        gamma = first = _dot(s, s)
        for _ in range(steps):
            if bool((gamma <= 1e-14 * first).all()):
                break
            q = self.mean(p) - offset
            a = gamma / _dot(q, q).clamp(min=1e-30)
            x, r = x + a * p, r - a * q
            s = self.adjoint(r)
            gamma, before = _dot(s, s), gamma
            p = s + gamma / before.clamp(min=1e-30) * p
        return x

    def project(self, x: Float[Tensor, "b c h w"], y: Float[Tensor, "b o p q"]) -> Float[Tensor, "b c h w"]:
        """The nearest image to ``x`` that degrades to ``y``: x + A+ (y - A x - b) (Wang et al. 2022, DDNM, eq. 7).

        InputError where no such projection is known.
        """
        if self.nearest is not None:
            return self.nearest(x, y)
        self._linear()
        offset = self.mean(torch.zeros_like(x))
        return x + self.pinv(y - self.mean(x) + offset)

    @property
    def projects(self) -> bool:
        """Whether :meth:`project` is known."""
        return self.linear or self.nearest is not None

    def _linear(self) -> None:
        if not self.linear:
            raise InputError(
                f"{self.text[0] if self.text else 'This corruption'} is not linear: it has no adjoint and no "
                "pseudo-inverse. Restore it with a trained model (method='supervised') or a gradient (posterior='dps')."
            )


def _dot(a: Tensor, b: Tensor) -> Float[Tensor, "b 1 1 1"]:
    return (a * b).sum((1, 2, 3), keepdim=True)


def identity(shape: Shape) -> Operator:
    """Nothing happens."""
    return Operator(shape, shape, _same, inverse=_same)


def after(first: Operator, then: Operator) -> Operator:
    """``first``, and ``then`` on what comes of it. Noise on the way counts as if it came last."""

    def forward(x: Tensor) -> Tensor:
        return then.mean(first.forward(x)) if first.noise is not None else then.mean(first.mean(x))

    trivial = first.mean is _same and first.noise is None
    std = first.std if then.std is None else then.std if first.std is None else torch.hypot(first.std, then.std)
    mean = then.mean if trivial else forward if not then.linear else lambda x: then.mean(first.mean(x))
    carried = first.noise  # what the first step's noise becomes, so that mean stays free of it
    if carried is not None:  # where the second is not linear, it is inside ``forward``
        carried = then.mean(carried) - then.mean(torch.zeros_like(carried)) if then.linear else None
    noise = carried if then.noise is None else then.noise if carried is None else carried + then.noise
    free = then.inverse is _same
    return Operator(
        first.shape,
        then.out,
        mean,
        first.linear and then.linear,
        std,
        noise,
        then.inverse if trivial else first.inverse if free and then.mean is _same else None,
        lambda y: first.lift(then.lift(y)),
        then.nearest if trivial else first.nearest if then.mean is _same else None,
        tuple(", ".join(filter(None, pair)) for pair in zip(first.text, then.text, strict=True)),
        then.gain if trivial else None,
    )


# ---- random numbers ---------------------------------------------------------------------------------------------


class Draw:
    """Random numbers of a batch, each image's from its own seed, so that image i depends on seeds[i] alone."""

    def __init__(self, seeds: Sequence[int]):
        self.generators = [generator(seed, Stream.CORRUPTION_PARAMETERS) for seed in seeds]

    def __len__(self) -> int:
        return len(self.generators)

    def uniform(self, low: float, high: float) -> Float[Tensor, " b"]:
        """One number per image."""
        return torch.cat([low + (high - low) * torch.rand(1, generator=g) for g in self.generators])

    def normal(self, *shape: int) -> Float[Tensor, "b *shape"]:
        """Unit normals."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators])


# ---- descriptions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """A parameter: drawn from ``low`` to ``high`` unless it is specified, from ``least`` to ``most``.

    Attributes:
        whole: Only whole numbers.
        single: No ranges, since it decides the shape of what comes out.
        none: The value at which the corruption does nothing.
        file: A file's name may be given instead.
    """

    low: float
    high: float
    least: float = 0.0
    most: float = math.inf
    whole: bool = False
    single: bool = False
    none: float | None = None
    file: bool = False

    def check(self, where: str, value: Any) -> Value:
        """The value, if it is allowed."""
        if self.file and isinstance(value, str | Tensor):
            return value
        ends = value if isinstance(value, tuple) else (value, value)
        if len(ends) != 2 or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in ends):
            raise InputError(f"{where} must be a number or a range, got {value!r}. Example: {self.example}.")
        low, high = map(float, ends)
        if not self.least <= low <= high <= self.most:
            most = "" if self.most == math.inf else f" to {self.most:g}"
            raise InputError(f"{where} must be from {self.least:g}{most}, got {show(value)}. Example: {self.example}.")
        if self.whole and (low % 1 or high % 1):
            raise InputError(f"{where} must be a whole number, got {show(value)}. Example: {self.example}.")
        if self.single and low != high:
            raise InputError(f"{where} cannot be a range, got {show(value)}. Say one thing or another: 'a 2 | a 4'.")
        return (low, high) if low != high else low

    @property
    def example(self) -> str:
        """An allowed value."""
        return show(self.low if self.single or self.low == self.high else (self.low, self.high))

    def draw(self, draw: Draw, value: Any) -> Any:
        """One number per image; one for all where ``single``; a file's name as it is."""
        if isinstance(value, str | Tensor):
            return value
        low, high = (self.low, self.high) if value is None else value if isinstance(value, tuple) else (value, value)
        if self.single:
            return int(low) if self.whole else low
        if self.whole:
            return draw.uniform(low, high + 1).floor().clamp(max=high)
        return draw.uniform(low, high)


@dataclass(frozen=True)
class Text:
    """A parameter that is a word: one of ``known``, the first by default; or any text where that is empty.

    ``alike``: a model that learned one word undoes the others as well.
    """

    known: tuple[str, ...] = ()
    default: str = ""
    alike: bool = False

    def check(self, where: str, value: Any) -> str:
        """The value, if it is allowed."""
        if not isinstance(value, str) or (self.known and value not in self.known):
            known = f"one of {', '.join(self.known)}" if self.known else "a text in quotes"
            raise InputError(f"{where} must be {known}, got {show(value)}.")
        return value

    @property
    def example(self) -> str:
        """An allowed value."""
        return show(self.known[0] if self.known else self.default)

    def draw(self, draw: Draw, value: Any) -> str:
        """The word, nothing random about it."""
        return (self.known[0] if self.known else self.default) if value is None else value


def show(value: Any) -> str:
    """A value as the grammar writes it."""
    if isinstance(value, tuple):
        return f"{value[0]:g}..{value[1]:g}"
    if isinstance(value, Tensor):
        return f"[{'x'.join(map(str, value.shape))}]"
    if isinstance(value, int | float):
        return f"{value:g}"
    plain = re.fullmatch(r"[1-9]\d{0,5}|[^\W\d][\w./\\~:-]*|[/~.][\w./\\~:-]+", value)
    if plain and not re.fullmatch(r"x\d+", value):
        return value
    if "'" in value and '"' in value:
        raise InputError(f"A text cannot hold both kinds of quotes: {value}. Leave one out.")
    return f'"{value}"' if "'" in value else f"'{value}'"


@dataclass(frozen=True)
class Kind:
    """A row of the registry: how to make the operator of a step, and its parameters.

    ``chance``: numbers do not determine all of it (the place of a hole).
    """

    make: Callable[..., Operator]
    parameters: dict[str, Number | Text]
    summary: str
    chance: bool = False


CORRUPTIONS: dict[str, Kind] = {}  # closed: filled by the modules of this package, see :func:`corruption`


def corruption(
    *, chance: bool = False, **parameters: Number | Text
) -> Callable[[Callable[..., Operator]], Callable[..., Step]]:
    """Register ``make(draw, shape, *numbers) -> Operator`` under its name; what comes back makes the step.

    ``blur(1.5)`` is 1.5 pixels, ``blur((0.5, 3))`` a range, ``blur()`` its usual range.
    """

    def register(make: Callable[..., Operator]) -> Callable[..., Step]:
        name = make.__name__
        CORRUPTIONS[name] = Kind(make, parameters, (make.__doc__ or "").split("\n")[0], chance)

        def step(*values: Any, **named: Any) -> Step:
            arguments = [*values, *(named[key] for key in list(parameters)[len(values) :] if key in named)]
            return Step(name, tuple(arguments))

        step.__name__, step.__doc__, step.__module__ = name, make.__doc__, make.__module__
        return step

    return register


class Corruption(ABC):
    """What may happen to an image. ``a >> b``: b after a. ``a | b``: one of them. ``str``: the grammar's text."""

    @abstractmethod
    def at(self, draw: Draw, shape: Shape) -> Operator:
        """The operator for images of ``shape``, its numbers taken from ``draw``."""

    @property
    @abstractmethod
    def steps(self) -> tuple[Step, ...]:
        """All steps, in order."""

    def on(self, shape: Sequence[int], seeds: Sequence[int]) -> Operator:
        """What happens to images of ``shape`` (c, h, w), one per seed.

        Raises InputError where the shape does not go with it.
        """
        c, h, w = shape
        return self.at(Draw(seeds), (c, h, w))

    def __call__(self, x: Float[Tensor, "b c h w"], seed: int = 0) -> Float[Tensor, "b o p q"]:
        """Degrade images; image i has the seed ``seed + i``."""
        return self.on(x.shape[1:], range(seed, seed + len(x))).forward(x)

    @property
    def known(self) -> bool:
        """Whether all is specified, so that the same is done to every image (except for noise)."""
        return all(step.fixed for step in self.steps)

    def __rshift__(self, other: Corruption) -> Corruption:
        mine, others = (c.parts if isinstance(c, Chain) else (c,) for c in (self, other))
        return Chain((*mine, *others))

    def __or__(self, other: Corruption) -> Corruption:
        mine, others = (c.parts if isinstance(c, OneOf) else (c,) for c in (self, other))
        return OneOf((*mine, *others))


@dataclass(frozen=True)
class Step(Corruption):
    """One corruption of the registry, with its values: numbers, ranges (low, high), names."""

    name: str
    values: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        kind = CORRUPTIONS[self.name]
        if len(self.values) > len(kind.parameters):
            takes = f"takes {len(kind.parameters)} values" if kind.parameters else "takes no value"
            raise InputError(
                f"{self.name} {takes}, got {' '.join(map(show, self.values))}. Example: {example(self.name)}."
            )
        checked = [
            None if value is None else parameter.check(f"{self.name}'s {key}", value)
            for (key, parameter), value in zip(kind.parameters.items(), self.values, strict=False)
        ]
        object.__setattr__(self, "values", tuple(checked))

    @property
    def steps(self) -> tuple[Step, ...]:
        """Itself."""
        return (self,)

    @property
    def fixed(self) -> bool:
        """Whether nothing is left to chance."""
        file = any(isinstance(value, str | Tensor) for p, value in self._pairs() if isinstance(p, Number))
        return (file or not CORRUPTIONS[self.name].chance) and not self.open

    @property
    def open(self) -> tuple[str, ...]:
        """The parameters that have no value of their own: left out, or a range."""
        pairs = zip(CORRUPTIONS[self.name].parameters, self._pairs(), strict=True)
        return tuple(
            name
            for name, (p, v) in pairs
            if (isinstance(p, Number) and (p.file or p.low != p.high) if v is None else isinstance(v, tuple))
        )

    def _pairs(self) -> list[tuple[Number | Text, Any]]:
        """Each parameter with its value, or None."""
        parameters = list(CORRUPTIONS[self.name].parameters.values())
        return list(zip(parameters, (*self.values, *[None] * (len(parameters) - len(self.values))), strict=True))

    def at(self, draw: Draw, shape: Shape) -> Operator:
        """See :meth:`Corruption.at`."""
        kind = CORRUPTIONS[self.name]
        drawn = [p.draw(draw, value) for p, value in self._pairs()]
        made = kind.make(draw, shape, *drawn)
        rows = range(len(draw))
        text = (" ".join([self.name, *(show(_row(v, i)) for v in drawn)]) for i in rows)
        return replace(made, text=tuple(text))

    def __str__(self) -> str:
        return " ".join([self.name, *map(show, self.values)])


def _row(value: Any, i: int) -> Any:
    return round(float(value[i]), 4) if isinstance(value, Tensor) and value.ndim == 1 else value


def example(name: str) -> str:
    """An example of a corruption, all its parameters spelled out."""
    return " ".join([name, *(p.example for p in CORRUPTIONS[name].parameters.values())])


@dataclass(frozen=True)
class Chain(Corruption):
    """Several, one after the other; none is the identity."""

    parts: tuple[Corruption, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """All parts' steps."""
        return tuple(step for part in self.parts for step in part.steps)

    def at(self, draw: Draw, shape: Shape) -> Operator:
        """See :meth:`Corruption.at`."""
        made = replace(identity(shape), text=("",) * len(draw))
        for part in self.parts:
            made = after(made, part.at(draw, made.out))
        return made

    def __str__(self) -> str:
        return ", ".join(f"({part})" if isinstance(part, OneOf) else str(part) for part in self.parts)


@dataclass(frozen=True)
class OneOf(Corruption):
    """One of several, drawn for each image. What comes out is on the grid of the clean images, whichever it is."""

    parts: tuple[Corruption, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """All parts' steps."""
        return tuple(step for part in self.parts for step in part.steps)

    @property
    def known(self) -> bool:
        """Never, unless there is no choice."""
        return len(self.parts) == 1 and self.parts[0].known

    def at(self, draw: Draw, shape: Shape) -> Operator:
        """See :meth:`Corruption.at`."""
        which = draw.uniform(0, len(self.parts)).long().clamp(max=len(self.parts) - 1).tolist()
        groups: list[tuple[list[int], Operator]] = []
        for i, part in enumerate(self.parts):
            rows = [row for row, choice in enumerate(which) if choice == i]
            if rows:
                some = Draw([])
                some.generators = [draw.generators[row] for row in rows]
                groups.append((rows, part.at(some, shape)))
        text = [""] * len(draw)
        for rows, operator in groups:
            for row, description in zip(rows, operator.text, strict=True):
                text[row] = description

        def mean(x: Tensor) -> Tensor:
            out = torch.empty_like(x)
            for rows, operator in groups:
                out[rows] = operator.lift(operator.forward(x[rows]))
            return out

        return Operator(shape, shape, mean, linear=False, text=tuple(text))

    def __str__(self) -> str:
        return " | ".join(map(str, self.parts))


def sequence(parts: Sequence[Corruption]) -> Corruption:
    """All of them, one after the other."""
    return parts[0] if len(parts) == 1 else reduce(lambda a, b: a >> b, parts, Chain(()))
