"""Blind deblurring: which kernel blurred a photograph? And is it the one that somebody says?

Edges of photographs are sharp, so the blurred image's own edges, sharpened by a shock filter, show what it was before
the blur; the kernel is then a least-squares problem (Cho & Lee 2009, "Fast Motion Deblurring"), solved anew with every
better image, from coarse to fine. What is found so is hazy; where the blur may be assumed to be a simple one, the
image's spectrum decides which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...corruptions import Step
from ...corruptions.blurs import disk, gaussian, line, radius_of, reach, taps
from ...corruptions.pixels import LUMA
from ...errors import InputError
from .colorization import is_gray, luminance
from .jpeg_files import Rounded
from .measurement import ROUNDING

MOST = 384  # side of the part that is looked at
PATCH = 64  # side of the patches whose spectra are averaged
LEAST = 96  # shorter side of an image from which on its spectrum tells a kernel
# What another kernel than the named one has to be likelier by, per frequency: anything; a step away from it
# (SPANS: pixels and degrees of motion, pixels of a disk, part of a Gaussian's width), as people are off, a little more,
# with the fourth power of the distance; farther out with its square; and however far it is
SURER, STEP_AWAY, BEYOND, FAR = 0.05, 0.02, 0.1, 1.5
FINER = 0.1  # the same of parts of a pixel, which an image tells apart no better than that
# A Gaussian's width follows from the spectrum (cost per frequency, times SAMPLES, is minus the log-likelihood; of the
# kernel's likeness a part) and by what was named: it is exact with a probability of EXACT, else off by about WIDE, in
# logarithms. With fewer patches than ENOUGH, and after JPEG, the spectrum is weaker evidence. Chosen on the tuned
# photographs of bench/photographs.txt, where they make the true width likeliest.
SAMPLES, ENOUGH, PART, EXACT, WIDE = 100.0, 24, 0.25, 0.4, 0.5
KEPT = 0.1  # part of a frequency's coefficients that JPEG must have left for it to be used
ALIKE = 0.03  # relative difference up to which two widths are one
SURE = 0.9  # from this probability on one width is taken alone
SPANS = {"motion": (1.0, 10.0), "defocus": (1.0,), "blur": (0.6,)}


def estimate_kernel(
    image: Float[Tensor, "1 c h w"], size: int = 25, rounds: int = 3, simple: bool = True
) -> Float[Tensor, "{size} {size}"]:
    """The blur kernel of an image, centred, with sum 1; on the CPU, whose work this is: many small transforms.

    Args:
        image: Blurred by one kernel all over.
        size: Side of the kernel in pixels, odd.
        rounds: Alternations between image and kernel at each scale.
        simple: It is a Gaussian, a straight line or a disk, as most blurs are; otherwise of any shape.
    """
    image = image.cpu()
    blurred = image if image.shape[1] == 1 else luminance(image)
    if min(blurred.shape[2:]) < 2 * size or float(blurred.std()) < 1 / 255:
        raise InputError(
            f"No kernel can be found in this image: it has no edges, or is smaller than {2 * size}x{2 * size}. "
            "Say what happened, e.g. corruption='deblur motion 9 30'."
        )
    blurred = _liveliest(blurred)
    sizes = [size]
    while sizes[-1] > 5:
        sizes.append(max(5, int(sizes[-1] / 1.6) // 2 * 2 + 1))
    kernel = None
    for side in reversed(sizes):
        scale = side / size
        small = blurred if side == size else F.interpolate(blurred, scale_factor=scale, mode="area")
        if kernel is None:
            kernel = torch.zeros(side, side)
            kernel[side // 2, side // 2] = 1
        else:
            kernel = _clean(F.interpolate(kernel[None, None], (side, side), mode="bicubic")[0, 0])
        for iteration in range(rounds):
            sharp = wiener(small, kernel, 0.02)
            edges = _edges(_shock(sharp, 8), keep=0.15 - 0.02 * iteration)
            kernel = _clean(_fit(edges, small, side))
    assert kernel is not None
    kernel = _centred(kernel)
    return _simplest(kernel, blurred) if simple else kernel


def refined(named: Step, image: Float[Tensor, "1 c h w"], rounded: Rounded | None = None) -> Step:
    """The likeliest of :func:`plausible`."""
    likely = plausible(named, image, rounded)
    return max(likely, key=lambda step: likely[step])


def plausible(named: Step, image: Float[Tensor, "1 c h w"], rounded: Rounded | None = None) -> dict[Step, float]:
    """The simple blurs that explain the image, with their probabilities: one, or two where the image leaves it open.

    ``named`` itself, unless the image's spectrum speaks clearly for another one: a kernel that is off by a pixel or ten
    degrees makes ripples all over. Small and flat images tell nothing.

    Args:
        named: The blur that was asked to be undone.
        image: Blurred, and as it was given.
        rounded: What JPEG rounded away since.
    """
    x = image.cpu() if image.shape[1] == 1 else luminance(image.cpu())
    nameless = named.name not in SPANS or float(named.values[0]) == 0  # nothing is near a blur of no width
    if nameless or min(x.shape[2:]) < LEAST or float(x.std()) < 1 / 255:
        return {named: 1.0}
    widest = min(24, min(x.shape[2:]) // 4)
    simple = _simple_blurs(widest)
    steps = [named, *_near(named), *simple]
    kernels = _kernels(steps, max(reach(step.name, step.values[0]) for step in steps))
    part, kernel = _liveliest(x), estimate_kernel(x, simple=False)
    unlikely = _surprise(kernels, part, rounded) - _likeness(kernels, kernel)

    def likeliest(apart: list[float]) -> Step:
        return steps[int((unlikely + torch.tensor(apart)).argmin())]

    found = likeliest([0.0, *(_reserve(_distance(step, named)) for step in steps[1:])])
    if named.name == "blur" and found.name == "blur":
        return _widths(named, part, kernel, rounding(image), rounded)
    if found is named:
        return {named: 1.0}
    plain = {(step.name, step.values) for step in (named, *simple)}  # now without a bias for what was named
    finer = [0.0 if (step.name, step.values) in plain else FINER for step in steps]
    found = likeliest([f if _distance(step, found) < 0.7 else math.inf for step, f in zip(steps, finer, strict=True)])
    return {found: 1.0}


def _widths(named: Step, image: Tensor, kernel: Tensor, noise: float, rounded: Rounded | None) -> dict[Step, float]:
    """The named width and the one to expect if that is wrong, with their probabilities; one alone where it is clear."""
    away = 0.05 * torch.arange(-25, 26)
    steps = [Step("blur", (float(named.values[0]) * math.exp(float(a)),)) for a in away]
    kernels = _kernels(steps, min(max(reach(step.name, step.values[0]) for step in steps), 31))
    enough = min(1.0, _patches(image) / ENOUGH)
    cost = _surprise(kernels, image, rounded, noise if enough < 1 else 0.0) - PART * _likeness(kernels, kernel)
    samples = SAMPLES * enough * (1.0 if rounded is None else 0.5)
    likelihood = (-samples * (cost - cost.min())).double().exp()
    wrong = likelihood * torch.softmax(-(away.double() ** 2) / (2 * WIDE**2), 0)
    exact = EXACT * float(likelihood[len(away) // 2])
    exact /= exact + (1 - EXACT) * float(wrong.sum())
    other = Step("blur", (round(float(named.values[0]) * math.exp(float((wrong @ away.double()) / wrong.sum())), 2),))
    if exact > SURE or abs(float(other.values[0]) / float(named.values[0]) - 1) < ALIKE:
        return {named: 1.0}
    return {other: 1.0} if exact < 1 - SURE else {named: exact, other: 1 - exact}


def _near(named: Step) -> list[Step]:
    """The blurs of the same kind around one."""
    first, *rest = (float(value) for value in named.values)
    if named.name == "blur":
        return [Step("blur", (round(first * by, 2),)) for by in (0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.25, 1.4, 1.6)]
    sizes = [first + d for d in (-2, -1.5, -1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 1.5, 2) if first + d >= 1]
    if named.name == "defocus":
        return [Step("defocus", (size,)) for size in sizes]
    angles = (-15, -12.5, -10, -7.5, -5, -2.5, 0, 2.5, 5, 7.5, 10, 12.5, 15)
    return [Step("motion", (size, (rest[0] + angle) % 180)) for size in sizes for angle in angles]


def _simple_blurs(radius: int) -> list[Step]:
    """Gaussians, straight lines and disks, up to a radius in pixels."""
    widths = [Step("blur", (round(0.4 + 0.2 * i, 2),)) for i in range(max(1, round((radius / 3 - 0.4) / 0.2)))]
    disks = [Step("defocus", (1 + 0.5 * i,)) for i in range(2 * radius - 3)]
    return widths + disks + [Step("motion", (float(n), 7.5 * i)) for n in range(3, 2 * radius) for i in range(24)]


def _distance(a: Step, b: Step) -> float:
    """How far one blur is from another of its kind, in SPANS; of another kind it is far."""
    if a.name != b.name:
        return math.inf
    apart = [abs(float(v) - float(w)) for v, w in zip(a.values, b.values, strict=True)]
    if a.name == "blur":
        apart = [apart[0] / float(b.values[0])]
    elif len(apart) == 2:
        apart[1] = min(apart[1] % 180, 180 - apart[1] % 180)
    return sum((d / span) ** 2 for d, span in zip(apart, SPANS[a.name], strict=True)) ** 0.5


def _reserve(distance: float) -> float:
    """By what a kernel at a distance from the named one has to be likelier, per frequency."""
    return SURER + min(STEP_AWAY * distance**4, BEYOND * distance**2, FAR)


def _kernels(steps: Sequence[Step], radius: int) -> Float[Tensor, "n k k"]:
    """The kernels of simple blurs, of one size; what of a Gaussian lies farther out is left out."""
    rows: list[Tensor | None] = [None] * len(steps)
    for name in SPANS:
        which = [i for i, step in enumerate(steps) if step.name == name]
        if which:
            values = torch.tensor([[float(v) for v in steps[i].values] for i in which]).T
            if name == "blur":
                along = taps(values[0], max(radius_of(float(v)) for v in values[0]))
                made = along[:, :, None] * along[:, None, :]
            else:
                made = line(values[0], values[1]) if name == "motion" else disk(values[0])
            made = _cut(made, radius)
            for i, kernel in zip(which, made / made.sum((1, 2), keepdim=True), strict=True):
                rows[i] = kernel
    return torch.stack([row for row in rows if row is not None])


def _simplest(kernel: Tensor, image: Tensor) -> Tensor:
    """The Gaussian, line or disk that is most like ``kernel`` and explains the image's spectrum best."""
    radius = len(kernel) // 2
    candidates = _kernels(_simple_blurs(radius), radius)
    return candidates[int((_surprise(candidates, image) - _likeness(candidates, kernel)).argmin())]


def _likeness(kernels: Float[Tensor, "n k k"], kernel: Tensor) -> Float[Tensor, " n"]:
    """Correlation of each with one."""
    kernel = _cut(kernel[None], kernels.shape[1] // 2)[0]
    return (kernels * kernel).sum((1, 2)) / (kernels.square().sum((1, 2)).sqrt() * kernel.norm())


def _patches(image: Tensor) -> int:
    """How many patches of an image :func:`_surprise` takes, the livelier half of which it looks at."""
    side = min(PATCH, *image.shape[2:])
    return math.prod((n - side) // (side // 2) + 1 for n in image.shape[2:])


def _surprise(
    kernels: Float[Tensor, "n k k"], image: Tensor, rounded: Rounded | None = None, noise: float = 0.0
) -> Float[Tensor, " n"]:
    """Negative log-likelihood per frequency (Whittle 1953) of each kernel.

    A sharp photograph's spectrum falls as a power of the frequency, the kernel's zeros cut valleys into it, and
    rounding fills them to a floor. How steep it falls and how high it begins are chosen for each kernel. The floor is
    taken from the weakest frequencies. In the mean of few patches these lie far below the noise itself, and a wrong
    kernel looks certain: ``noise``, a variance that is known, is the least that the floor may be.
    """
    side = min(PATCH, *image.shape[2:])
    patches = image[0, 0].unfold(0, side, side // 2).unfold(1, side, side // 2).flatten(0, 1)
    window = torch.hann_window(side)
    power = torch.fft.rfft2((patches - patches.mean((1, 2), keepdim=True)) * window[:, None] * window).abs().square()
    energy = power.sum((1, 2))
    lively = energy >= energy.median()
    observed = (power[lively] / energy[lively, None, None].clamp(min=1e-6)).mean(0)
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None])
    use = frequency > 2.5 / side
    share = (1 / energy[lively].clamp(min=1e-6)).mean() * (window[:, None] * window).square().sum()
    floor = observed.flatten().quantile(0.02).maximum(noise * share)
    if rounded is not None:  # a coefficient's frequency is its number / 16
        at = torch.fft.fftfreq(side).abs(), torch.fft.rfftfreq(side)
        rows, columns = ((16 * f).round().long().clamp(max=7) for f in at)
        use &= rounded.kept[rows][:, columns] > KEPT
        floor = (floor + rounded.variance[rows][:, columns] * share)[use]
    observed, passed = observed[use], torch.fft.rfft2(kernels, (side, side)).abs().square()[:, use]
    best = torch.full((len(kernels),), math.inf)
    for slope in (1.6, 2.0, 2.4, 2.8, 3.2, 3.6):
        shape = frequency[use] ** -slope * passed
        height = observed.sum() / shape.sum(1, keepdim=True)
        for factor in torch.logspace(-1.2, 1.2, 13):
            expected = factor * height * shape + floor
            best = torch.minimum(best, (expected.log() + observed / expected).mean(1))
    return best


def rounding(image: Float[Tensor, "1 c h w"]) -> float:
    """Variance of the 8-bit rounding of an image's brightness; a color's three roundings partly cancel out."""
    return ROUNDING**2 * (1.0 if is_gray(image) else sum(weight**2 for weight in LUMA))


def _cut(kernels: Tensor, reach: int) -> Tensor:
    """Brought to sides of 2 * reach + 1."""
    return F.pad(kernels, (reach - kernels.shape[1] // 2,) * 4)  # by a negative number it cuts


def _liveliest(x: Tensor) -> Tensor:
    rows, columns = liveliest(x, MOST)
    return x[:, :, rows, columns]


def liveliest(x: Float[Tensor, "1 1 h w"], most: int) -> tuple[slice, slice]:
    """The part with the most edges, ``most`` pixels a side: what is out of focus by itself shows nothing of the blur.

    It begins at multiples of 16.
    """
    h, w = (min(n, most) for n in x.shape[2:])
    energy = F.avg_pool2d(_gradients(x).square().sum(0, keepdim=True), (h, w), stride=16)[0, 0]
    place = int(energy.argmax())
    top, left = 16 * (place // energy.shape[1]), 16 * (place % energy.shape[1])
    return slice(top, top + h), slice(left, left + w)


def _gradients(x: Tensor) -> Float[Tensor, "2 1 h w"]:
    across = F.pad(x, (1, 1, 0, 0), mode="replicate")
    down = F.pad(x, (0, 0, 1, 1), mode="replicate")
    return torch.cat([(across[..., 2:] - across[..., :-2]) / 2, (down[..., 2:, :] - down[..., :-2, :]) / 2])


def _shock(x: Tensor, steps: int) -> Tensor:
    """Sharpen edges to steps (Osher & Rudin 1990; Alvarez & Mazorra 1994): against the curvature along the gradient."""
    x = gaussian(x, taps(torch.tensor([1.0]), 4))
    for _ in range(steps):
        smooth = gaussian(x, taps(torch.tensor([0.7]), 3))
        p = F.pad(smooth, (1, 1, 1, 1), mode="replicate")
        across, down = _gradients(smooth).split(1)
        xx = p[..., 1:-1, 2:] + p[..., 1:-1, :-2] - 2 * smooth
        yy = p[..., 2:, 1:-1] + p[..., :-2, 1:-1] - 2 * smooth
        xy = (p[..., 2:, 2:] + p[..., :-2, :-2] - p[..., 2:, :-2] - p[..., :-2, 2:]) / 4
        curve = across.square() * xx + 2 * across * down * xy + down.square() * yy
        x = x - 0.3 * curve.sign() * _gradients(x).square().sum(0, keepdim=True).sqrt()
    return x


def _edges(x: Tensor, keep: float) -> Float[Tensor, "2 1 h w"]:
    """Gradients of the strongest edges alone, ``keep`` of all pixels."""
    gradients = _gradients(x)
    size = gradients.square().sum(0, keepdim=True).sqrt()
    least = size.flatten().kthvalue(max(1, int(size.numel() * (1 - keep)))).values
    return gradients * (size >= least)


def _fit(edges: Tensor, blurred: Tensor, side: int, ridge: float = 2e-2) -> Tensor:
    """The kernel that turns the edges into the blurred image's gradients: least squares in the Fourier basis."""
    size = blurred.shape[-2:]
    rise = (torch.arange(1, max(size) + 1) / side).clamp(max=1)  # what was beyond the border is unknown
    window = [torch.minimum(rise[:n], rise[:n].flip(0)) for n in size]
    taper = window[0][:, None] * window[1]
    a, b = torch.fft.rfft2(edges * taper), torch.fft.rfft2(_gradients(blurred) * taper)
    power = (a.conj() * a).real.sum(0)
    k = torch.fft.irfft2((a.conj() * b).sum(0) / (power + ridge * power.mean()), size)[0]
    half = side // 2
    return torch.roll(k, (half, half), (0, 1))[:side, :side]


def _clean(kernel: Tensor) -> Tensor:
    """Nothing negative or far below the top, sum 1."""
    kernel = torch.where(kernel > 0.1 * kernel.max(), kernel, 0)
    return kernel / kernel.sum()


def _centred(kernel: Tensor) -> Tensor:
    """Its centre of mass in the middle, to a whole pixel: a shift of both kernel and image goes unseen."""
    at = torch.arange(len(kernel), dtype=kernel.dtype) - len(kernel) // 2
    shift = [-round(float((kernel.sum(1 - axis) * at).sum())) for axis in (0, 1)]
    return torch.roll(kernel, shift, (0, 1))


def wiener(y: Float[Tensor, "b c h w"], kernel: Float[Tensor, "k k"], noise: float = 1e-3) -> Tensor:
    """Wiener's filter for a flat spectrum, with mirrored borders; ``noise`` is the ratio of noise to signal."""
    pad = len(kernel)
    wide = F.pad(y, (pad, pad, pad, pad), mode="reflect")
    big = wide.new_zeros(wide.shape[-2:])
    big[: len(kernel), : len(kernel)] = kernel
    transfer = torch.fft.rfft2(torch.roll(big, (-(len(kernel) // 2),) * 2, (0, 1)))
    x = torch.fft.irfft2(torch.fft.rfft2(wide) * transfer.conj() / (transfer.abs().square() + noise), wide.shape[-2:])
    return x[..., pad:-pad, pad:-pad]
