"""Bytes and images: files that survive, images in and out, recipes inside them."""
