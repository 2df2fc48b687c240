"""The language of prompts: read into a small tree, checked, and compiled to conditions for a denoiser.

=====================  =========================================================================================
``(word)  (word:1.3)``  the words count 1.1, or 1.3 times; ``((word))`` 1.21 times
``[word]``              the words count 1 / 1.1 times
``[cat:dog:0.4]``       first "cat", after 0.4 of the evaluations "dog"; ``[dog:0.4]`` comes, ``[cat::0.4]`` goes
``[cow|horse]``         in turn, evaluation by evaluation
``a AND b:0.5``         two prompts at once, the second at half weight; a negative weight is "but not"
``a BREAK b``           two texts, encoded apart: words of one do not color those of the other
``{red|blue} car``      one of them, by the seed of each image; nests
``\\(``                  the sign itself
=====================  =========================================================================================

Weights act on token states, as z' = m + w (z - m) with m the mean of the prompt's states: what a word adds to the mean
of all of them. 0 leaves a token with nothing of its own, 1 changes no bit. (AUTOMATIC1111's rule, w z rescaled so that
the mean over all numbers is kept, divides by a mean that a layer norm brings close to 0.) The pooled vector moves by
w - 1 times what the words add to it, measured by leaving them out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .language import (
    Alternation,
    Line,
    Node,
    Part,
    Prompt,
    Switch,
    Text,
    Weighted,
    at,
    choose,
    moments,
    notes,
    parse,
    plain,
    several,
    unknown_words,
    write,
)

if TYPE_CHECKING:
    from .conditions import Compiled, aligned, compile


__all__ = [
    "Alternation",
    "Compiled",
    "Line",
    "Node",
    "Part",
    "Prompt",
    "Switch",
    "Text",
    "Weighted",
    "aligned",
    "at",
    "choose",
    "compile",
    "moments",
    "notes",
    "parse",
    "plain",
    "several",
    "unknown_words",
    "write",
]


def __getattr__(name: str) -> Any:
    """Load what needs torch on first use: a prompt can be read and checked without it."""
    if name not in ("Compiled", "aligned", "compile"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import conditions

    return getattr(conditions, name)
