"""Editing an image by its words."""
