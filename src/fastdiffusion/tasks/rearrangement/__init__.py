"""Other images of one image's patches."""
