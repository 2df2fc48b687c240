"""OpenVINO in place of torch: one network as an engine, its files, and the child process that tries it first."""

from .engine import (
    PRECISIONS,
    TOLERANCES,
    Call,
    Engine,
    Flat,
    attach,
    available,
    detach,
    difference,
    refused,
    with_engine,
)

__all__ = [
    "PRECISIONS",
    "TOLERANCES",
    "Call",
    "Engine",
    "Flat",
    "attach",
    "available",
    "detach",
    "difference",
    "refused",
    "with_engine",
]
