"""A policy in its environment: what it does, and its return."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy
import torch
from torch import Tensor

from runner.randomness import stream_seed
from runner.storage import replace_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from runner.context import Context
    from runner.datasets.environments import EnvironmentData, Environments


class Policy(Protocol):
    """Actions (B, da) in [-1, 1] for observations (B, ds), without gradients: drawn to explore, or its best ones."""

    def __call__(self, observations: Tensor, *, explore: bool) -> Tensor: ...


def training_environments(ctx: Context, data: EnvironmentData) -> Environments:
    """The copies that a run learns from, by the seed of what is drawn in loops over numbers."""
    return data.environments(stream_seed(ctx.durable.seeds.episodes, "environments"))


def actions_of(
    policy: Policy, environments: Environments, device: torch.device | str, *, explore: bool = True
) -> numpy.ndarray:
    """What a policy does now, (copies, da)."""
    return policy(torch.from_numpy(environments.observations).to(device), explore=explore).cpu().numpy()


def episode_returns(data: EnvironmentData, policy: Policy, episodes: int, seed: int) -> Tensor:
    """Returns (episodes,), undiscounted and unscaled, of as many episodes played side by side, each from a seed.

    The same seed gives the same starts, so that policies and moments are compared on the same episodes.
    """
    environments = data.environments(stream_seed(seed, "evaluation"), episodes)
    found: dict[int, float] = {}
    while len(found) < episodes:
        steps = environments.step(actions_of(policy, environments, data.device, explore=False))
        ended = numpy.flatnonzero((steps.terminals > 0) | steps.truncated)
        for copy, value in zip(ended.tolist(), environments.returns, strict=True):
            found.setdefault(copy, value)
    return torch.tensor([found[copy] for copy in range(episodes)], dtype=torch.float64)


class Curve:
    """Mean returns measured on the way; state to track."""

    def __init__(self, ctx: Context, data: EnvironmentData, policy: Policy, *, every: int, episodes: int) -> None:
        self.ctx, self.data, self.policy = ctx, data, policy
        self.every, self.episodes = every, episodes
        self.points: list[tuple[int, float]] = []  # (steps, mean return)

    def after(self, steps: int, before: int) -> None:
        """Measures and logs if a multiple of ``every`` lies in (before, steps]."""
        if steps // self.every > before // self.every:
            self.measure(steps)

    def measure(self, steps: int) -> float:
        """The mean return now, over the run's fixed evaluation episodes; kept and logged."""
        value = float(episode_returns(self.data, self.policy, self.episodes, self.ctx.seed).mean())
        self.points.append((steps, value))
        self.ctx.log(mean_return=value)
        return value

    def summary(self) -> dict[str, float]:
        """``area``, the mean of the points; nothing where nothing was measured."""
        return {"area": sum(value for _, value in self.points) / len(self.points)} if self.points else {}

    def drop(self, start: float, steps: int) -> float:
        """How far the return fell below ``start`` within the first ``steps``, at most; 0 where it never did."""
        return max([0.0, *(start - value for when, value in self.points if when <= steps)])

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points = [tuple(point) for point in state["points"]]


def final_returns(ctx: Context, data: EnvironmentData, policy: Policy, episodes: int) -> dict[str, float]:
    """``mean_return`` over episodes of their own seeds, ``normalised_return`` where the data set has its references;
    each episode's return is written to artifacts/test_scores.npz (index, label 0, score)."""
    seed = stream_seed(ctx.seed, "test")
    returns = ctx.once("test episodes", lambda: episode_returns(data, policy, episodes, seed))
    arrays = {
        "index": numpy.arange(episodes),
        "label": numpy.zeros(episodes, dtype="int64"),
        "score": returns.numpy().astype("float32"),
    }

    def write(path: Path) -> None:
        with path.open("wb") as file:
            numpy.savez(file, **arrays)

    replace_atomic(ctx.artifact("test_scores.npz"), write)
    metrics = {"mean_return": float(returns.mean())}
    normalised = data.settings.normalised(metrics["mean_return"])
    if normalised is not None:
        metrics["normalised_return"] = normalised
    ctx.log(**metrics)
    return metrics
