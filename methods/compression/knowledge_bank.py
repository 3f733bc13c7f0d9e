"""Teachers out of the networks that a search met, their stored logits, and the loss that uses them (EKG).

Source: Lee and Song, ECCV 2022, arXiv:2203.02651, eq. 10-13, and the released code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from runner.methods.compression.executor import SlicedExecutor

Total = Callable[[Tensor], Tensor] | None  # a sum over the parts of a batch that several processes share
HALF_PRECISION_ABOVE = 4 * 2**30  # bytes of a float32 bank from which float16 is stored


def choose_teachers(losses: Sequence[float], count: int) -> list[int]:
    """Indices of ``count`` networks whose losses are spread evenly from the lowest up to below the highest.

    Targets are L_min + k * (L_max - L_min) / count, k = 0..count-1; each takes the nearest loss that is left, so the
    first teacher is the best one. Fewer losses than ``count`` give all of them. The final network is not among them.
    """
    order = np.argsort(np.asarray(losses), kind="stable")
    ordered = np.asarray(losses, dtype=np.float64)[order]
    low, high = ordered[0], ordered[-1]
    chosen = []
    for k in range(min(count, len(ordered))):
        nearest = int(np.argmin(np.abs(low + k * (high - low) / count - ordered)))
        chosen.append(int(order[nearest]))
        ordered[nearest] = np.inf
    return chosen


def teacher_logits(executor: SlicedExecutor, kept: Sequence[Tensor], batches: Iterable) -> Tensor:
    """Logits (N, classes) on the CPU of one network met, with batch statistics, in the order of ``batches``."""
    weights = executor.weights(kept)
    return torch.cat([executor.forward(images, weights)[0].cpu() for images, *_ in batches])


def stack_bank(logits: Sequence[Tensor]) -> Tensor:
    """The bank (N, classes, K) of K teachers' logits; float16 where float32 would take more than 4 GiB."""
    size = 4 * len(logits) * logits[0].numel()
    return torch.stack([part.half() if size > HALF_PRECISION_ABOVE else part for part in logits], dim=-1)


def default_temperature(classes: int) -> float:
    return 4.0 if classes < 1000 else 10.0


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL_T(teacher || student) = T * sum_c softmax(t/T)_c (log softmax(t/T)_c - log softmax(s/T)_c), per row.

    Logits (..., classes) -> (...). The factor is T, not T^2, as in the released code.
    """
    target, prediction = (teacher / temperature).log_softmax(-1), (student / temperature).log_softmax(-1)
    return temperature * (target.exp() * (target - prediction)).sum(-1)


def active_teachers(student: Tensor, bank: Tensor, temperature: float, total: Total = None) -> Tensor:
    """Which of the K teachers (K,) are at least as near to the best one as the student is, summed over the batch.

    ``student`` (B, classes) is the mean of the views' logits, ``bank`` (B, classes, K). Where they are part of a batch,
    ``total`` sums over all its parts.
    """
    best = bank[..., 0]
    distance = divergence(best, student, temperature).sum()
    distances = divergence(best.unsqueeze(1), bank.transpose(1, 2), temperature).sum(0)
    if total is not None:
        distance, distances = total(distance), total(distances)
    return distances < distance


def mean_teacher(student: Tensor, bank: Tensor, temperature: float, activity_rule: bool, total: Total = None) -> Tensor:
    """Mean logits (B, classes) of the active teachers, zeros if none is; without the rule of all teachers."""
    if not activity_rule:
        return bank.mean(-1)
    active = active_teachers(student, bank, temperature, total).to(bank.dtype)
    return (bank * active).sum(-1) / active.sum().clamp_min(1)


def guided_loss(logits: Tensor, labels: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy plus divergence to the teacher, mean over images and views; eq. 13 with the gradient's half.

    ``logits`` (B, V, classes); ``labels`` (B,); ``teacher`` (B, classes), or (B, V, classes) where it sees the views.
    """
    views = logits.shape[1]
    labels_loss = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(views))
    if teacher.ndim == 2:
        teacher = teacher.unsqueeze(1)
    return labels_loss + divergence(teacher, logits, temperature).mean()


def bank_loss(
    logits: Tensor,
    labels: Tensor,
    bank: Tensor,
    temperature: float,
    activity_rule: bool = True,
    total: Total = None,
) -> Tensor:
    """The fine-tuning loss with the bank: logits (B, V, classes), labels (B,), bank (B, classes, K) -> scalar."""
    teacher = mean_teacher(logits.detach().mean(1), bank, temperature, activity_rule, total)
    return guided_loss(logits, labels, teacher, temperature)
