"""Two beliefs about a positive mean-reverting asset, and the equilibrium price that they make, in closed form.

Lee and Park, arXiv:2012.13753, derived for square-root noise: dX = speed (level - X) dt + volatility sqrt(X) dB under
each belief, discounting at ``rate``. With mu the larger of the two drifts, the minimal equilibrium price solves

    volatility^2 / 2 x P'' + mu(x) P' - rate P + x = 0,   x > 0,   P of linear growth

whose homogeneous solutions are Kummer's M (regular at 0) and U (vanishing at infinity).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mpmath import mp

DIGITS = 30  # of the confluent hypergeometric functions: M overflows double precision and SciPy's U is inexact


@dataclass(frozen=True)
class Belief:
    """A group's view of the asset; all positive."""

    speed: float  # of the reversion, per unit of time
    level: float  # that the asset reverts to
    volatility: float  # of sqrt(X) dB

    def drift(self, x):
        """speed (level - x)."""
        return self.speed * (self.level - x)

    def intrinsic_value(self, x, rate: float):
        """Expected discounted dividends of whoever keeps the asset: x / (r + k) + k level / (r (r + k))."""
        return x / (rate + self.speed) + self.speed * self.level / (rate * (rate + self.speed))


def crossing(beliefs: Sequence[Belief]) -> float | None:
    """Where the two drifts are equal; None where the speeds are."""
    first, second = beliefs
    if first.speed == second.speed:
        return None
    return (first.speed * first.level - second.speed * second.level) / (first.speed - second.speed)


def has_bubble(beliefs: Sequence[Belief]) -> bool:
    """Whether neither drift is the larger one on all of (0, inf): equal volatilities, any noise that leaves 0 alone."""
    where = crossing(beliefs)
    return where is not None and where > 0


@dataclass(frozen=True)
class EquilibriumPrice:
    """The minimal equilibrium price of two beliefs with one volatility."""

    beliefs: tuple[Belief, Belief]
    rate: float

    @cached_property
    def below(self) -> Belief:
        """Whose drift is the larger one below the crossing; anywhere, where there is no bubble."""
        if has_bubble(self.beliefs):
            return max(self.beliefs, key=lambda belief: belief.speed)
        return min(self.beliefs, key=lambda belief: (belief.speed, -belief.level))

    @cached_property
    def above(self) -> Belief:
        """Whose drift is the larger one above the crossing."""
        return min(self.beliefs, key=lambda belief: (belief.speed, -belief.level))

    @cached_property
    def coefficients(self) -> tuple[mp.mpf, mp.mpf]:
        """(C1, C2) of I + C1 M below the crossing and I + C2 U above; (0, 0) without a bubble.

        From P and P' continuous at the crossing, where the drifts agree, so that P'' is continuous too.
        """
        if not has_bubble(self.beliefs):
            return mp.mpf(0), mp.mpf(0)
        with mp.workdps(DIGITS):
            x = mp.mpf(crossing(self.beliefs))
            m, dm, _ = self._regular(x)
            u, du, _ = self._decaying(x)
            gap = self.above.intrinsic_value(x, self.rate) - self.below.intrinsic_value(x, self.rate)
            slope_gap = 1 / mp.mpf(self.rate + self.above.speed) - 1 / mp.mpf(self.rate + self.below.speed)
            determinant = u * dm - m * du
            return (u * slope_gap - du * gap) / determinant, (m * slope_gap - dm * gap) / determinant

    def at(self, x: float) -> tuple[float, float, float]:
        """P, P' and P'' at x >= 0; P'' at 0 is the limit."""
        with mp.workdps(DIGITS):
            belief, (value, slope, curvature) = self._premium(mp.mpf(x))
            value += belief.intrinsic_value(mp.mpf(x), self.rate)
            return float(value), float(slope + 1 / mp.mpf(self.rate + belief.speed)), float(curvature)

    def bubble(self, x: float) -> float:
        """P less the larger of the two intrinsic values: what the right to sell later is worth. Tiny ones are exact."""
        with mp.workdps(DIGITS):
            belief, (value, _, _) = self._premium(mp.mpf(x))
            largest = max(other.intrinsic_value(mp.mpf(x), self.rate) for other in self.beliefs)
            return float(value + (belief.intrinsic_value(mp.mpf(x), self.rate) - largest))

    def _premium(self, x: mp.mpf) -> tuple[Belief, tuple[mp.mpf, mp.mpf, mp.mpf]]:
        """Whose drift is the larger one at x, and what P and its derivatives have above that intrinsic value."""
        if not has_bubble(self.beliefs):
            return self.above, (mp.mpf(0),) * 3
        lower = x <= crossing(self.beliefs)
        constant = self.coefficients[0 if lower else 1]
        parts = self._regular(x) if lower else self._decaying(x)
        return (self.below if lower else self.above), tuple(constant * part for part in parts)

    def _regular(self, x: mp.mpf) -> tuple[mp.mpf, mp.mpf, mp.mpf]:
        """M(a, b, scale x) and its first two derivatives by x."""
        a, b, scale = self._arguments(self.below)
        z = scale * x
        return (
            mp.hyp1f1(a, b, z),
            scale * a / b * mp.hyp1f1(a + 1, b + 1, z),
            scale**2 * a * (a + 1) / (b * (b + 1)) * mp.hyp1f1(a + 2, b + 2, z),
        )

    def _decaying(self, x: mp.mpf) -> tuple[mp.mpf, mp.mpf, mp.mpf]:
        """U(a, b, scale x) and its first two derivatives by x; large near 0, so for x at the crossing and above."""
        a, b, scale = self._arguments(self.above)
        z = scale * x
        return (
            mp.hyperu(a, b, z),
            -scale * a * mp.hyperu(a + 1, b + 1, z),
            scale**2 * a * (a + 1) * mp.hyperu(a + 2, b + 2, z),
        )

    def _arguments(self, belief: Belief) -> tuple[mp.mpf, mp.mpf, mp.mpf]:
        """a, b of Kummer's equation z u'' + (b - z) u' - a u = 0, and z / x."""
        scale = 2 * mp.mpf(belief.speed) / mp.mpf(belief.volatility) ** 2
        return mp.mpf(self.rate) / belief.speed, scale * belief.level, scale
