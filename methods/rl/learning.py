"""The two loops of these methods: learning while acting in an environment, and from logged transitions alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy
from pydantic import Field
from torch import Tensor

from runner.errors import UserError
from runner.methods.rl.interaction import Curve, Policy, actions_of, final_returns
from runner.methods.rl.replay import Batch, Replay

if TYPE_CHECKING:
    from runner.context import Context
    from runner.datasets.environments import EnvironmentData, Environments

Size = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Discount = Annotated[float, Field(ge=0, le=1)]
Learn = Callable[[Batch, int], dict[str, Tensor | float]]  # a batch, the number of the update -> what is logged


@dataclass(kw_only=True)
class Measuring:
    """When and on how many episodes the deterministic policy is measured."""

    evaluate_every: Size = 10_000  # steps of the environment; offline: updates
    evaluation_episodes: Size = 10
    test_episodes: Size = 20  # after training

    def curve(self, ctx: Context, data: EnvironmentData, policy: Policy) -> Curve:
        return Curve(ctx, data, policy, every=self.evaluate_every, episodes=self.evaluation_episodes)


@dataclass(kw_only=True)
class OnlineLearning(Measuring):
    """Acting and learning by turns."""

    steps: Size = 1_000_000  # of the environment
    random_steps: Annotated[int, Field(ge=0)] = 10_000  # at the start: uniform actions, nothing is learnt
    updates: Size = 1  # per step of the environment
    batch_size: Size = 256
    capacity: Size = 1_000_000  # transitions of the replay

    def learn_online(
        self, ctx: Context, environments: Environments, policy: Policy, learn: Learn, **tracked: Any
    ) -> dict[str, float]:
        """Acts by ``policy``, stores what happens and learns from uniform batches of it.

        ``tracked`` is all that ``learn`` changes. Returns mean_return over ``test_episodes``, normalised_return where
        references are known, and area: the mean of the returns measured on the way.
        """
        copies = environments.copies
        check_capacity(self.capacity, copies)
        replay = Replay(min(self.capacity, self.steps + copies), environments.sizes, ctx.device)
        curve = self.curve(ctx, ctx.data, policy)
        ctx.track(replay=replay, environments=environments, curve=curve, **tracked)
        for step in ctx.loop("train", -(-self.steps // copies)):
            done = step * copies
            learning = done >= self.random_steps
            actions = actions_of(policy, environments, ctx.device) if learning else environments.random_actions()
            replay.add(*environments.step(actions)[:5])
            if learning:
                for number in range(self.updates * copies):
                    shown = learn(replay.sample(self.batch_size), (done - self.random_steps) * self.updates + number)
                ctx.log(**shown)
            if environments.returns:
                ctx.log(training_return=numpy.mean(environments.returns))
            curve.after(done + copies, done)
        ctx.track(replay=None, environments=None)
        return {**final_returns(ctx, ctx.data, policy, self.test_episodes), **curve.summary()}


def check_capacity(capacity: int, copies: int) -> None:
    """Raises UserError: a step of all copies of the environment does not fit into the replay."""
    if capacity < copies:
        raise UserError(
            f"method.capacity={capacity} holds less than one step of dataset.copies={copies} environments: "
            f"set it to {copies} or more"
        )


@dataclass(kw_only=True)
class OfflineLearning(Measuring):
    """Learning from logged transitions; the environment only measures."""

    steps: Size = 1_000_000  # updates
    batch_size: Size = 256

    def learn_offline(
        self, ctx: Context, data: EnvironmentData, replay: Replay, policy: Policy, learn: Learn, **tracked: Any
    ) -> dict[str, float]:
        """``steps`` updates on uniform batches of ``replay``; arguments and result as of ``learn_online``."""
        curve = self.curve(ctx, data, policy)
        ctx.track(curve=curve, **tracked)
        for step in ctx.loop("train", self.steps):
            ctx.log(**learn(replay.sample(self.batch_size), step))
            curve.after(step + 1, step)
        return {**final_returns(ctx, data, policy, self.test_episodes), **curve.summary()}
