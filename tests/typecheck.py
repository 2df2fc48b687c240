"""The type checker that the tests put around every function of the library (see conftest.py)."""

from typing import get_args

from beartype import beartype
from jaxtyping import AbstractArray


def _has_shape(hint: object) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_has_shape(part) for part in get_args(hint))


def check(function):
    """Check the shapes and dtypes of tensors; plain types are pyright's, and tests pass wrong ones on purpose."""
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if _has_shape(hint)}
    return beartype(function)
