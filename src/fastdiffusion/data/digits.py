"""The 8x8 handwritten digits that ship with scikit-learn (Alpaydin & Kaynak 1998, UCI)."""

from __future__ import annotations

import numpy as np

from ..errors import InputError, missing
from .dataset import Pictures


def digits(size: int | None = None) -> Pictures:
    """1,797 digits of shape (1, 8, 8), white on black, classes "0" to "9"; ``size`` can only be 8."""
    if size not in (None, 8):
        raise InputError(f"The digits are 8 by 8 pixels, got size={size}. Leave size out, or take 'fashion-mnist'.")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise missing("The digits data set", "scikit-learn", "data") from None
    bunch = load_digits()
    images = (bunch["images"][:, None] * (255 / 16)).round().astype(np.uint8)  # 0..16 to 0..255
    labels = bunch["target"].tolist()
    classes = [str(d) for d in range(10)]
    return Pictures(
        "digits", [images], labels, [(f"the digit {d}",) for d in labels],
        [f"digit-{i:04d}" for i in range(len(labels))], classes,
    )
