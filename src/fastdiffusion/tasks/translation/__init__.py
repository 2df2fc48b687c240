"""Turning one kind of image into another: from pairs, from two sets, or by a diffusion model without training."""
