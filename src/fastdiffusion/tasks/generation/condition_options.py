"""Options of the conditions that are images, without torch: what the command line reads of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ... import choices
from ...errors import InputError, unknown
from ...options import option

EDGES = "edges"
_PART = re.compile(r"(?:[A-Za-z]:(?=[\\/])|hf:)?[^:]*")
_WINDOW = re.compile(r"(\d*\.?\d+)-(\d*\.?\d+)")


class ControlSpec(NamedTuple):
    """A control as it is typed: FOLDER:[edges:]IMAGE[:SCALE[:START-END]]."""

    network: str
    image: str
    edges: bool = False
    scale: float = 1.0
    window: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(cls, text: str) -> ControlSpec:
        """Read one; raises InputError for anything else."""
        parts, window, scale = _split(text), (0.0, 1.0), 1.0
        if len(parts) > 2 and (match := _WINDOW.fullmatch(parts[-1])):
            window = (float(match[1]), float(match[2]))
            parts = parts[:-1]
        if len(parts) > 2 and (number := _number(parts[-1])) is not None:
            scale = number
            parts = parts[:-1]
        edges = len(parts) == 3 and parts[1] == EDGES
        if len(parts) != 2 + edges or not all(parts):
            raise InputError(
                f"A control is a network and its image, got {text!r}. "
                "Example: canny:edges.png:0.8, or canny:edges:photo.png to have the edges drawn."
            )
        return cls(parts[0], parts[-1], edges, scale, window)

    def __str__(self) -> str:
        made_of = f"{EDGES}:" if self.edges else ""
        return f"{self.network}:{made_of}{self.image}:{self.scale!r}:{self.window[0]!r}-{self.window[1]!r}"


def weighted(text: str) -> tuple[str, float]:
    """The file and the weight of "FILE[:WEIGHT]"; without one it is 1."""
    parts = _split(text)
    number = _number(parts[-1]) if len(parts) > 1 else None
    return (text, 1.0) if number is None else (":".join(parts[:-1]), number)


def _split(text: str) -> list[str]:
    """The parts between colons; that of a drive's letter, as Windows has it, or of a hub's name divides nothing."""
    parts, place = [], 0
    while place <= len(text):
        part = _PART.match(text, place)
        assert part is not None
        parts.append(part[0])
        place = part.end() + 1
    return parts


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class ConditionOptions:
    """Conditions besides words and classes (docs/conditioners.md).

    Attributes:
        control: ControlNets and T2I-Adapters, each with the map that it reads, "FOLDER:IMAGE:SCALE:START-END"; scale
            and part of the run may be left out. "FOLDER:edges:IMAGE" draws the edges of an image for a network that
            reads those, and "hf:owner/name" is a network of the hub. Of several, all add up. In Python also
            ``adapters.conditioners.Controlled``.
        image_prompt: Images of which something is to be drawn, each "FILE" or "FILE:WEIGHT"; of several, what lies
            between them. It needs ``ip_adapter``, or a model that takes images.
        ip_adapter: The file of an IP-Adapter, "FILE" or "FILE:SCALE".
        image_encoder: The folder of its image encoder, where that is not beside it.
        image_scale: Of InstructPix2Pix: how much the result is to keep of the image; 1 to 2 is usual.
        noise_level: Of the x4 upscaler (by default 20) and of unCLIP (0): how noisy image or embedding are taken to
            be, 0 to 999. More is freer.
        seamless: Which edges continue on the other side: "x", "y" or "xy", for images that are laid side by side.
    """

    control: Any = option(
        (), "A ControlNet or T2I-Adapter and its image; FOLDER:edges:IMAGE draws the edges; may be repeated.",
        kind=list[str] | None, metavar="FOLDER:IMAGE[:SCALE[:START-END]]",
    )  # fmt: skip
    image_prompt: Any = option(
        (), "An image of which something is to be drawn; may be repeated.", kind=list[str] | None,
        metavar="IMAGE[:WEIGHT]",
    )  # fmt: skip
    ip_adapter: str | Path | None = option(
        None, "The IP-Adapter for --image-prompt.", kind=str | None, metavar="FILE[:SCALE]"
    )
    image_encoder: str | Path | None = option(
        None, "Folder of the image encoder, where it is not beside the IP-Adapter.", kind=Path | None
    )
    image_scale: float = option(1.5, "Of InstructPix2Pix: how much to keep of --image.")
    noise_level: int | None = option(None, "Of the x4 upscaler and unCLIP: how noisy the image is taken to be.")
    seamless: str | None = option(None, "Edges that continue on the other side, for tiles.", choices=choices.SEAMLESS)

    def check_conditions(self) -> None:
        """Bring them to one form; raises InputError for what cannot be one."""
        for name in ("control", "image_prompt"):
            value: Any = getattr(self, name)
            several: list[Any] = list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
            object.__setattr__(self, name, [str(each) if isinstance(each, Path) else each for each in several])
        for each in self.control:
            if isinstance(each, str):
                ControlSpec.of(each)
        if self.ip_adapter is not None and not self.image_prompt:
            raise InputError("ip_adapter needs an image. Give it: image_prompt='in.png' (--image-prompt in.png).")
        if self.image_encoder is not None and self.ip_adapter is None:
            raise InputError("image_encoder is an IP-Adapter's, and there is none. Give ip_adapter, or leave it out.")
        if self.seamless not in (None, *choices.SEAMLESS):
            raise unknown("pair of edges", self.seamless, choices.SEAMLESS)
