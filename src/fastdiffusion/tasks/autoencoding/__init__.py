"""Autoencoders: trained, measured, and priors over their tokens."""
