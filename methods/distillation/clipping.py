"""Gradients of distillation losses, kept below that of the task, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def clip_to(gradient: Tensor, task: Tensor, rate: float) -> Tensor:
    """``gradient`` with at most ``rate`` times the norm of ``task``: z * min(1, rate * ||task|| / ||z||)."""
    return gradient * (rate * task.norm() / gradient.norm().clamp_min(1e-12)).clamp_max(1.0)


def rising_rate(epoch: int) -> float:
    """sigmoid(epoch): 0.5 in epoch 0, 1 at the end (KD_methods_with_TF)."""
    return 1 / (1 + math.exp(-epoch))


def clipped_sum(task: Tensor, transfers: Sequence[Tensor], parameters: Iterable[nn.Parameter], rate: float) -> Tensor:
    """A scalar with the value task + sum(transfers), whose gradient is clipped: of each tensor, each transfer's
    gradient has at most ``rate`` times the norm of the task's.

    A tensor without transfer gradient gets the task's alone, one without task gradient (an adapter's) the transfers'
    as they are. Weight decay stays outside, in the optimizer. MHGD card, step 7; IEP card, 3.10.
    """
    weights = [item for item in parameters if item.requires_grad]
    wanted = torch.autograd.grad(task, weights, retain_graph=True, allow_unused=True)
    totals = list(wanted)
    for transfer in transfers:
        for place, gradient in enumerate(torch.autograd.grad(transfer, weights, retain_graph=True, allow_unused=True)):
            if gradient is None:
                continue
            if wanted[place] is not None:
                gradient = clip_to(gradient, wanted[place], rate)
            totals[place] = gradient if totals[place] is None else totals[place] + gradient
    value = task.detach() + sum(item.detach() for item in transfers)
    carrier = sum((weight * total).sum() for weight, total in zip(weights, totals, strict=True) if total is not None)
    return carrier - carrier.detach() + value
