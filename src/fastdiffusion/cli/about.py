"""What a name stands for: its place, its options, its paper with the equation, and its code."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from .. import data, guidance, losses, metrics, nets, samplers, schedules
from .. import denoisers as denoisers_
from ..errors import unknown
from ..nets import presets as nets_presets
from ..samplers import solvers
from ..training import optimizers

_METRICS = (
    metrics.frechet,
    metrics.kernel_distance,
    metrics.precision_recall,
    metrics.density_coverage,
    metrics.gradient_distance,
)


def registries() -> dict[str, Mapping[str, Callable[..., Any]]]:
    """Every closed table of the library, by what it holds; a sampler is shown as its formula."""
    formulas = {name: method.formula for name, method in solvers.METHODS.items()}
    return {
        "sampler": {**samplers.SAMPLERS, **formulas},
        "schedule": schedules.SCHEDULES,
        "noise distribution": schedules.SIGMA_DISTRIBUTIONS,
        "loss weighting": losses.LOSS_WEIGHTINGS,
        "parameterization": denoisers_.PARAMETERIZATIONS,
        "guidance": {name: entry.factory for name, entry in guidance.GUIDANCE.items()},
        "net": nets.NETS,
        "optimizer": optimizers.OPTIMIZERS,
        "data set": data.DATASETS,
        "augmentation": data.augment.AUGMENTS,
        "metric": {f.__name__: f for f in _METRICS},
    }


def about(name: str | None = None) -> str:
    """Text on every entry of that name (``edm`` is a parameterization and a loss weighting), or the list of all.

    Raises InputError for an unknown name.
    """
    if name is None:
        lists = [f"{kind}: {', '.join(table)}" for kind, table in registries().items()]
        presets = f"preset of a net: {', '.join(nets_presets.PRESETS)}"
        return "\n".join([*lists, presets, "Ask for one: fastdiffusion about p2"])
    entries = [_explain(kind, name, table[name]) for kind, table in registries().items() if name in table]
    if name in nets_presets.PRESETS:
        keywords = ", ".join(f"{key}={value!r}" for key, value in nets_presets.PRESETS[name].items())
        entries.append(f"{name}, a preset: {keywords}\nSee: fastdiffusion about {nets_presets.PRESETS[name]['name']}")
    if not entries:
        raise unknown(
            "entry", name, {*nets_presets.PRESETS, *(known for table in registries().values() for known in table)}
        )
    return "\n\n".join(entries)


def _explain(kind: str, name: str, thing: Callable[..., Any]) -> str:
    article = "an" if kind[0] in "aeiou" else "a"
    text = inspect.getdoc(thing) or ""
    head = f"{name}, {article} {kind} ({thing.__module__}.{thing.__qualname__})"
    if inspect.isclass(thing):  # a net's code is long: its module is the place to read it
        return f"{head}\n\n{text}\n\n{name}{inspect.signature(thing)}"
    source = inspect.getsource(inspect.unwrap(thing))
    return f"{head}\n\n{source.rstrip()}"
