"""The ratio of two densities of (s, a) from samples of both, and the priorities that follow it (arXiv:2107.00591)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor, nn

from runner.methods.rl.replay import Batch, Replay, SumTree

if TYPE_CHECKING:
    from runner.context import Context

TINY = 1e-10
PRIORITY_RANGE = (1e-3, 1e3)
LAST_WEIGHT = 3e-3  # at most, at the start


class DensityRatio(nn.Module):
    """w(s, a) = relu(network(s, a)) >= 0, which learns d_online / d_offline and starts near 1 everywhere: the last
    bias is 1, and torch's last weights are scaled to [-0.003, 0.003]."""

    def __init__(self, ctx: Context, sizes: tuple[int, int]) -> None:
        super().__init__()
        self.network = ctx.network("ratio", in_features=sum(sizes), out_features=1)
        last = [part for part in self.network.modules() if isinstance(part, nn.Linear)][-1]
        with torch.no_grad():
            last.weight *= LAST_WEIGHT * last.in_features**0.5  # of torch's own range of 1 / sqrt(in)
        nn.init.ones_(last.bias)

    def forward(self, batch: Batch) -> Tensor:
        """(B,)."""
        return torch.relu(self.network(torch.cat([batch.observations, batch.actions], -1))).squeeze(-1)


def ratio_loss(offline: Tensor, online: Tensor) -> Tensor:
    """mean_off[-log(2 / (w + 1))] - mean_on[log(2 w / (w + 1))] of w (B,) on both, least at w = d_on / d_off
    (the variational bound of the Jensen-Shannon divergence)."""
    return -(2 / (offline + 1) + TINY).log().mean() - (2 * online / (online + 1) + TINY).log().mean()


def priorities_of(ratios: Tensor, offline: Tensor, temperature: float) -> Tensor:
    """clip(w^(1/T) / mean_off w^(1/T), 1e-3, 1e3) of w (B,) and of w on an offline batch."""
    power = 1 / temperature
    return (ratios.pow(power) / (offline.pow(power).mean() + TINY)).clamp(*PRIORITY_RANGE)


def first_priority(offline: int, fraction: float, online: int) -> float:
    """p0 = M f / ((1 - f) n): of ``online`` = n new transitions beside M of priority 1, a share f is drawn."""
    return offline * fraction / ((1 - fraction) * online)


class Priorities:
    """A priority for each place of a replay whose offline part is kept: 1 there at first, and for new transitions
    ``first``, later the largest seen."""

    def __init__(self, replay: Replay, first: float) -> None:
        self.tree = SumTree(replay.capacity)
        self.tree.set(numpy.arange(replay.kept), 1.0)
        self.first = self.largest = first

    def add(self, places: numpy.ndarray) -> None:
        """Of new transitions."""
        self.tree.set(places, self.largest)

    def sample(self, count: int) -> numpy.ndarray:
        """Places (B,), stratified by priority; from NumPy's global generator."""
        return self.tree.sample(numpy.random.random(count))

    def set(self, places: numpy.ndarray, priorities: numpy.ndarray) -> None:
        """Of places that were drawn."""
        self.tree.set(places, priorities)
        self.largest = max(self.largest, float(priorities.max()))

    def state_dict(self) -> dict[str, Any]:
        return {"tree": self.tree.state_dict(), "largest": self.largest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tree.load_state_dict(state["tree"])
        self.largest = state["largest"]
