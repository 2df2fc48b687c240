"""Every sampler is a table.

A sampler moves noise to data by evaluating the denoiser D at falling noise levels. What it does in between is linear:

    x' = D0 + ratio * (x - D0) + sum_j w_j * (D_j - D0) + b * noise

where D0 is the newest estimate, D_j are older ones. Euler (= DDIM), Heun, Adams, DPM-Solver++, DEIS, UniPC with its
corrector, and every ancestral or SDE variant differ only in the numbers ratio, w and b. So a sampler is written in
``solvers`` as its paper writes it, in terms of ``D``, ``x`` and ``sigmas``; it is run once on symbols (:func:`trace`),
and the numbers that come out are its :class:`Table`. One loop (:func:`run`) performs any table, and a table can be
saved, printed, compared, and fitted to a model (``fastdiffusion.samplers.fitting``).

Because D0 itself appears with weight one, a model whose estimate is always x0 returns it exactly, from every table.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from .. import schedules
from ..errors import unknown, warn
from . import langevin, solvers
from .tables import Table
from .trace import trace

# ---- the registry -----------------------------------------------------------------------------------------------

METHODS = solvers.METHODS | langevin.METHODS


class About(NamedTuple):
    """What to know of a sampler: see ``solvers.Method``."""

    name: str
    summary: str
    order: int
    nfe: int
    stochastic: bool
    use: str


def restart(
    sigmas: Tensor | Sequence[float],
    low: float = 0.05,
    high: float = 0.3,
    steps: int = 4,
    times: int = 2,
    sampler: str = "heun",
) -> Table:
    """Restart (Xu et al. 2023, arXiv:2306.14878, algorithm 2): go back from ``low`` to ``high`` with fresh noise."""
    return replace(table(sampler, schedules.restart(sigmas, low, high, steps, times), rising=True), name="restart")


def repaint(sigmas: Tensor | Sequence[float], segment: int = 10, times: int = 2, sampler: str = "ddpm") -> Table:
    """RePaint (Lugmayr et al. 2022, arXiv:2201.09865, app. B): each ``segment`` of steps is done ``times``."""
    return replace(table(sampler, schedules.repaint(sigmas, segment, times), rising=True), name="repaint")


def _builder(name: str) -> Callable[..., Table]:
    def build(sigmas: Tensor | Sequence[float], rising: bool = False, **options: Any) -> Table:
        return trace(METHODS[name].formula, sigmas, name, rising, **options)

    build.__doc__, build.__name__ = METHODS[name].formula.__doc__, name
    build.__signature__ = _signature(METHODS[name].formula)  # type: ignore[attr-defined]
    return build


def _signature(formula: Callable[..., Any]) -> inspect.Signature:
    """(sigmas, rising, **options) of a method: what its builder takes."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    first = [inspect.Parameter("sigmas", kind), inspect.Parameter("rising", kind, default=False)]
    return inspect.Signature([*first, *list(inspect.signature(formula).parameters.values())[4:]])


SAMPLERS: dict[str, Callable[..., Table]] = {name: _builder(name) for name in METHODS} | {
    "restart": restart,
    "repaint": repaint,
}
ALIASES = {  # the first version's names, in saved recipes, and those of other programs, as _plain writes them
    "jump": "consistency", "eulera": "euler_ancestral", "kdpm2": "dpm_2", "dpm2": "dpm_2", "lcm": "consistency",
    "dpmpp2sa": "dpmpp_2s_ancestral", "dpmpp2sancestral": "dpmpp_2s_ancestral", "unipcbh2": "unipc",
    "dpmsolver++": "dpmpp_2m", "dpmsolverpp": "dpmpp_2m",
}  # fmt: skip
_SCHEDULED = re.compile(r"(karras|exponential|sgmuniform|simple|normal|beta)+$")  # said with a sampler there
_COMPOSED = {  # samplers that are another one's table on rising sigmas: order, evaluations a step, use
    "restart": (2, 2, "better images from a good model at 30 evaluations and more"),
    "repaint": (1, 1, "inpainting: harmonizes the filling with its surroundings, at a price"),
}


def about(name: str) -> About:
    """What a sampler is and when to use it; raises InputError for an unknown name."""
    build, name = _known(name), sampler_name(name)
    summary = (build.__doc__ or "").split("\n")[0]
    if name in METHODS:
        return About(name, summary, *METHODS[name][1:])
    order, nfe, use = _COMPOSED[name]
    return About(name, summary, order, nfe, True, use)


def list_samplers() -> list[About]:
    """All samplers, with their order, evaluations a step, and use."""
    return [about(name) for name in SAMPLERS]


def sampler_name(name: str) -> str:
    """The name in ``SAMPLERS`` of a sampler, also as other programs call it: "DPM++ 2M Karras", "k_euler_a".

    A schedule in such a name is left out with a warning: it is an option of its own. InputError for an unknown name.
    """
    if name in SAMPLERS:
        return name
    plain = re.sub(r"[^\w+]|_", "", name.casefold()).replace("++", "pp").removesuffix("gpu")
    known = {entry.replace("_", ""): entry for entry in SAMPLERS} | ALIASES
    forms = [plain, plain.removeprefix("k"), plain.removeprefix("sample")]
    for form in [*forms, *(_SCHEDULED.sub("", form) for form in forms)]:
        if form in known:
            if form not in forms:
                warn(
                    f"{name!r} is sampler={known[form]!r} here; a schedule is an option of its own: schedule='karras'."
                )
            return known[form]
    raise unknown("sampler", name, SAMPLERS)


def _known(name: str) -> Callable[..., Table]:
    return SAMPLERS[sampler_name(name)]


def table(name: str, sigmas: Tensor | Sequence[float], **options: Any) -> Table:
    """The named sampler's table for ``sigmas``; raises InputError for an unknown name or option."""
    build = _known(name)
    known = list(inspect.signature(build).parameters)[1:]
    for option in options:
        if option not in known:
            raise unknown(f"option of sampler {name!r}", option, known)
    return build(sigmas, **options)
