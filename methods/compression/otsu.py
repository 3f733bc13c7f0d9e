"""Otsu's threshold on trimmed values: which gates are worth trying (EKG, card 2.5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def trimmed_otsu(values: Sequence[float], cut: float = 0.2) -> float | None:
    """Threshold that parts the sorted values best, after ceil(cut * n) were taken off both ends.

    Of the n' remaining values v, t = 1..n'-2 maximises t * (n'-t) * (mean(v[:t]) - mean(v[t:]))^2 (the first t at
    ties); the threshold is halfway between v[t-1] and v[t]. None if fewer than three values remain (n of 6 or below 5).
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    trim = math.ceil(len(ordered) * cut)
    ordered = ordered[trim : len(ordered) - trim]
    if len(ordered) < 3:
        return None
    spread = [
        split * (len(ordered) - split) * (ordered[:split].mean() - ordered[split:].mean()) ** 2
        for split in range(1, len(ordered) - 1)
    ]
    best = int(np.argmax(spread)) + 1
    return float((ordered[best - 1] + ordered[best]) / 2)
