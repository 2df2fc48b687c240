"""Weights of words: a prompt's estimate, and how far it moves without some of its words, more or less of that.

    D(w) = D(without) + w * (D(prompt) - D(without))

The difference is what the word does to the image at this noise level; its weight is a scale of guidance along it, as
in composable diffusion (Liu et al. 2022, arXiv:2206.01714) and semantic guidance (Brack et al. 2023, arXiv:2301.12247).
It needs nothing of the network, so that it means the same in every family and under every method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...guidance.core import guidance
from ...types import Cond, Denoise

Removal = tuple[float, tuple[str, ...]]  # a coefficient, and the words without which the prompt has it


def removals(weights: Mapping[str, float]) -> list[Removal]:
    """The prompts without some of their words whose sum has each word at its weight; coefficients add up to 1.

    Piecewise linear in the weights; where all are 0 or 1 the prompt without the words of weight 0 (the Lovász extension
    of "without these words"). Words of one weight go together; those above 1 and below 1 apart.
    """
    gone = {phrase: 1 - weight for phrase, weight in weights.items() if weight != 1}
    found: dict[tuple[str, ...], float] = {(): 1.0}
    for sign in (1, -1):
        chain = sorted((phrase for phrase in gone if sign * gone[phrase] > 0), key=lambda phrase: -sign * gone[phrase])
        amounts = [0.0, *(gone[phrase] for phrase in chain), 0.0]
        found[()] -= amounts[1]
        for i in range(1, len(chain) + 1):
            found[tuple(chain[:i])] = amounts[i] - amounts[i + 1]
    return [(amount, phrases) for phrases, amount in found.items() if amount]


@guidance
def reweighted(
    denoise: Denoise, *others: Denoise, amounts: Sequence[float], conds: Sequence[Cond], normalize: bool
) -> Denoise:
    """The last row of a batch under several conditions, summed; the rows before it under the first.

    Args:
        denoise, others: For each condition the denoiser, with the attention that belongs to its prompt.
        amounts: Coefficients, of :func:`removals`.
        conds: One row of each condition, with those of the rows before it.
        normalize: Whether each channel's deviation stays between those of the estimates: weights far from 0 to 1
            would burn out colors.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        made = [each(x, sigma, c[-len(x) :]) for each, c in zip((denoise, *others), conds, strict=True)]
        if len(made) == 1:
            return made[0]
        estimates = torch.stack([each[-1:] for each in made])
        total = sum(amount * each for amount, each in zip(amounts, estimates, strict=True))
        assert isinstance(total, Tensor)
        return torch.cat([made[0][:-1], _kept(total, estimates) if normalize else total])

    return guided


def _kept(total: Tensor, estimates: Tensor) -> Tensor:
    """A sum of estimates (k, 1, c, *d), each channel's deviation kept between the least and the greatest of theirs."""
    deviations = estimates.flatten(3).std(3)
    own, mean = total.flatten(2).std(2), total.flatten(2).mean(2)
    factor = own.clamp(deviations.amin(0), deviations.amax(0)) / own.clamp(min=1e-8)
    factor, mean = (v.reshape(*v.shape, *[1] * (total.ndim - 2)) for v in (factor, mean))
    return mean + factor * (total - mean)
