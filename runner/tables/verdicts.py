"""Means over seeds with their intervals, and what they say about a reported number or a claim. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95  # of every interval; tests are two-sided at 1 - LEVEL
DEFAULT_TOLERANCE = 0.01  # of the reported value's magnitude, where neither a spread nor a tolerance is given
FEW_SEEDS = 5  # below, the text of a claim's verdict says how weak it is

REPRODUCED, DIFFERS, INCONCLUSIVE, NO_VERDICT, MISSING = (
    "reproduced",
    "differs",
    "inconclusive",
    "no verdict",
    "missing",
)
HOLDS, CONTRADICTED, NOT_DISTINGUISHABLE = "holds", "contradicted", "not distinguishable"


@dataclass(frozen=True)
class Summary:
    """n values: mean, standard deviation (ddof 1) and the 95% t-interval of the mean; both None for n = 1."""

    n: int
    mean: float
    sd: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Comparison:
    """A claim against the data. ``difference`` is left - right; ``p`` is two-sided, None where there is no spread."""

    verdict: str
    test: str
    n: int  # pairs, or values of both sides together
    difference: float | None
    interval: tuple[float, float] | None
    p: float | None
    note: str = ""


def summarise(values: Sequence[float]) -> Summary | None:
    """None for no values."""
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(1, mean, None, None)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = _quantile(n - 1) * sd / math.sqrt(n)
    return Summary(n, mean, sd, (mean - half, mean + half))


def tolerance_of(value: float, spread: float | None, stated: float | None) -> float:
    """How far from a reported ``value`` counts as the same: its printed spread, else the stated one, else 1% of it."""
    if spread is not None:
        return spread
    return stated if stated is not None else DEFAULT_TOLERANCE * abs(value)


def cell_verdict(summary: Summary | None, reported: float, tolerance: float) -> str:
    """Where the interval of the mean lies to reported +- tolerance, whose ends belong to it.

    reproduced: inside; differs: without a common point; inconclusive: it straddles an end, or is wider than the range.
    """
    if summary is None:
        return MISSING
    if summary.interval is None:
        return NO_VERDICT
    (low, high), lowest, highest = summary.interval, reported - tolerance, reported + tolerance
    rounding = 1e-9 * max(abs(reported), tolerance)  # 93.85 - 0.1 is not 93.75 in binary
    if lowest - rounding <= low and high <= highest + rounding:
        return REPRODUCED
    if high < lowest - rounding or low > highest + rounding:
        return DIFFERS
    return INCONCLUSIVE


def compare(left: Mapping[int, float], right: Mapping[int, float], larger: bool) -> Comparison:
    """The claim that left is larger (or smaller) than right; values by seed.

    Two seeds or more in common: paired t over them. Otherwise Welch's t, which needs two values on each side.
    holds: the 95% interval of the difference lies on the claim's side of 0; contradicted: on the other side.
    """
    shared = sorted(set(left) & set(right))
    if len(shared) >= 2:
        found = summarise([left[seed] - right[seed] for seed in shared])
        test, n, (difference, interval) = "paired t", found.n, (found.mean, found.interval)
        p = _p(difference, found.sd / math.sqrt(n), n - 1)
        seeds = n
    elif len(left) >= 2 and len(right) >= 2:
        test, n = "Welch's t", len(left) + len(right)
        difference, interval, p = welch(list(left.values()), list(right.values()))
        seeds = min(len(left), len(right))
    else:
        n = min(len(left), len(right))
        single = left[shared[0]] - right[shared[0]] if shared else None
        why = "a value is missing" if not n else "one seed: a difference without a spread says nothing"
        return Comparison(NO_VERDICT, "paired t", n, single, None, None, why)
    low, high = interval if larger else (-interval[1], -interval[0])
    verdict = HOLDS if low > 0 else CONTRADICTED if high < 0 else NOT_DISTINGUISHABLE
    return Comparison(verdict, test, n, difference, interval, p, _weakness(seeds, test))


def welch(left: Sequence[float], right: Sequence[float]) -> tuple[float, tuple[float, float], float | None]:
    """Difference of the means, its 95% interval and the two-sided p of Welch's t; two values or more on each side."""
    one, two = summarise(left), summarise(right)
    a, b = one.sd**2 / one.n, two.sd**2 / two.n
    difference = one.mean - two.mean
    if a + b == 0:
        return difference, (difference, difference), None
    freedom = (a + b) ** 2 / (a**2 / (one.n - 1) + b**2 / (two.n - 1))
    half = _quantile(freedom) * math.sqrt(a + b)
    return difference, (difference - half, difference + half), _p(difference, math.sqrt(a + b), freedom)


def _weakness(seeds: int, test: str) -> str:
    if seeds >= FEW_SEEDS:
        return ""
    freedom = seeds - 1 if test == "paired t" else 2 * (seeds - 1)
    return f"weak: with {seeds} seeds |t| must exceed {_quantile(freedom):.1f}; five or more are advised"


def _quantile(freedom: float) -> float:
    """What |t| exceeds with probability 1 - LEVEL."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def _p(difference: float, error: float, freedom: float) -> float | None:
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(difference) / error)) if error > 0 else None
