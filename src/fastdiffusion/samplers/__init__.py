"""Every sampler is a table: the registry, the tables and the loop that performs them, and how a formula becomes one."""

from .image_to_image import strength_table
from .registry import METHODS, SAMPLERS, About, about, repaint, restart, table
from .tables import Row, Table, final, move, run
from .trace import Linear, Symbol, trace

__all__ = [
    "METHODS",
    "SAMPLERS",
    "About",
    "Linear",
    "Row",
    "Symbol",
    "Table",
    "about",
    "final",
    "move",
    "repaint",
    "restart",
    "run",
    "strength_table",
    "table",
    "trace",
]
