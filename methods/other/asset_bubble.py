"""Equilibrium price and bubble of a mean-reverting asset that two groups of investors see differently.

Lee and Park, "Conditions for bubbles to arise under heterogeneous beliefs", arXiv:2012.13753. No official code was
found. The price in closed form (``beliefs``), by finite differences (``switching_control``) and by simulation, and
the condition for a bubble over random markets. Deviations: see the class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy
import torch
from pydantic import Field
from torch import Tensor

from runner.methods.other.beliefs import Belief, EquilibriumPrice, crossing, has_bubble
from runner.methods.other.switching_control import GridPrice, Policy, grid_price
from runner.storage import write_atomic

if TYPE_CHECKING:
    from runner.context import Context

Positive = Annotated[float, Field(gt=0)]
VISIBLE = 1e-6  # a bubble on a grid, whose rounding is 1e-8
MARKET_INTERVALS = 2400  # of the grid of a random market


@dataclass(kw_only=True)
class AssetBubble:
    """dX = speed (level - X) dt + volatility sqrt(X) dB under each belief; nobody sells short."""

    speeds: Annotated[list[Positive], Field(min_length=2, max_length=2)] = field(default_factory=lambda: [2.0, 0.5])
    levels: Annotated[list[Positive], Field(min_length=2, max_length=2)] = field(default_factory=lambda: [1.0, 1.0])
    volatilities: Annotated[list[Positive], Field(min_length=2, max_length=2)] = field(
        default_factory=lambda: [0.4, 0.4]
    )  # different ones have no closed form: the grid's price stands in its place
    rate: Positive = 0.05  # of discounting
    asset: Annotated[float, Field(ge=0)] = 1.0  # today's value, at which the price is measured
    end: Positive = 12.0  # of the grid
    intervals: Annotated[int, Field(ge=10)] = 6000  # of the grid
    paths: Annotated[int, Field(ge=2)] = 20_000  # simulated, the same noise under each belief and the switched one
    horizon: Annotated[int, Field(gt=0)] = 160  # of the simulation, units of time
    steps: Annotated[int, Field(gt=0)] = 100  # of Euler's scheme in a unit of time
    markets: Annotated[int, Field(ge=0)] = 200  # random ones in which the condition is tried

    paper: ClassVar[str] = "arXiv:2012.13753"
    fidelity: ClassVar[str] = "reconstruction"
    claim: ClassVar[str] = (
        "Different beliefs make a bubble if and only if neither drift is the larger one at every value of the asset."
    )
    citation: ClassVar[str] = (
        "Lee, Park. Conditions for bubbles to arise under heterogeneous beliefs. arXiv:2012.13753, 2020."
    )
    data: ClassVar[tuple[str, ...]] = ("none",)
    model: ClassVar[tuple[str, ...]] = ("none",)
    deviations: ClassVar[tuple[str, ...]] = (
        "derived from the abstract for square-root noise; the paper's own process and figures were not read",
        "the grid's error is that of its lower half: near the end its slope is that of an intrinsic value",
        "the simulation ends at its horizon, and what would be paid later is left out",
        "a bubble on a grid is one above 1e-6",
    )

    def __post_init__(self) -> None:
        for speed, level, volatility in zip(self.speeds, self.levels, self.volatilities, strict=True):
            if 2 * speed * level < volatility**2:
                raise ValueError(
                    f"2 x speed x level must be at least volatility^2, so that the asset stays above 0: speed {speed}, "
                    f"level {level}, volatility {volatility}"
                )
        if self.asset > self.end / 2:
            raise ValueError(f"asset={self.asset} must lie in the lower half of the grid, which ends at {self.end}")

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns at ``asset`` price, intrinsic_value_1 and _2, bubble, and the simulated_ ones of the first three with
        simulation_standard_error and simulation_distance (of the price, in standard errors); bubble_condition (0 or
        1), bubble_largest on the grid, grid_error (to the closed form, where there is one); markets_agreeing and
        markets_monotone (shares, 0..1: the condition is right, the bubble grows with the volatility)."""
        beliefs = tuple(map(Belief, self.speeds, self.levels, self.volatilities))
        closed = EquilibriumPrice(beliefs, self.rate) if self.volatilities[0] == self.volatilities[1] else None
        grid = grid_price(beliefs, self.rate, self.end, self.intervals)
        half = grid.x <= self.end / 2
        price = closed.at(self.asset)[0] if closed else float(numpy.interp(self.asset, grid.x, grid.price))
        intrinsic = [belief.intrinsic_value(self.asset, self.rate) for belief in beliefs]
        metrics = {
            "price": price,
            "intrinsic_value_1": intrinsic[0],
            "intrinsic_value_2": intrinsic[1],
            "bubble": price - max(intrinsic),
            "bubble_largest": float(bubble_on(grid, beliefs, self.rate)[half].max()),
        }
        if closed:
            points = numpy.flatnonzero(half)[:: max(1, half.sum() // 60)]
            metrics["grid_error"] = max(abs(float(grid.price[i]) - closed.at(float(grid.x[i]))[0]) for i in points)
            metrics["bubble_condition"] = float(has_bubble(beliefs))
            where = crossing(beliefs)
            ctx.say(f"the drifts cross at {where:.4g}" if where is not None else "the drifts do not cross")
        self._write_curves(ctx, beliefs, closed, grid)
        policy = grid.policy if closed is None else exact_policy(beliefs)
        metrics |= self._simulate(ctx, beliefs, policy, price)
        if self.markets:
            metrics |= self._try_markets(ctx)
        ctx.log(**metrics)
        return metrics

    def _simulate(self, ctx: Context, beliefs: tuple[Belief, Belief], policy: Policy, price: float) -> dict[str, float]:
        asset = torch.full((3, self.paths), self.asset, dtype=torch.float64)  # switched, first belief, second belief
        paid = torch.zeros_like(asset)
        ctx.track(asset=asset, paid=paid)
        rules = [policy, Policy(0, ()), Policy(1, ())]
        for unit in ctx.loop("simulate", self.horizon):
            advance(asset, paid, beliefs, rules, self.rate, float(unit), self.steps)
            ctx.log(paid=paid[0].mean())
        ctx.track(asset=None, paid=None)
        mean = paid.mean(1).tolist()
        error = float(paid[0].std()) / math.sqrt(self.paths)
        return {
            "simulated_price": mean[0],
            "simulated_intrinsic_value_1": mean[1],
            "simulated_intrinsic_value_2": mean[2],
            "simulation_standard_error": error,
            "simulation_distance": abs(mean[0] - price) / error,
        }

    def _try_markets(self, ctx: Context) -> dict[str, float]:
        found = {"tried": 0, "agreeing": 0, "with_bubble": 0, "monotone": 0}
        ctx.track(found=found)
        for _ in ctx.loop("markets", self.markets):
            beliefs, rate = random_market()
            where = crossing(beliefs)
            end = 12 * max(*(belief.level for belief in beliefs), where or 0.0)
            grid = grid_price(beliefs, rate, end, MARKET_INTERVALS)
            on_grid = bool((bubble_on(grid, beliefs, rate)[: MARKET_INTERVALS // 2] > VISIBLE).any())
            found["tried"] += 1
            found["agreeing"] += on_grid == has_bubble(beliefs)
            if has_bubble(beliefs):
                found["with_bubble"] += 1
                found["monotone"] += grows_with_volatility(beliefs, rate, [0.0, where / 2, where, 2 * where])
            ctx.log(agreeing=found["agreeing"] / found["tried"])
        ctx.track(found=None)
        shares = {"markets_agreeing": found["agreeing"] / found["tried"]}
        if found["with_bubble"]:
            shares["markets_monotone"] = found["monotone"] / found["with_bubble"]
        return shares

    def _write_curves(
        self, ctx: Context, beliefs: tuple[Belief, Belief], closed: EquilibriumPrice | None, grid: GridPrice
    ) -> None:
        lines = ["asset,price,slope,curvature,price on the grid,intrinsic value 1,intrinsic value 2"]
        for i in numpy.flatnonzero(grid.x <= self.end / 2)[:: max(1, self.intervals // 240)]:
            x = float(grid.x[i])
            exact = closed.at(x) if closed else (math.nan,) * 3
            row = (x, *exact, float(grid.price[i]), *(belief.intrinsic_value(x, self.rate) for belief in beliefs))
            lines.append(",".join(f"{value:.12g}" for value in row))
        write_atomic(ctx.artifact("curves.csv"), "\n".join(lines) + "\n")


def exact_policy(beliefs: tuple[Belief, Belief]) -> Policy:
    """The larger drift, of beliefs with one volatility."""
    price = EquilibriumPrice(beliefs, rate=1.0)
    first = 0 if price.below is beliefs[0] else 1
    return Policy(first, (crossing(beliefs),) if has_bubble(beliefs) else ())


def bubble_on(grid: GridPrice, beliefs: Sequence[Belief], rate: float) -> numpy.ndarray:
    """(points,): the price on the grid less the larger intrinsic value."""
    return grid.price - numpy.maximum(*(belief.intrinsic_value(grid.x, rate) for belief in beliefs))


def advance(
    asset: Tensor,
    paid: Tensor,
    beliefs: tuple[Belief, Belief],
    rules: Sequence[Policy],
    rate: float,
    start: float,
    steps: int,
) -> None:
    """One unit of time of Euler's scheme with full truncation, in place; the rows share torch's noise.

    Args:
        asset: (rules, paths); may pass below 0, where it counts as 0.
        paid: (rules, paths), dividends discounted to time 0, each step's as the mean of its two ends.
        rules: whose belief moves a row.
        start: the time now.
    """
    dt = 1.0 / steps
    for step in range(steps):
        noise = torch.randn(asset.shape[1], dtype=asset.dtype).mul_(math.sqrt(dt))
        weight = dt / 2 * math.exp(-rate * (start + (step + 0.5) * dt))
        for now, total, rule in zip(asset, paid, rules, strict=True):
            x = now.clamp_min(0)
            total.add_(x, alpha=weight)
            first, second = beliefs[rule.first], beliefs[1 - rule.first]
            speed, pull, volatility = first.speed, first.speed * first.level, first.volatility
            if rule.switches:
                odd = x > rule.switches[0]
                for switch in rule.switches[1:]:
                    odd ^= x > switch
                odd = odd.to(x.dtype)
                speed = speed + (second.speed - speed) * odd
                pull = pull + (second.speed * second.level - pull) * odd
                if second.volatility != volatility:
                    volatility = volatility + (second.volatility - volatility) * odd
            now.add_((pull - speed * x).mul_(dt)).add_(x.sqrt_().mul_(noise).mul_(volatility))
            total.add_(now.clamp_min(0), alpha=weight)


def random_market() -> tuple[tuple[Belief, Belief], float]:
    """Two beliefs and a rate from torch's generator: speeds 0.2 to 4 and levels 0.3 to 3, the asset above 0."""
    draws = torch.rand(6, dtype=torch.float64).tolist()
    speeds = [0.2 * 20**draw for draw in draws[:2]]
    levels = [0.3 + 2.7 * draw for draw in draws[2:4]]
    most = math.sqrt(2 * min(speed * level for speed, level in zip(speeds, levels, strict=True)))
    volatility = most * (0.2 + 0.7 * draws[4])
    first, second = (Belief(speed, level, volatility) for speed, level in zip(speeds, levels, strict=True))
    return (first, second), 0.02 + 0.18 * draws[5]


def grows_with_volatility(beliefs: Sequence[Belief], rate: float, points: Sequence[float]) -> bool:
    """Whether the bubble is larger at every point the larger the volatility is, up to that of ``beliefs``."""
    sizes = []
    for share in (0.6, 0.8, 1.0):
        scaled = tuple(Belief(belief.speed, belief.level, share * belief.volatility) for belief in beliefs)
        price = EquilibriumPrice(scaled, rate)
        sizes.append([price.bubble(x) for x in points])
    return all(a < b < c for a, b, c in zip(*sizes, strict=True))
