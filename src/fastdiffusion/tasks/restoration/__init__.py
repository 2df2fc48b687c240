"""Undoing what happened to an image: supervised, zero-shot, cold."""
