"""FedWeIT's parts of a kernel, what is sent of them, and the penalties: pure functions (Yoon et al. 2021).

A kernel has its output units first, as torch lays it out: (units, ...). Equations are those of the card's numbering in
the paper's text: (1) the composition, (2) the objective; facts that the text leaves open are wyjeong/FedWeIT's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TINY = 1e-15  # in the server's mean


def per_unit(values: Tensor, kernel: Tensor) -> Tensor:
    """One value a unit (units,), shaped to multiply a kernel (units, ...)."""
    return values.view(-1, *[1] * (kernel.ndim - 1))


def restored(base: Tensor, mask: Tensor, adaptive: Tensor) -> Tensor:
    """B * sigmoid(m) + A of a task: base and adaptive (units, ...), mask logits (units,)."""
    return base * per_unit(mask.sigmoid(), base) + adaptive


def transferred(attention: Tensor, knowledge: Tensor) -> Tensor:
    """sum_j alpha_j A_j, the rest of equation 1: attention (clients,), knowledge (clients, units, ...)."""
    return torch.tensordot(attention, knowledge, 1)


def hard_threshold(values: Tensor, limit: float) -> Tensor:
    """``values`` where they are larger than ``limit`` in size, else 0."""
    return values * (values.abs() > limit)


def kept_units(mask: Tensor, sparsity: float) -> Tensor:
    """Which units of a layer are sent: |m| above its value at place floor(sparsity * units) in rising order.

    Of distinct sizes floor(sparsity * units) + 1 units stay behind; with sparsity 0 all are sent.
    """
    if sparsity == 0:
        return torch.ones_like(mask, dtype=torch.bool)
    size = mask.abs()
    return size > size.sort()[0][math.floor(len(size) * sparsity)]


def merge(bases: Sequence[Tensor], kept: Sequence[Tensor]) -> Tensor:
    """The server's base: every unit is the mean over the clients that sent it; 0 where none did.

    Args:
        bases: (units, ...) each; what was not sent is left out whatever its value.
        kept: (units,) bool each.
    """
    senders = torch.stack(list(kept)).sum(0)
    total = sum(base * per_unit(sent, base) for base, sent in zip(bases, kept, strict=True))
    return total / per_unit(senders + TINY, total)


def received(server: Tensor, local: Tensor) -> Tensor:
    """A client's base at the start of a round: its own where the server's is 0, as nobody sent it."""
    return torch.where(server != 0, server, local)


def half_square(values: Tensor) -> Tensor:
    """1/2 ||v||^2"""
    return values.square().sum() / 2


def drift(base: Tensor, start: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """sum_i 1/2 ||B sigmoid(m_i) + A_i - Theta_i*||^2 over earlier tasks whose m_i and A_i stay as they were.

    Then A_i cancels: base moved from ``start`` by dB gives 1/2 ||dB sigmoid(m_i)||^2 each.
    """
    moved = base - start
    return sum((half_square(moved * per_unit(mask.sigmoid(), moved)) for mask in masks), moved.new_zeros(()))
