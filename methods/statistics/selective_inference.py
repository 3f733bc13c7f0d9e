"""Inference about the largest of jointly normal numbers: the polyhedral lemma of Lee, Sun, Sun and Taylor (2016)."""

from __future__ import annotations

import math

import numpy
from scipy.special import log_ndtr, ndtr


def truncation(
    values: numpy.ndarray, covariance: numpy.ndarray, selected: numpy.ndarray, tested: int, largest: bool = True
) -> tuple[float, float]:
    """[V-, V+]: where values[tested] may lie, given the rest of ``values``, so that the same ones are selected.

    Args:
        values: (d,), normal with ``covariance`` (d, d).
        selected: (k,), indices of the largest values (or the smallest).
        tested: one of them.

    Returns:
        bounds around values[tested]; infinite where nothing bounds.
    """
    direction = covariance[:, tested] / covariance[tested, tested]
    rest = values - direction * values[tested]
    others = numpy.setdiff1d(numpy.arange(len(values)), selected)
    sign = 1.0 if largest else -1.0
    slopes = sign * (direction[others][None] - direction[selected][:, None]).ravel()  # A c of the event A values <= 0
    offsets = sign * (rest[others][None] - rest[selected][:, None]).ravel()  # A v
    below, above = slopes < 0, slopes > 0
    lower = (-offsets[below] / slopes[below]).max(initial=-math.inf)
    upper = (-offsets[above] / slopes[above]).min(initial=math.inf)
    return float(lower), float(upper)


def truncated_tail(value: float, lower: float, upper: float) -> float:
    """P(Z > value | lower <= Z <= upper), Z standard normal, lower <= value <= upper; exact far out in both tails."""
    value = min(max(value, lower), upper)
    if lower > 0:
        at, end, start = (float(log_ndtr(-point)) for point in (value, upper, lower))
        return _ratio(math.exp(at - start) * -math.expm1(end - at), -math.expm1(end - start))
    if upper < 0:
        at, end, start = (float(log_ndtr(point)) for point in (value, upper, lower))
        return _ratio(-math.expm1(at - end), -math.expm1(start - end))
    end = float(ndtr(-upper))
    return _ratio(float(ndtr(-value)) - end, float(ndtr(-lower)) - end)


def _ratio(part: float, whole: float) -> float:
    """Of an interval without width nothing is known."""
    return min(max(part / whole, 0.0), 1.0) if whole > 0 else 1.0
