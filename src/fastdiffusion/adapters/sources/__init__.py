"""Where a checkpoint's parts come from: a folder in diffusers' layout, one file, or both; on this machine or a hub."""
