"""Transitions in memory: a ring of rows, drawn uniformly or by a sum tree of priorities."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor


class Batch(NamedTuple):
    """B transitions. A time limit is no terminal: its last observation still has a value."""

    observations: Tensor  # (B, ds)
    actions: Tensor  # (B, da), each in [-1, 1]
    rewards: Tensor  # (B,)
    terminals: Tensor  # (B,) 1 where the episode ended by itself, else 0
    next_observations: Tensor  # (B, ds)


class Replay:
    """A ring of at most ``capacity`` transitions, one float32 row each, so that a batch is one gather.

    Args:
        sizes: of an observation and of an action.
        device: where batches are wanted; the rows lie in the CPU's memory.
    """

    def __init__(self, capacity: int, sizes: tuple[int, int], device: torch.device | str = "cpu") -> None:
        observation, action = sizes
        self.capacity, self.device = capacity, torch.device(device)
        self.widths = [observation, action, 1, 1, observation]
        self.rows = torch.empty(capacity, sum(self.widths))
        self._columns = numpy.split(self.rows.numpy(), numpy.cumsum(self.widths)[:-1], axis=1)  # views
        self.size = self.next = self.kept = 0

    def keep(self) -> None:
        """What is there now stays for ever and is not part of the state that is saved; the ring begins behind it."""
        self.kept, self.next = self.size, 0

    def __len__(self) -> int:
        return self.size

    def add(
        self,
        observations: numpy.ndarray,
        actions: numpy.ndarray,
        rewards: numpy.ndarray,
        terminals: numpy.ndarray,
        next_observations: numpy.ndarray,
    ) -> numpy.ndarray:
        """Stores transitions, shapes as in ``Batch``; the oldest make room. Returns their places."""
        count = len(rewards)
        ring = self.capacity - self.kept
        if count > ring:
            raise ValueError(f"{count} transitions do not fit into a replay of {ring}")
        places = self.kept + (numpy.arange(count) + self.next) % ring
        parts = (observations, actions, rewards[:, None], terminals[:, None], next_observations)
        for column, part in zip(self._columns, parts, strict=True):
            column[places] = part
        self.next = (self.next + count) % ring
        self.size = min(self.size + count, self.capacity)
        return places

    def at(self, places: Tensor) -> Batch:
        """The transitions at ``places`` (B,), on the device."""
        rows = self.rows.index_select(0, places).to(self.device, non_blocking=True)
        observations, actions, rewards, terminals, following = rows.split(self.widths, dim=1)
        return Batch(observations, actions, rewards.squeeze(1), terminals.squeeze(1), following)

    def sample(self, count: int) -> Batch:
        """``count`` transitions, uniformly with replacement."""
        return self.at(torch.randint(self.size, (count,)))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows[self.kept : self.size].clone(), "next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.size, self.next = self.kept + len(state["rows"]), state["next"]
        self.rows[self.kept : self.size] = state["rows"]


class SumTree:
    """Priorities of ``capacity`` places in a binary tree of sums: setting and drawing cost its depth.

    ``sums[1]`` is the total; the children of node n are 2n and 2n+1; the leaves come last, in float64.
    """

    def __init__(self, capacity: int) -> None:
        self.depth = max(capacity - 1, 1).bit_length()
        self.leaves = 1 << self.depth
        self.sums = numpy.zeros(2 * self.leaves)

    @property
    def total(self) -> float:
        return float(self.sums[1])

    def set(self, places: numpy.ndarray, priorities: numpy.ndarray | float) -> None:
        """Of a place given twice the last priority holds."""
        nodes = numpy.asarray(places) + self.leaves
        self.sums[nodes] = priorities
        for _ in range(self.depth):
            nodes = numpy.unique(nodes >> 1)
            self.sums[nodes] = self.sums[2 * nodes] + self.sums[2 * nodes + 1]

    def sample(self, uniform: numpy.ndarray) -> numpy.ndarray:
        """Places (B,), stratified: the k-th from the k-th of B equal parts of the total, at uniform (B,) in [0, 1).

        Never a place of priority 0, whatever rounding does on the way down.
        """
        rest = (numpy.arange(len(uniform)) + uniform) / len(uniform) * self.total
        nodes = numpy.ones(len(uniform), dtype=numpy.int64)
        for _ in range(self.depth):
            nodes *= 2
            left, right = self.sums[nodes], self.sums[nodes + 1]
            go_right = ((rest >= left) & (right > 0)) | (left <= 0)
            rest = numpy.where(go_right, rest - left, rest)
            nodes += go_right
        return nodes - self.leaves

    def state_dict(self) -> dict[str, Any]:
        return {"priorities": self.sums[self.leaves :].copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums[self.leaves :] = state["priorities"]
        for level in reversed(range(self.depth)):
            nodes = numpy.arange(1 << level, 2 << level)
            self.sums[nodes] = self.sums[2 * nodes] + self.sums[2 * nodes + 1]
