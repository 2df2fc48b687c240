"""Measuring models: against data, by an evaluator, over a grid of settings."""
