"""Samplers of diffusion models: what a network's noise estimates are turned into, as pure functions.

Liu, Ren, Lin and Zhao 2022, arXiv:2202.09778: a step of a pseudo numerical method is a *transfer*, the exact move along
a constant noise, applied to a combination of noise estimates (section 3). Beside it are its baselines: DDIM (Song et
al., arXiv:2010.02502, eq. 12 at eta 0), a classical method of the fourth order (FON), the probability flow under an
adaptive solver (Song et al., arXiv:2011.13456), and ancestral sampling (Ho et al., arXiv:2006.11239, algorithm 2).

Times run from T - 1 to 0, and -1 is the clean image. Noise estimates are functions of x (B, ...) and a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Estimate = Callable[[Tensor, float], Tensor]
Table = Literal["prefixed", "released"]


def transfer(x: Tensor, noise: Tensor, alpha: float, alpha_next: float) -> Tensor:
    """x at level ``alpha`` moved along a constant ``noise`` to level ``alpha_next`` (eq. 11); that of DDIM at eta 0.

    Written as a change of x, so that neighbouring levels do not cancel.
    """
    root, root_next = math.sqrt(alpha), math.sqrt(alpha_next)
    of_x = 1 / (root * (root + root_next))
    of_noise = (
        1 / (root * (math.sqrt((1 - alpha_next) * alpha) + math.sqrt((1 - alpha) * alpha_next)))
        if alpha != alpha_next
        else 0.0
    )
    return x + (alpha_next - alpha) * (of_x * x - of_noise * noise)


def levels_of(alpha_bars: Tensor, table: Table) -> list[float]:
    """alpha-bar at t = -1, 0, 1 ...: the table behind the clean image's 1, or as released, one level off: its first
    entry stands for the clean image, and the last time has none."""
    return ([1.0] if table == "prefixed" else []) + alpha_bars.tolist()


def time_grid(total: int, steps: int) -> list[tuple[int, int]]:
    """(t, next t) from the noisiest to (0, -1), T // steps apart: more than ``steps`` where that does not divide T."""
    times = range(0, total, total // steps)
    return list(zip(reversed(times), reversed([-1, *times[:-1]]), strict=True))


class Flow:
    """The noise estimates along a path, and how many were asked for.

    Args:
        levels: as ``levels_of`` gives them. A time between two entries is cut to the one towards 0 (as released).
    """

    def __init__(self, estimate: Estimate, levels: Sequence[float]) -> None:
        self.estimate, self.levels, self.evaluations = estimate, levels, 0

    def noise(self, x: Tensor, time: float) -> Tensor:
        self.evaluations += 1
        return self.estimate(x, time)

    def move(self, x: Tensor, noise: Tensor, time: float, until: float) -> Tensor:
        return transfer(x, noise, self.levels[int(time) + 1], self.levels[int(until) + 1])

    def change(self, x: Tensor, noise: Tensor, time: float) -> Tensor:
        """What a step by one unit of time towards the data changes: a derivative."""
        return self.move(x, noise, time, time - 1) - x


# ---- steps: from x at t to x at ``until``; ``past`` holds what earlier steps of the same batch found -----------------

Step = Callable[[Flow, Tensor, int, int, list[Tensor]], Tensor]


def ddim(flow: Flow, x: Tensor, t: int, until: int, past: list[Tensor]) -> Tensor:
    return flow.move(x, flow.noise(x, t), t, until)


def s_pndm(flow: Flow, x: Tensor, t: int, until: int, past: list[Tensor]) -> Tensor:
    """Second order: an improved Euler step, then two-step Adams-Bashforth (appendix A)."""
    noise = flow.noise(x, t)
    past.append(noise)
    if len(past) == 1:
        noise = (noise + flow.noise(flow.move(x, noise, t, until), until)) / 2
    else:
        noise = (3 * past[-1] - past[-2]) / 2
    return flow.move(x, noise, t, until)


def f_pndm(flow: Flow, x: Tensor, t: int, until: int, past: list[Tensor]) -> Tensor:
    """Fourth order: three pseudo Runge-Kutta steps, then four-step Adams-Bashforth (algorithm 2)."""
    noise = flow.noise(x, t)
    past.append(noise)
    noise = runge_kutta_noise(flow, x, noise, t, until) if len(past) <= 3 else adams_bashforth(past)
    return flow.move(x, noise, t, until)


def pseudo_runge_kutta(flow: Flow, x: Tensor, t: int, until: int, past: list[Tensor]) -> Tensor:
    """Fourth order, four estimates a step: the first steps of ``f_pndm`` to the end."""
    return flow.move(x, runge_kutta_noise(flow, x, flow.noise(x, t), t, until), t, until)


def fon(flow: Flow, x: Tensor, t: int, until: int, past: list[Tensor]) -> Tensor:
    """The classical method of fourth order: the combinations of ``f_pndm``, of derivatives, and a straight step.

    As released, in the Runge-Kutta steps the network alone sees the moved points; derivatives are those at x and t.
    """
    length, middle = t - until, (t + until) / 2
    first = flow.change(x, flow.noise(x, t), t)
    past.append(first)
    if len(past) > 3:
        return x + length * adams_bashforth(past)
    second = flow.change(x, flow.noise(x + first * length / 2, middle), t)
    third = flow.change(x, flow.noise(x + second * length / 2, middle), t)
    fourth = flow.change(x, flow.noise(x + third * length, until), t)
    return x + length * (first + 2 * second + 2 * third + fourth) / 6


def runge_kutta_noise(flow: Flow, x: Tensor, first: Tensor, t: int, until: int) -> Tensor:
    """The mean of four estimates (eq. 13): at t, twice in the middle, at ``until``."""
    middle = (t + until) / 2
    second = flow.noise(flow.move(x, first, t, middle), middle)
    third = flow.noise(flow.move(x, second, t, middle), middle)
    fourth = flow.noise(flow.move(x, third, t, until), until)
    return (first + 2 * second + 2 * third + fourth) / 6


def adams_bashforth(past: Sequence[Tensor]) -> Tensor:
    """The four-step combination of the last four, the newest last."""
    return (55 * past[-1] - 59 * past[-2] + 37 * past[-3] - 9 * past[-4]) / 24


@dataclass(frozen=True)
class Sampler:
    """A step, and what it costs: ``estimates`` of each of the first ``steps`` steps, then one (or ever so many)."""

    step: Step
    estimates: int = 1
    steps: int | None = 0  # None: all

    def evaluations(self, steps: int) -> int:
        return steps + (self.estimates - 1) * min(steps, steps if self.steps is None else self.steps)


SAMPLERS = {
    "ddim": Sampler(ddim),
    "s_pndm": Sampler(s_pndm, 2, 1),
    "f_pndm": Sampler(f_pndm, 4, 3),
    "pseudo_runge_kutta": Sampler(pseudo_runge_kutta, 4, None),
    "fon": Sampler(fon, 4, 3),
}


def steps_within(sampler: Sampler, evaluations: int, total: int) -> int | None:
    """The most steps that take at most so many evaluations; None: not even one does."""
    fitting = (
        steps
        for steps in range(min(evaluations, total), 0, -1)
        if sampler.evaluations(len(time_grid(total, steps))) <= evaluations
    )
    return next(fitting, None)


@torch.no_grad()
def sample(sampler: Sampler, flow: Flow, x: Tensor, grid: Sequence[tuple[int, int]]) -> Tensor:
    """Noise x (B, ...) at the grid's first time, taken along it."""
    past: list[Tensor] = []
    for t, until in grid:
        x = sampler.step(flow, x, t, until, past)
        del past[:-4]
    return x


@torch.no_grad()
def probability_flow(flow: Flow, x: Tensor, betas: Tensor, tolerance: float, end: float = 1e-3) -> Tensor:
    """The ordinary differential equation of the continuous diffusion from time 1 to ``end``, by RK45 of SciPy.

    Its noise rate runs from T times the first beta to T times the last, and the network is asked at time (T - 1) t.
    All of x (B, ...) is one system, as released: its error is that of the whole batch.
    """
    from scipy.integrate import solve_ivp

    total, first, last = len(betas), betas[0].item(), betas[-1].item()

    def drift(time: float, state):
        now = torch.from_numpy(state.reshape(x.shape)).to(x)
        rate = total * (first + time * (last - first))
        log_root = -total * (time**2 * (last - first) / 4 + time * first / 2)  # of what is left of the data
        spread = math.sqrt(-math.expm1(2 * log_root))
        change = -rate / 2 * (now - flow.noise(now, time * (total - 1)) / spread)
        return change.double().cpu().numpy().ravel()

    start = x.double().cpu().numpy().ravel()
    solved = solve_ivp(drift, (1.0, end), start, method="RK45", rtol=tolerance, atol=tolerance)
    return torch.from_numpy(solved.y[:, -1].reshape(x.shape)).to(x)


Variance = Literal["posterior", "beta"]


def ancestral_step(
    x: Tensor,
    noise: Tensor,
    fresh: Tensor,
    t: int,
    betas: Sequence[float],
    alpha_bars: Sequence[float],
    variance: Variance,
    clip: bool,
) -> Tensor:
    """x_(t-1) drawn given x_t and its estimated noise, with ``fresh`` normal numbers (Ho et al., eq. 6, 7 and 11).

    Args:
        variance: beta_t, or the posterior's beta_t (1 - abar_(t-1)) / (1 - abar_t); none is added at t = 0.
        clip: the data that the estimate implies are cut to [-1, 1] first.
    """
    beta, level = betas[t], alpha_bars[t]
    before = alpha_bars[t - 1] if t else 1.0
    clean = (x - math.sqrt(1 - level) * noise) / math.sqrt(level)
    if clip:
        clean = clean.clamp(-1, 1)
    of_clean = math.sqrt(before) * beta / (1 - level)
    of_x = math.sqrt(1 - beta) * (1 - before) / (1 - level)
    mean = of_clean * clean + of_x * x
    if t == 0:
        return mean
    return mean + math.sqrt(beta if variance == "beta" else beta * (1 - before) / (1 - level)) * fresh
