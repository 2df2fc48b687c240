"""LyCORIS' other ways to write a change of a weight: products of two small ones, number by number or of each two.

LoHa (Hyeon-Woo et al. 2021, arXiv:2108.06098, FedPara) multiplies two matrices of low rank; LoKr (Edalati et al. 2022,
arXiv:2212.10650, KronA) takes their Kronecker product. The sizes are those of Yeh et al. 2023 (arXiv:2309.14859).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

HADA = ("hada_w1", "hada_w2", "hada_t1", "hada_t2")
KRON = ("lokr_w1", "lokr_w2", "lokr_t1", "lokr_t2")
NAMES = tuple(f"{name}{end}" for name in (*HADA[:2], *KRON[:2]) for end in ("", "_a", "_b")) + HADA[2:] + KRON[2:]


def has(entry: Mapping[str, Tensor]) -> bool:
    """Whether the tensors of a layer are of one of these kinds."""
    return any(name in entry for name in NAMES)


def change(entry: Mapping[str, Tensor]) -> Float[Tensor, "out in"]:
    """What is added to a layer's weight, as a matrix, before alpha; KeyError or RuntimeError for what is incomplete."""
    hada = any(name in entry for name in ("hada_w1_a", "hada_w2_a"))
    first, second, *cores = HADA if hada else KRON
    one, two = _factor(entry, first, cores[0]).flatten(1), _factor(entry, second, cores[1]).flatten(1)
    return one * two if hada else torch.kron(one, two)


def rank(entry: Mapping[str, Tensor]) -> int | None:
    """What alpha is divided by; None where the matrices are whole, and alpha means nothing."""
    return next((len(tensor) for name, tensor in entry.items() if name in NAMES and name.endswith("_b")), None)


def _factor(entry: Mapping[str, Tensor], name: str, core: str) -> Tensor:
    if name in entry:
        return entry[name].float()
    a, b = entry[f"{name}_a"].float(), entry[f"{name}_b"].float()
    return a @ b if core not in entry else torch.einsum("ij...,ip,jr->pr...", entry[core].float(), a, b)  # Tucker form
