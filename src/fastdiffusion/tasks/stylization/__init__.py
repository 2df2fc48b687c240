"""Giving one image another one's style."""
