"""The best switching between two beliefs, solved on a grid: finite differences and policy iteration.

max over groups i of { volatility_i^2 / 2 x P'' + speed_i (level_i - x) P' } - rate P + x = 0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from scipy.linalg import solve_banded

from runner.errors import RunFailed
from runner.methods.other.beliefs import Belief

POLICIES = 100  # tried at most; a handful is usual


@dataclass(frozen=True)
class Policy:
    """Which group's belief holds at x: ``first`` (0 or 1) below the first switch, the other one up to the next ..."""

    first: int
    switches: tuple[float, ...]


@dataclass(frozen=True)
class GridPrice:
    """x (n + 1,), the price there, and the policy that makes it."""

    x: numpy.ndarray
    price: numpy.ndarray
    policy: Policy


def grid_price(beliefs: Sequence[Belief], rate: float, end: float, intervals: int) -> GridPrice:
    """The price on a uniform grid over [0, end].

    Second order everywhere: central differences, at 0 (where the noise ends) a one-sided one, at the end the slope of
    an intrinsic value, 1 / (rate + the smaller speed). A bubble's slope there is not quite that: the last part of
    the grid, as long as the noise carries against the drift, is off.

    Raises:
        RunFailed: the policies do not settle.
    """
    x = numpy.linspace(0.0, end, intervals + 1)
    diffusions = numpy.stack([belief.volatility**2 / 2 * x for belief in beliefs])
    drifts = numpy.stack([belief.drift(x) for belief in beliefs])
    end_slope = 1 / (rate + min(belief.speed for belief in beliefs))
    chosen = drifts.argmax(0)
    for _ in range(POLICIES):
        diffusion, drift = (numpy.take_along_axis(both, chosen[None], 0)[0] for both in (diffusions, drifts))
        price = _solve(x, diffusion, drift, rate, end_slope)
        slope, curvature = _derivatives(x, price, end_slope)
        gains = diffusions * curvature + drifts * slope
        better = numpy.where(gains[1 - chosen, numpy.arange(len(x))] > gains.max(0) - 1e-12, chosen, gains.argmax(0))
        if (better == chosen).all():
            changes = numpy.flatnonzero(numpy.diff(chosen))
            return GridPrice(x, price, Policy(int(chosen[0]), tuple((x[changes] + x[changes + 1]) / 2)))
        chosen = better
    raise RunFailed(f"the choice between the beliefs did not settle in {POLICIES} policies: take more intervals")


def _solve(x: numpy.ndarray, diffusion: numpy.ndarray, drift: numpy.ndarray, rate: float, end_slope: float):
    """diffusion P'' + drift P' - rate P + x = 0 with P' = end_slope at the end."""
    h = x[1] - x[0]
    above, below = diffusion / h**2 + drift / (2 * h), diffusion / h**2 - drift / (2 * h)
    bands = numpy.zeros((4, len(x)))  # two above the diagonal, the diagonal, one below
    bands[1, 1:], bands[3, :-1] = above[:-1], below[1:]
    bands[2] = -2 * diffusion / h**2 - rate
    right = -x.copy()
    bands[2, 0], bands[1, 1], bands[0, 2] = -3 * drift[0] / (2 * h) - rate, 4 * drift[0] / (2 * h), -drift[0] / (2 * h)
    bands[3, -2] = above[-1] + below[-1]  # the point behind the end is 2 h end_slope above that before it
    right[-1] -= 2 * h * end_slope * above[-1]
    return solve_banded((1, 2), bands, right)


def _derivatives(x: numpy.ndarray, price: numpy.ndarray, end_slope: float) -> tuple[numpy.ndarray, numpy.ndarray]:
    h = x[1] - x[0]
    behind = price[-2] + 2 * h * end_slope
    padded = numpy.concatenate([[3 * price[0] - 3 * price[1] + price[2]], price, [behind]])
    return (padded[2:] - padded[:-2]) / (2 * h), (padded[2:] - 2 * price + padded[:-2]) / h**2
