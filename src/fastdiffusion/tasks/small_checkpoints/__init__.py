"""Checkpoints in the formats of other programs, trained from nothing: ``train DATA --net sd-small``."""

from __future__ import annotations

from .run import train_small

__all__ = ["train_small"]
