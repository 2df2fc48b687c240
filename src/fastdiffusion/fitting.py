"""Forwards to :mod:`fastdiffusion.samplers.fitting`, by the name that others build on."""

from .samplers.fitting import fit_sampler

__all__ = ["fit_sampler"]
