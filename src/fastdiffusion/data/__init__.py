"""Data sets: a folder of pictures, the digits, Fashion-MNIST, emoji, and Hugging Face's."""

from __future__ import annotations

from .dataset import Batch, Dataset, Pictures, Subset, measure_sigma_data
from .digits import digits
from .fashion_mnist import fashion_mnist

DATASETS = {"digits": digits, "fashion-mnist": fashion_mnist}
