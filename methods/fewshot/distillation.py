"""HyperDistill's average of a task's past: weights and batches, newer ones more (Lee et al. 2022, arXiv:2110.02508)."""

from __future__ import annotations

import torch
from torch import Tensor

from runner.methods.fewshot.inner_loop import Weights


def length(decay: float, count: int) -> float:
    """1 + decay + ... + decay^(count - 1), by which the size of the sum over ``count`` steps grows."""
    return float(count) if decay == 1 else (1 - decay**count) / (1 - decay)


def share_of_past(decay: float, count: int) -> float:
    """What remains of the average when the newest of ``count`` points joins it; 0 for the first."""
    return decay * length(decay, count - 1) / length(decay, count)


def share_of_newer(decay: float, count: int) -> float:
    """The same where points join from the newest to the oldest."""
    return length(decay, count - 1) / length(decay, count)


class Distilled:
    """w* and D*: the mean of the points added so far, the newest with weight 1, the one before with ``decay`` ...; and
    rows of their batches in the same shares.

    Args:
        newest_first: whether points are added from the newest to the oldest; the mean is the same.
    """

    def __init__(self, decay: float, newest_first: bool = False) -> None:
        self.decay, self.share = decay, share_of_newer if newest_first else share_of_past
        self.count = 0
        self.weights: Weights = {}
        self.rows: Tensor | None = None

    def add(self, weights: Weights, rows: Tensor | None) -> tuple[Weights, Tensor | None]:
        """(w*, rows of D*) with one more point.

        Args:
            weights: of any shapes.
            rows: (tasks, n), its batch; None: all examples, then and always.
        """
        self.count += 1
        if self.count == 1:
            self.weights, self.rows = weights, rows
            return self.weights, self.rows
        kept = self.share(self.decay, self.count)
        self.weights = {name: kept * self.weights[name] + (1 - kept) * weights[name] for name in weights}
        if rows is not None:
            old = round(kept * rows.shape[1])
            self.rows = torch.cat([some(self.rows, old), some(rows, rows.shape[1] - old)], 1)
        return self.weights, self.rows


def some(rows: Tensor, count: int) -> Tensor:
    """``count`` random ones of the rows (tasks, n) of each task."""
    return rows.gather(1, torch.rand(rows.shape, device=rows.device).argsort(1)[:, :count])
