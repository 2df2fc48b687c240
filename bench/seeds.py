"""The mean over a few training seeds, and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}  # 97.5 % quantiles for n - 1 degrees of freedom


def mean(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half of its 95 % interval by Student's t; nan where there is one value)."""
    x = torch.tensor(values, dtype=torch.float64)
    half = STUDENT[len(x)] * float(x.std()) / math.sqrt(len(x)) if len(x) > 1 else math.nan
    return float(x.mean()), half
