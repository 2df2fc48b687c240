"""The 8x8 handwritten digits that ship with scikit-learn (Alpaydin & Kaynak 1998, UCI)."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from .dataset import Images


def digits(size: int | None = None) -> Images:
    """1,797 digits of shape (1, 8, 8), white on black, classes "0" to "9"; ``size`` can only be 8."""
    if size not in (None, 8):
        raise InputError(f"The digits are 8 by 8 pixels, got size={size}. Leave size out, or take 'fashion-mnist'.")
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    images = (pixels * (255 / 16)).round().astype(np.uint8).reshape(-1, 1, 8, 8)  # 0..16 to 0..255
    labels = targets.tolist()
    captions = [(f"the digit {label}",) for label in labels]
    names = [f"digit-{i:04d}" for i in range(len(labels))]
    return Images("digits", [images], labels, captions, names, classes=[str(digit) for digit in range(10)])
