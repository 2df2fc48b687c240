"""``python -m fastdiffusion`` is the command line."""

from .cli import program

program()
