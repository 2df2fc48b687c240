"""Whatever may happen to an image, as one object with three uses.

It makes training pairs, it is the forward process of a cold diffusion, and it is the measurement that a restoration
inverts:

    what = parse("gray, blur 0.5..3, jpeg 30")      # or  gray() >> blur((0.5, 3)) >> jpeg(30)
    happened = what.on((3, 64, 64), seeds=range(8))  # the numbers are drawn, image i's from seeds[i]
    y = happened.forward(x)                          # and adjoint, pinv, project where it is linear

To add one is to write a function of a batch of numbers in one of this package's modules, and to name it here.
"""

from .blurs import LearnedBlur, blur, defocus, kernel, motion
from .core import CORRUPTIONS, Chain, Corruption, Draw, Kind, Number, OneOf, Operator, Step, Text, after, example
from .covers import covers
from .grammar import parse
from .jpeg import jpeg
from .marks import logo, mask, scratches, watermark
from .pixels import downscale, enlarge, fade, gray, mix, noise, pixelate, posterize

__all__ = [
    "CORRUPTIONS",
    "Chain",
    "Corruption",
    "Draw",
    "Kind",
    "LearnedBlur",
    "Number",
    "OneOf",
    "Operator",
    "Step",
    "Text",
    "after",
    "blur",
    "covers",
    "defocus",
    "downscale",
    "enlarge",
    "example",
    "fade",
    "gray",
    "jpeg",
    "kernel",
    "logo",
    "mask",
    "mix",
    "motion",
    "noise",
    "parse",
    "pixelate",
    "posterize",
    "scratches",
    "watermark",
]
