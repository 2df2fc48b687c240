"""How good images are: distances between sets, features to measure in, statistics of gradients."""

from .distances import (
    ROWS,
    Features,
    Others,
    density_coverage,
    frechet,
    interval,
    kernel_distance,
    nearest,
    precision_recall,
)
from .feature_nets import Classifier, features, load_classifier
from .gradients import THRESHOLDS, gradient_distance, gradient_statistics

__all__ = [
    "ROWS",
    "THRESHOLDS",
    "Classifier",
    "Features",
    "Others",
    "density_coverage",
    "features",
    "frechet",
    "gradient_distance",
    "gradient_statistics",
    "interval",
    "kernel_distance",
    "load_classifier",
    "nearest",
    "precision_recall",
]
