"""Optimizers for training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from ..device import choose_precision
from ..errors import InputError, MissingExtra, missing, unknown
from .distributed import like

HIDDEN = 32  # smallest side of a matrix that Muon takes: first and last layers of a net have few rows or columns


def adamw(module: nn.Module, lr: float, weight_decay: float = 0.0) -> list[Optimizer]:
    """AdamW (Loshchilov & Hutter 2019), fused: a quarter of the time of the per-operation version on a CPU."""
    parameters = list(module.parameters())
    fused = parameters[0].device.type in ("cpu", "cuda")
    return [AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=fused)]


def muon(module: nn.Module, lr: float, weight_decay: float = 0.0) -> list[Optimizer]:
    """Muon (Jordan et al. 2024) for hidden matrices and convolution kernels, AdamW for all else.

    Updates are scaled to AdamW's size (Liu et al. 2025, arXiv:2502.16982), so that one ``lr`` serves both.
    """
    if not hasattr(torch.optim, "Muon"):
        raise MissingExtra(
            f"optimizer='muon' needs torch 2.9 or newer, this is {torch.__version__}. "
            "Upgrade with: pip install --upgrade torch, or use optimizer='adamw'."
        )
    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    hidden = [
        p for p in module.parameters() if p.ndim >= 2 and id(p) not in embeddings and min(matrix(p).shape) >= HIDDEN
    ]
    taken = {id(p) for p in hidden}
    rest = nn.ParameterList(p for p in module.parameters() if id(p) not in taken)
    return [
        *([Muon(hidden, lr, weight_decay)] if hidden else []),
        *(adamw(rest, lr, weight_decay) if len(rest) else []),
    ]


def schedule_free(module: nn.Module, lr: float, weight_decay: float = 0.0) -> list[Optimizer]:
    """Schedule-free AdamW (Defazio et al. 2024, arXiv:2405.15682), from Meta's package; it needs no decay."""
    try:
        from schedulefree import AdamWScheduleFree  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise missing("optimizer='schedule_free'", "schedulefree", "optim") from None
    optimizer = AdamWScheduleFree(module.parameters(), lr=lr, weight_decay=weight_decay)
    optimizer.train()
    return [optimizer]


OPTIMIZERS: dict[str, Callable[..., list[Optimizer]]] = {
    "adamw": adamw,
    "muon": muon,
    "schedule_free": schedule_free,
}
RATES = {"adamw": 2e-3, "muon": 1e-2, "schedule_free": 2.5e-3}  # learning rates where none is given


def default(shard: bool = False) -> str:
    """Muon, which needs about half of AdamW's examples (docs/lab-notes.md), if torch has it and matrices stay whole."""
    return "muon" if hasattr(torch.optim, "Muon") and not shard else "adamw"


def build(
    kind: str | Callable[..., list[Optimizer]], module: nn.Module, lr: float, weight_decay: float = 0.0
) -> list[Optimizer]:
    """The named optimizer (or pair of them) for all of a module's parameters; InputError for an unknown name.

    A function from (module, lr) to optimizers may stand for a name.
    """
    if isinstance(kind, str) and kind not in OPTIMIZERS:
        raise unknown("optimizer", kind, OPTIMIZERS)
    if not 0 < lr <= 100:
        raise InputError(f"lr must be above 0 and at most 100, got {lr}. Try 0.001, or leave it out.")
    return OPTIMIZERS[kind](module, lr, weight_decay) if isinstance(kind, str) else kind(module, lr)


class Iterates:
    """Weights at the iterate that is trained, or at the average that is the result: schedule-free optimizers have both.

    Attributes:
        averaged: Whether the average is in place.
    """

    def __init__(self, optimizers: Iterable[Any]):
        self.own = [optimizer for optimizer in optimizers if hasattr(optimizer, "eval")]
        self.averaged = False
        self._trained: list[Tensor] = []

    def _places(self) -> list[Tensor]:
        return [p.detach() for optimizer in self.own for group in optimizer.param_groups for p in group["params"]]

    def use_average(self) -> None:
        """Put the average in place, to evaluate and to save."""
        if not self.averaged:
            self._trained, self.averaged = [p.clone() for p in self._places()], True
            for optimizer in self.own:
                optimizer.eval()

    def use_trained(self) -> None:
        """Put back what is trained, to the bit: the optimizers' own way back rounds."""
        if self.averaged:
            for optimizer in self.own:
                optimizer.train()
            for p, trained in zip(self._places(), self._trained, strict=True):
                p.copy_(trained)
            self._trained, self.averaged = [], False

    @contextmanager
    def average(self) -> Iterator[None]:
        """The average is in place; afterwards what was there before."""
        before = self.averaged
        self.use_average()
        try:
            yield
        finally:
            if not before:
                self.use_trained()


def matrix(p: Tensor) -> Tensor:
    """A weight as a matrix (out, in) that shares its memory, a convolution's in the order in which it is stored."""
    if p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last):
        p = p.permute(0, 2, 3, 1)
    return p.flatten(1)


def orthogonal(gradient: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """A matrix with the same singular vectors and singular values near 1: Newton and Schulz's iteration, of degree 5.

    Iterated on x x^T, all of whose factors commute: of a kernel's wide matrix that costs little more than half. In two
    parts, because x x^T has the squares of the singular values, and rounds small ones away.
    """
    a, b, c = coefficients
    x = gradient.T if gradient.shape[0] > gradient.shape[1] else gradient
    x = x / x.norm().clamp(min=1e-7)
    for part in (steps // 2, steps - steps // 2):
        gram, factor = x @ x.T, torch.eye(len(x), dtype=x.dtype, device=x.device)
        for _ in range(part):
            step = torch.addmm(gram, gram, gram, beta=b, alpha=c)
            step.diagonal().add_(a)
            gram, factor = step @ gram @ step, step @ factor
        x = factor @ x
    return x.T if gradient.shape[0] > gradient.shape[1] else x


if TYPE_CHECKING or hasattr(torch.optim, "Muon"):

    class Muon(torch.optim.Muon):
        """torch's Muon, which takes matrices alone, fed with views of kernels of any number of axes.

        Where bfloat16 is not the usual precision, as on a CPU, updates are computed in float32. torch computes them in
        bfloat16, which makes 0.01 of the rounding of sums within three steps: two processes would then train other
        weights than one.
        """

        def __init__(self, weights: list[nn.Parameter], lr: float, weight_decay: float):
            self.weights = weights
            self.views = [nn.Parameter(matrix(p.detach())) for p in weights]
            super().__init__(self.views, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            """Hand the gradients over as matrices and update the weights in place."""
            for view, p in zip(self.views, self.weights, strict=True):
                if p.grad is None:
                    view.grad = None
                elif p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last):
                    view.grad = p.grad.permute(0, 2, 3, 1).flatten(1)  # whatever way the gradient itself is stored
                else:
                    view.grad = p.grad.flatten(1)
            if choose_precision("auto", self.weights[0].device) == "bfloat16":  # a GPU that is fast in it
                return super().step(closure)
            for group in self.param_groups:
                lr, momentum = group["lr"], group["momentum"]
                for view in (view for view in group["params"] if view.grad is not None):
                    buffer = self.state[view].setdefault("momentum_buffer", torch.zeros_like(view))
                    buffer.lerp_(view.grad, 1 - momentum)
                    update = orthogonal(view.grad.lerp(buffer, momentum), group["ns_coefficients"], group["ns_steps"])
                    view.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-0.2 * lr * max(view.shape) ** 0.5)
            return None

        def zero_grad(self, set_to_none: bool = True) -> None:
            """Forget the gradients of the weights, not only of the views."""
            super().zero_grad(set_to_none)
            for p in self.weights:
                p.grad = None


# ---- state, as plain tensors ------------------------------------------------------------------------------------


def pack(optimizers: list[Optimizer]) -> tuple[dict[str, Tensor], list[Any]]:
    """(tensors, settings): the state of several optimizers as named tensors and JSON."""
    tensors: dict[str, Tensor] = {}
    settings: list[Any] = []
    for n, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        numbers: dict[str, Any] = {}
        for index, values in state["state"].items():
            for key, value in values.items():
                (tensors if isinstance(value, Tensor) else numbers)[f"{n}.{index}.{key}"] = value
        groups = [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]]
        settings.append({"groups": groups, "numbers": numbers})
    return tensors, settings


def unpack(optimizers: list[Optimizer], tensors: dict[str, Tensor], settings: list[Any]) -> None:
    """Put what :func:`pack` gave back into optimizers of the same making."""
    for n, (optimizer, saved) in enumerate(zip(optimizers, settings, strict=True)):
        parameters = [p.detach() for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for name, value in {**tensors, **saved["numbers"]}.items():
            owner, index, key = name.split(".", 2)
            if int(owner) == n:
                p = parameters[int(index)]
                # the memory order must be the parameter's, which fused kernels take for granted
                if isinstance(value, Tensor):
                    value = like(p if value.shape == p.shape else value, value)
                state.setdefault(int(index), {})[key] = value
        now = optimizer.state_dict()["param_groups"]
        groups = [{**mine, **theirs} for mine, theirs in zip(now, saved["groups"], strict=True)]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
