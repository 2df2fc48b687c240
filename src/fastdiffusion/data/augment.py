"""Augmentation that does not leak into the samples: the network is conditioned on how each image was changed.

Karras et al. 2022 (EDM), app. F.2: each transformation acts with a small probability and writes its parameters into the
vector ``Cond.augment``. The zero vector means "not at all", so that a sampler who passes zeros gets unchanged images.
A transformation with an empty vector (``mirror``, ``turn``, ``crop``) does leak: use it where its results are real
images too.

Everything random is drawn by :func:`draw` for the whole batch, and performed by :func:`apply` on any rows of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ..errors import InputError, unknown


@dataclass(frozen=True)
class Plan:
    """How each image of a batch is changed.

    Attributes:
        space: Where an output pixel comes from, homogeneous, x right and y down in units of half the shorter side.
        color: Acts on (red, green, blue, 1), each in [-1, 1].
        vector: What the network is conditioned on; zeros where nothing was done.
    """

    space: Float[Tensor, "b 3 3"]
    color: Float[Tensor, "b 4 4"]
    vector: Float[Tensor, "b a"]

    def __getitem__(self, rows: slice | Tensor | list[int]) -> Plan:
        """The plan for some of the images (one process's share of the batch)."""
        return Plan(self.space[rows], self.color[rows], self.vector[rows])


# ---- transformations: from uniform u and normal z, both (b, 2), to a matrix and the vector that tells of it ------


def _affine(rows: Sequence[Sequence[Tensor | float]], like: Tensor) -> Tensor:
    """Stack numbers and columns of shape (b,) into matrices (b, n, n)."""
    return torch.stack([torch.stack([torch.zeros_like(like) + value for value in row], -1) for row in rows], -2)


def _rotation(angle: Tensor) -> Tensor:
    c, s = angle.cos(), angle.sin()
    return _affine([[c, -s, 0], [s, c, 0], [0, 0, 1]], angle)


def mirror(u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Left and right exchanged in half of the images. Not conditioned on: for data that has no left and right."""
    sign = torch.where(u[:, 0] < 0.5, -1.0, 1.0)
    return _affine([[sign, 0, 0], [0, 1, 0], [0, 0, 1]], sign), u[:, :0]


def turn(u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Turned by 0, 90, 180 or 270 degrees. Not conditioned on: for textures, and where up and down do not matter."""
    return _rotation((4 * u[:, 0]).floor() * math.pi / 2), u[:, :0]


def crop(u: Tensor, z: Tensor, least: float = 0.85) -> tuple[Tensor, Tensor]:
    """A window of 85 to 100 % of each side, anywhere. Not conditioned on: for photographs, whose frame is chance."""
    side = least + (1 - least) * (z[:, 0] * 0.5**0.5).erf().abs()  # uniform
    x, y = ((1 - side) * (2 * u[:, i] - 1) for i in (0, 1))
    return _affine([[side, 0, x], [0, side, y], [0, 0, 1]], side), u[:, :0]


def flip_x(u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Left and right exchanged, in half of the images that it acts on."""
    on = (u[:, 0] < 0.5).float()
    return _affine([[1 - 2 * on, 0, 0], [0, 1, 0], [0, 0, 1]], on), on[:, None]


def flip_y(u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Up and down exchanged, in half of the images that it acts on."""
    on = (u[:, 0] < 0.5).float()
    return _affine([[1, 0, 0], [0, 1 - 2 * on, 0], [0, 0, 1]], on), on[:, None]


def scale(u: Tensor, z: Tensor, spread: float = 0.2) -> tuple[Tensor, Tensor]:
    """Enlarged 2^(0.2 z) times."""
    s = 2 ** (-spread * z[:, 0])  # the inverse: from output to input
    return _affine([[s, 0, 0], [0, s, 0], [0, 0, 1]], s), z[:, :1]


def rotate(u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Turned by any angle a; conditioned on as (cos a - 1, sin a)."""
    angle = (2 * u[:, 0] - 1) * math.pi
    return _rotation(-angle), torch.stack([angle.cos() - 1, angle.sin()], 1)


def stretch(u: Tensor, z: Tensor, spread: float = 0.2) -> tuple[Tensor, Tensor]:
    """Stretched 2^(0.2 z) times along a direction a and compressed across it; conditioned on as z (cos a, sin a)."""
    angle = (2 * u[:, 0] - 1) * math.pi
    s = 2 ** (-spread * z[:, 0])
    matrix = _rotation(angle) @ _affine([[s, 0, 0], [0, 1 / s, 0], [0, 0, 1]], s) @ _rotation(-angle)
    return matrix, z[:, :1] * torch.stack([angle.cos(), angle.sin()], 1)


def shift(u: Tensor, z: Tensor, spread: float = 0.125) -> tuple[Tensor, Tensor]:
    """Moved by z / 8 of the shorter side, right and down."""
    x, y = -2 * spread * z.T
    return _affine([[1, 0, x], [0, 1, y], [0, 0, 1]], x), z


_GRAY = 3**-0.5  # the axis of the greys, (1, 1, 1) / sqrt(3)


def _along_gray(along: Tensor, turn: Tensor, across: Tensor) -> Tensor:
    """Scale brightness ``along`` the grey axis, scale saturation ``across`` it, and ``turn`` the hue about it."""
    axis = torch.full((3,), _GRAY, dtype=turn.dtype)
    onto = torch.outer(axis, axis)
    cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=turn.dtype) * _GRAY
    away = torch.eye(3, dtype=turn.dtype) - onto
    linear = along[:, None, None] * onto + across[:, None, None] * (
        turn.cos()[:, None, None] * away + turn.sin()[:, None, None] * cross
    )
    return functional.pad(linear, (0, 1, 0, 1)) + torch.diag(torch.tensor([0.0, 0, 0, 1]))


def brightness(u: Tensor, z: Tensor, spread: float = 0.2) -> tuple[Tensor, Tensor]:
    """0.2 z added to all colors."""
    b = spread * z[:, 0]
    return _affine([[1, 0, 0, b], [0, 1, 0, b], [0, 0, 1, b], [0, 0, 0, 1]], b), z[:, :1]


def contrast(u: Tensor, z: Tensor, spread: float = 0.5) -> tuple[Tensor, Tensor]:
    """All colors 2^(0.5 z) times farther from middle grey."""
    s = 2 ** (spread * z[:, 0])
    return _affine([[s, 0, 0, 0], [0, s, 0, 0], [0, 0, s, 0], [0, 0, 0, 1]], s), z[:, :1]


def hue(u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Colors turned about the grey axis by any angle a, given as (cos a - 1, sin a). Grey images do not change."""
    angle = (2 * u[:, 0] - 1) * math.pi
    one = torch.ones_like(angle)
    return _along_gray(one, angle, one), torch.stack([angle.cos() - 1, angle.sin()], 1)


def saturation(u: Tensor, z: Tensor, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Colors 2^z times farther from the grey axis. Nothing on grey images."""
    s = 2 ** (spread * z[:, 0])
    return _along_gray(torch.ones_like(s), torch.zeros_like(s), s), z[:, :1]


Transformation = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
AUGMENTS: dict[str, Transformation] = {
    f.__name__: f
    for f in (mirror, turn, crop, flip_x, flip_y, scale, rotate, stretch, shift, brightness, contrast, hue, saturation)
}
EDM = ("flip_x", "flip_y", "scale", "rotate", "stretch", "shift")  # the paper's choice: a vector of 9
COLOR = ("brightness", "contrast", "hue", "saturation")  # 5 more
_ALWAYS = ("mirror", "turn", "crop", "flip_x")  # act on every image, whatever p (EDM, app. F.2 does so with flip_x)


def _checked(names: Sequence[str]) -> list[Transformation]:
    for name in names:
        if name not in AUGMENTS:
            raise unknown("augmentation", name, AUGMENTS)
    return [AUGMENTS[name] for name in names]


def length(names: Sequence[str] = EDM) -> int:
    """Length of the vector: what a network is built with, ``augment=length(names)``."""
    none = torch.zeros(1, 2)
    return sum(f(none, none)[1].shape[1] for f in _checked(names))


def draw(n: int, generator: torch.Generator, names: Sequence[str] = EDM, p: float = 0.12) -> Plan:
    """Decide how ``n`` images are changed; each of ``names``, in this order, with probability ``p``.

    ``mirror``, ``turn``, ``crop`` and ``flip_x`` do not wait for ``p``.
    """
    if not 0 <= p <= 1:
        raise InputError(f"The probability of augmentation must be from 0 to 1, got {p}. Try 0.12.")
    space, color, vectors = torch.eye(3).repeat(n, 1, 1), torch.eye(4).repeat(n, 1, 1), [torch.zeros(n, 0)]
    for name, f in zip(names, _checked(names), strict=True):
        u, z = torch.rand(n, 2, generator=generator), torch.randn(n, 2, generator=generator)
        acts = torch.rand(n, generator=generator) < (1.0 if name in _ALWAYS else p)
        matrix, vector = f(u, z)
        matrix = torch.where(acts[:, None, None], matrix, torch.eye(matrix.shape[-1]))
        if matrix.shape[-1] == 3:
            space = space @ matrix  # maps outputs to inputs: the last transformation comes first
        else:
            color = matrix @ color
        vectors.append(torch.where(acts[:, None], vector, 0.0))
    return Plan(space, color, torch.cat(vectors, 1))


def apply(images: Float[Tensor, "b c h w"], plan: Plan) -> Float[Tensor, "b c h w"]:
    """Perform a plan on images in [-1, 1]. An untouched row comes back bit for bit, and a mirrored one or a square
    in quarter turns exactly, pixel by pixel.

    Outside its frame an image goes on as its mirror image. Colors are clipped to [-1, 1]; alpha channels only move.
    """
    return _colored(move(images, plan), plan.color.to(images.device))


def move(images: Float[Tensor, "b c h w"], plan: Plan) -> Float[Tensor, "b c h w"]:
    """What a plan does to places alone: for the other image of a pair, whose colors are its own."""
    return _moved(images, plan.space.to(images.device))


def augment(
    images: Float[Tensor, "b c h w"], generator: torch.Generator, names: Sequence[str] = EDM, p: float = 0.12
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b a"]]:
    """:func:`draw` and :func:`apply` in one: the changed images and the vectors for ``Cond.augment``."""
    plan = draw(len(images), generator, names, p)
    return apply(images, plan), plan.vector.to(images.device)


def _moved(images: Tensor, space: Tensor) -> Tensor:
    h, w = images.shape[-2:]
    out, rest = images.clone(), torch.ones(len(images), dtype=torch.bool, device=images.device)
    # mirrors, and quarter turns of squares, are permutations of pixels, not interpolations
    for source, matrix in ((images, space), (images.transpose(2, 3), space[:, [1, 0, 2]])):
        if source.shape != images.shape:
            continue
        signs = matrix.diagonal(dim1=1, dim2=2)[:, :2].sign()
        off = matrix - torch.diag_embed(functional.pad(signs, (0, 1), value=1.0))
        exact = rest & (off.flatten(1).abs().amax(1) < 1e-6)
        out[exact] = source[exact]
        for axis in (0, 1):
            rows = exact & (signs[:, axis] < 0)
            out[rows] = out[rows].flip(3 - axis)
        rest &= ~exact
    if rest.any():
        half = torch.tensor([w, h, 1], dtype=space.dtype, device=space.device) / min(h, w)
        half[2] = 1
        theta = (space[rest] * half / half[:, None])[
            :, :2
        ]  # units of half the shorter side to grid_sample's half sides
        grid = functional.affine_grid(theta, [len(theta), 1, h, w], align_corners=False)
        out[rest] = functional.grid_sample(
            images[rest], grid.to(images.dtype), mode="bicubic", padding_mode="reflection", align_corners=False
        ).clamp(-1, 1)
    return out


def _colored(images: Tensor, color: Tensor) -> Tensor:
    rows = (color - torch.eye(4, device=color.device)).flatten(1).abs().amax(1) > 1e-6
    if not rows.any():
        return images
    out = images.clone()
    color, pixels = color[rows].to(images.dtype), images[rows]
    if images.shape[1] in (1, 2):  # grey: what the matrix does to the grey axis
        scale, offset = color[:, :3, :3].sum((1, 2)) / 3, color[:, :3, 3].mean(1)
        changed = scale[:, None, None, None] * pixels[:, :1] + offset[:, None, None, None]
        out[rows, :1] = changed.clamp(-1, 1)
    elif images.shape[1] in (3, 4):
        changed = torch.einsum("bij,bjhw->bihw", color[:, :3, :3], pixels[:, :3]) + color[:, :3, 3, None, None]
        out[rows, :3] = changed.clamp(-1, 1)
    return out
