"""Averages of the weights over training: several lengths at once, and any other length afterwards.

An average's *profile* says how much each moment of training counts. EDM2's is a power of time, tau^gamma, so that it
scales with the run: its relative length sigma_rel is the profile's standard deviation as a share of training so far
(0.05 and 0.10 are usual). Karras et al. 2024, arXiv:2312.02696, section 3.1 and appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch import _foreach_lerp_ as foreach_lerp_  # pyright: ignore[reportPrivateImportUsage] (many tensors, one call)

from ..errors import CheckpointError, InputError

LONGEST = 12**-0.5  # sigma_rel of gamma = 0, the plain mean of all steps


def gamma_of(length: float) -> float:
    """The exponent of the profile with sigma_rel = ``length``; inverse of :func:`length_of` (app. C.1, algorithm 2)."""
    if not 0 < length <= LONGEST + 1e-12:
        raise InputError(
            f"An EMA length must be above 0 and at most {LONGEST:.3f} of training, got {length}. Try 0.05."
        )
    low, high = 0.0, 1 / length  # sigma_rel falls in gamma and is below 1 / (gamma + 1): bisect
    for _ in range(100):
        center = (low + high) / 2
        low, high = (center, high) if length_of(center) > length else (low, center)
    return (low + high) / 2


def length_of(gamma: float) -> float:
    """sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)): standard deviation of tau^gamma on (0, 1)."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def warmup_decay(step: int, decay: float = 0.9999, power: float = 2 / 3) -> float:
    """A plain EMA's factor that grows with the step up to ``decay``: 1 - (1 + step)^-power."""
    return min(decay, 1 - (1 + step) ** -power)


class Ema:
    """Running averages of parameters, one per length, kept in float32 on their device.

    Args:
        params: A module, named tensors, or a list of tensors; they are read anew at each :meth:`update`.
        lengths: Relative lengths sigma_rel of power-function averages, e.g. 0.05.
        decays: Largest factors of plain averages with warm-up, e.g. 0.9999.
    """

    def __init__(
        self,
        params: nn.Module | Mapping[str, Tensor] | Sequence[Tensor],
        lengths: Sequence[float] = (0.05, 0.10),
        decays: Sequence[float] = (),
    ):
        if any(not 0.5 <= decay < 1 for decay in decays):
            raise InputError(f"EMA decays must be from 0.5 to below 1, got {list(decays)}. Try 0.9999.")
        if isinstance(params, nn.Module):
            params = dict(params.named_parameters())
        if not isinstance(params, Mapping):
            params = {str(i): p for i, p in enumerate(params)}
        self.step = 0
        self.params = {name: p.detach() for name, p in params.items()}
        self.gammas = {float(length): gamma_of(length) for length in lengths}
        keys = [float(key) for key in (*lengths, *decays)]
        self.averages = {key: [p.to(torch.float32, copy=True) for p in self.params.values()] for key in keys}

    @torch.no_grad()
    def update(self, step: int | None = None) -> None:
        """Take in the parameters after training step ``step``, counted from 1 (by default the next one).

        Steps may be left out to save time: theta_avg <- beta theta_avg + (1 - beta) theta (sec. 3.1) with
        beta = (last / step)^(gamma + 1) weighs the newest by exactly the profile's integral since the last update.
        """
        step = self.step + 1 if step is None else step
        if step <= self.step:
            raise InputError(f"EMA steps must rise, got {step} after {self.step}.")
        current = [p.to(torch.float32) for p in self.params.values()]
        for key, average in self.averages.items():
            if key in self.gammas:
                beta = (self.step / step) ** (self.gammas[key] + 1)
            else:
                beta = warmup_decay(step, key) if self.step else 0.0
            foreach_lerp_(average, current, 1 - beta)
        self.step = step

    def weights(self, length: float) -> dict[str, Tensor]:
        """The average of a length, by the parameters' names (the tensors themselves, not copies)."""
        if length not in self.averages:
            raise InputError(f"No EMA of length {length}. Known: {', '.join(map(str, self.averages))}.")
        return dict(zip(self.params, self.averages[length], strict=True))

    @contextmanager
    def applied(self, length: float) -> Iterator[None]:
        """Put an average in the place of the parameters while the block runs (to validate or sample)."""
        average, params = list(self.weights(length).values()), list(self.params.values())
        kept = [p.clone() for p in params]
        try:
            for p, mean in zip(params, average, strict=True):  # one by one, because they may be sharded
                p.copy_(mean)
            yield
        finally:
            for p, own in zip(params, kept, strict=True):
                p.copy_(own)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything as flat tensors for a checkpoint: ``step`` and ``<length>:<parameter>`` (not copies)."""
        averages = {f"{key}:{name}": t for key in self.averages for name, t in self.weights(key).items()}
        return {"step": torch.tensor(self.step), **averages}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where :meth:`state_dict` left off, bit for bit; CheckpointError for another net or other lengths."""
        own = self.state_dict()
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise CheckpointError("The saved EMA has other lengths or another net than this run's.")
        for name in own:
            own[name].copy_(state[name])
        self.step = int(state["step"])


class Snapshot(NamedTuple):
    """A power-function average as it was at some step of training."""

    step: int
    length: float
    weights: Mapping[str, Tensor]


def snapshots(state: Mapping[str, Tensor]) -> list[Snapshot]:
    """The power-function averages in a state of :meth:`Ema.state_dict`: save one now and then for :func:`posthoc`."""
    averages: dict[float, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        length, _, name = key.partition(":")
        if name and float(length) <= LONGEST:
            averages.setdefault(float(length), {})[name] = tensor
    return [Snapshot(int(state["step"]), length, weights) for length, weights in averages.items()]


def mix(stored: Sequence[tuple[int, float]], length: float, step: int | None = None) -> list[float]:
    """Factors that make the profile of ``length`` at ``step`` out of those of (step, length) pairs, by least squares.

    Appendix C.3, algorithm 3: minimise the integral of (sum_i x_i p_i - p)^2 over training; the inner products of
    power functions are known in closed form.
    """
    target = (max(at for at, _ in stored) if step is None else step, length)
    t, gamma = (
        torch.tensor(values, dtype=torch.float64)
        for values in zip(*((at, gamma_of(value)) for at, value in (*stored, target)), strict=True)
    )
    # p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) up to its t; <p_i, p_j> integrates up to the smaller t
    end = torch.minimum(t[:, None], t)
    own, other = (end / t[:, None]) ** gamma[:, None], (end / t) ** gamma
    product = (gamma[:, None] + 1) * (gamma + 1) / (gamma[:, None] + gamma + 1) * own * other * end / (t[:, None] * t)
    return torch.linalg.lstsq(product[:-1, :-1], product[:-1, -1:], driver="gelsd").solution[:, 0].tolist()


def posthoc(stored: Sequence[Snapshot], length: float, step: int | None = None) -> dict[str, Tensor]:
    """The average of any relative length out of stored ones: choose the length after training.

    Args:
        stored: Averages of one length or better two (0.05 and 0.10), stored at even intervals all through training.
        length: The sigma_rel wanted; best between the stored ones.
        step: The moment wanted; by default the last stored one.
    """
    if not stored:
        raise InputError(
            "Post-hoc EMA needs stored averages. Keep fastdiffusion.training.ema.snapshots(...) as training goes."
        )
    total: dict[str, Tensor] = {}
    for factor, (_, _, weights) in zip(mix([s[:2] for s in stored], length, step), stored, strict=True):
        for name, tensor in weights.items():
            total[name] = total.get(name, 0) + factor * tensor.double()
    return {name: tensor.float() for name, tensor in total.items()}
