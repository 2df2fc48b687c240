"""Scenes of dead leaves: images without a photographer, whose edges and textures are distributed as in photographs.

Shapes of all sizes that cover one another have the statistics of natural images (Lee, Mumford & Huang 2001), and what
is trained on them restores photographs almost as well as what is trained on photographs (Achddou, Gousseau & Ladjal
2021). Among the leaves here are lines of text and gratings, which photographs rarely show and screenshots often do.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

OVERSAMPLING = 2
SMALLEST, LARGEST = 3.0, 0.4  # radius in pixels, and as a part of the side; in between its density falls with r^-3
SHARP = 0.5  # part of the scenes that is in focus everywhere
LETTERS = "etaoinshrdlucmfwypvbgkqjxzETAOINSHR0123456789.,;:!?()&%-+/ "


def scene(side: int, seed: int) -> Image.Image:
    """A square RGB image of ``side`` pixels; the same for the same seed."""
    g, n = np.random.default_rng(seed), side * OVERSAMPLING
    palette, grain = _palette(g), _grain(n, g)
    canvas = np.broadcast_to(palette[0], (n, n, 3)).copy()
    for radius in _radii(n, g):
        color = np.clip(palette[g.integers(len(palette))] + g.normal(0, 0.05, 3), 0, 1)
        y, x = g.uniform(-radius, n + radius, 2)
        _paint(canvas, _shape(radius, g), int(y - radius), int(x - radius), color, grain, g)
    image = Image.fromarray((canvas * 255).round().astype(np.uint8))
    if g.random() > SHARP:  # partly out of focus, as photographs are
        near = _grain(n, g, exponent=2.0)[..., None] > g.normal(0, 0.5)
        soft = np.asarray(image.filter(ImageFilter.GaussianBlur(OVERSAMPLING * g.uniform(0.5, 3))))
        image = Image.fromarray(np.where(near, np.asarray(image), soft))
    return image.resize((side, side), Image.Resampling.LANCZOS)


def _palette(g: np.random.Generator) -> np.ndarray:
    """Some twenty colors of one light: grays of all brightnesses, and around them more or less of a few hues."""
    bright = g.beta(1.2, 1.5, (20, 1))
    hues = g.normal(0, 1, (3, 3))
    hues -= hues.mean(1, keepdims=True)  # of no brightness of their own
    strength = g.exponential(0.12, (20, 1)) * g.choice([0.3, 0.7, 1.2])
    return np.clip(bright + strength * hues[g.integers(0, 3, 20)] + g.normal(0, 0.04, 3), 0, 1).astype(np.float32)


def _grain(n: int, g: np.random.Generator, exponent: float = 1.0) -> np.ndarray:
    """Noise whose amplitude falls with the frequency to the ``exponent``; of standard deviation 1, periodic."""
    frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(g.standard_normal((n, n))) / np.maximum(frequency, 3 / n) ** exponent
    field = np.fft.irfft2(noise, (n, n))
    return (field / field.std()).astype(np.float32)


def _radii(n: int, g: np.random.Generator) -> np.ndarray:
    """Radii with density r^-3 (areas of each octave are alike), as many as cover the canvas some four times."""
    low, high = SMALLEST * OVERSAMPLING, LARGEST * n
    count = int(4 * n * n / (4 * low**2 * np.log(high / low)))
    u = g.random(count)
    return (low**-2 - u * (low**-2 - high**-2)) ** -0.5


def _shape(radius: float, g: np.random.Generator) -> np.ndarray:
    """A mask, 0 to 1, of a disk, an ellipse, a polygon, a bar or text."""
    size = max(int(2 * radius), 3)
    mask = Image.new("L", (size, size))
    draw, kind = ImageDraw.Draw(mask), g.random()
    if kind < 0.1 and size > 24 * OVERSAMPLING:
        font = ImageFont.load_default(size=float(g.uniform(9, min(size / 2, 40 * OVERSAMPLING))))
        text = "\n".join("".join(g.choice(list(LETTERS), 40)) for _ in range(20))
        draw.multiline_text((0, 0), text, fill=255, font=font)
    elif kind < 0.4:
        wide = size * g.uniform(0.3, 1)
        draw.ellipse((0, (size - wide) / 2, size - 1, (size + wide) / 2 - 1), fill=255)
    elif kind < 0.6:  # a bar: branches, wires, frames
        wide = max(size * g.uniform(0.03, 0.3), 1)
        draw.rectangle((0, (size - wide) / 2, size - 1, (size + wide) / 2), fill=255)
    else:
        corners = int(g.integers(3, 9))
        angles, reach = np.sort(g.uniform(0, 2 * np.pi, corners)), g.uniform(0.4, 1, corners) * size / 2
        points = np.stack([size / 2 + reach * np.cos(angles), size / 2 + reach * np.sin(angles)], 1)
        draw.polygon([tuple(point) for point in points.tolist()], fill=255)
    turned = mask.rotate(float(g.choice([0, 90, g.uniform(0, 360)])), Image.Resampling.BILINEAR)
    return np.asarray(turned, np.float32) / 255


def _paint(
    canvas: np.ndarray,
    mask: np.ndarray,
    top: int,
    left: int,
    color: np.ndarray,
    grain: np.ndarray,
    g: np.random.Generator,
) -> None:
    """One leaf over what is there: its color, lit from one side, with a texture."""
    n, size = len(canvas), len(mask)
    rows, columns = slice(max(top, 0), min(top + size, n)), slice(max(left, 0), min(left + size, n))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    mask = mask[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left, None]
    y, x = np.mgrid[rows, columns].astype(np.float32)
    light = g.normal(0, 0.15) * (y - top - size / 2) / size + g.normal(0, 0.15) * (x - left - size / 2) / size
    kind = g.random()
    if kind < 0.5:
        shift = g.integers(0, n, 2)
        light = (
            light
            + g.exponential(0.06)
            * grain[np.ix_((np.arange(n)[rows] + shift[0]) % n, (np.arange(n)[columns] + shift[1]) % n)]
        )
    elif kind < 0.6:  # a grating: cloth, fences, windows
        angle, period = g.uniform(0, np.pi), OVERSAMPLING * g.uniform(2.5, 16)
        wave = np.sin(2 * np.pi * (y * np.sin(angle) + x * np.cos(angle)) / period)
        light = light + g.exponential(0.08) * (np.sign(wave) if g.random() < 0.3 else wave)
    fill = np.clip(color + light[..., None], 0, 1).astype(np.float32)
    canvas[rows, columns] += mask * (fill - canvas[rows, columns])
