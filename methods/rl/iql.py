"""IQL: values of the best actions that the data holds, by expectile regression; no action outside is ever asked for.

Kostrikov, Nair and Levine, "Offline Reinforcement Learning with Implicit Q-Learning", ICLR 2022, arXiv:2110.06169.
Deviations: see the class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from runner.methods.rl.agents import critics, networks, save_agent
from runner.methods.rl.learning import Discount, OfflineLearning, Share
from runner.methods.rl.logged import logged_transitions
from runner.methods.rl.networks import HALF_LOG_TWO_PI, Ensemble
from runner.methods.rl.soft_actor_critic import Rate, critic_loss
from runner.methods.rl.weighted_regression import advantage_weights, expectile_loss, weighted_likelihood_loss

if TYPE_CHECKING:
    from runner.context import Context
    from runner.datasets.transitions import Transitions
    from runner.methods.rl.replay import Batch

LOG_STD_RANGE = (-5.0, 2.0)


@dataclass(kw_only=True)
class IQL(OfflineLearning):
    """Implicit Q-learning: expectile values, and an actor that imitates logged actions by their advantage."""

    expectile: Annotated[float, Field(gt=0, lt=1)] = 0.7  # tau of the values; 0.9 for AntMaze
    temperature: Annotated[float, Field(ge=0)] = 3.0  # beta, which multiplies the advantages; 10 for AntMaze
    weight_cap: Annotated[float, Field(gt=0)] = 100.0
    normalise_returns: bool = True  # rewards times 1000 / (largest - smallest return of the data), as for locomotion
    rate: Rate = 3e-4  # of Adam; the actor's falls to 0 by a cosine
    discount: Discount = 0.99
    target_share: Share = 0.005  # tau: of the critics in their slow copies, each update

    paper: ClassVar[str] = "arXiv:2110.06169"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "Policy improvement needs no values of actions outside the data: an expectile stands for it."
    data: ClassVar[tuple[str, ...]] = ("transitions",)
    model: ClassVar[tuple[str, ...]] = ("network of vectors",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Kostrikov, Nair, Levine. Offline Reinforcement Learning with Implicit Q-Learning. ICLR 2022."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "no dropout in the actor (the paper has it on Adroit's tasks)",
        "networks start in torch's initialisation (the authors' code: orthogonal)",
        "of a logged transition at a time limit the last observation is known and used, where the file has it",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns what ``learn_offline`` measures."""
        logged = logged_transitions(ctx)
        replay = logged.replay(ctx.device)
        scale = return_scale(logged.transitions) if self.normalise_returns else 1.0
        agent = ImplicitAgent(ctx, logged.sizes).to(ctx.device)
        value_optimizer = torch.optim.Adam(agent.value.parameters(), lr=self.rate, fused=True)
        policy_optimizer = torch.optim.Adam(agent.policy.parameters(), lr=self.rate, fused=True)
        critic_optimizer = torch.optim.Adam(agent.critics.online.parameters(), lr=self.rate, fused=True)

        def learn(batch: Batch, number: int) -> dict[str, Tensor]:
            policy_optimizer.param_groups[0]["lr"] = self.rate * (1 + math.cos(math.pi * number / self.steps)) / 2
            optimizers = (value_optimizer, policy_optimizer, critic_optimizer)
            return self.update(agent, optimizers, batch._replace(rewards=batch.rewards * scale))

        state = {
            "agent": agent,
            "value_optimizer": value_optimizer,
            "policy_optimizer": policy_optimizer,
            "critic_optimizer": critic_optimizer,
        }
        metrics = self.learn_offline(ctx, logged.environment, replay, agent.policy.act, learn, **state)
        save_agent(ctx, agent)
        return metrics

    def update(
        self, agent: ImplicitAgent, optimizers: Sequence[torch.optim.Optimizer], batch: Batch
    ) -> dict[str, Tensor]:
        """One step of the values, then of the policy and of the critics, which both see the values' new weights (as
        the authors' code does), then of the slow copies. ``optimizers`` in that order; returns the losses."""
        of_value, of_policy, of_critics = optimizers
        with torch.no_grad():
            values_of_data = agent.critics.of_target(batch.observations, batch.actions).amin(0)[0]
        value = expectile_loss(values_of_data - agent.values(batch.observations), self.expectile)
        _step(of_value, value)
        with torch.no_grad():
            advantages = values_of_data - agent.values(batch.observations)
            targets = batch.rewards + self.discount * (1 - batch.terminals) * agent.values(batch.next_observations)
        weights = advantage_weights(advantages, self.temperature, self.weight_cap)
        log_density = agent.policy.log_density(batch.observations, batch.actions)
        policy = weighted_likelihood_loss(log_density, weights)
        _step(of_policy, policy)
        critic = critic_loss(agent.critics(batch.observations, batch.actions), targets)
        _step(of_critics, critic)
        agent.critics.follow(self.target_share)
        return {"loss": critic.detach(), "value_loss": value.detach(), "policy_loss": policy.detach()}


def return_scale(transitions: Transitions) -> float:
    """1000 / (largest - smallest return of an episode); 1 where all are equal."""
    returns = transitions.returns()
    spread = float(returns.max() - returns.min())
    return 1000 / spread if spread > 0 else 1.0


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


class BoundedGaussian(nn.Module):
    """a ~ N(tanh(network(s)), std^2), cut to [-1, 1] where it acts; std (da,) does not depend on the state."""

    def __init__(self, networks: Ensemble, size: int) -> None:
        super().__init__()
        self.networks = networks
        self.log_std = nn.Parameter(torch.zeros(size))

    def mean(self, observations: Tensor) -> Tensor:
        """(B, da) in (-1, 1)."""
        return torch.tanh(self.networks(observations)[0])

    def log_density(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(B,) of actions (B, da)."""
        log_std = self.log_std.clamp(*LOG_STD_RANGE)
        scaled = (actions - self.mean(observations)) / log_std.exp()
        return (-0.5 * scaled.square() - log_std - HALF_LOG_TWO_PI).sum(-1)

    def act(self, observations: Tensor, *, explore: bool) -> Tensor:
        """Drawn actions, or their means."""
        with torch.inference_mode():
            mean = self.mean(observations)
            std = self.log_std.clamp(*LOG_STD_RANGE).exp()
            return (mean + std * torch.randn_like(mean)).clamp(-1, 1) if explore else mean


class ImplicitAgent(nn.Module):
    """Actor, state values V(s) and twin critics."""

    def __init__(self, ctx: Context, sizes: tuple[int, int]) -> None:
        super().__init__()
        self.policy = BoundedGaussian(Ensemble(networks(ctx, "actor", 1, *sizes)), sizes[1])
        self.value = Ensemble(networks(ctx, "value", 1, sizes[0], 1))
        self.critics = critics(ctx, sizes)

    def values(self, observations: Tensor) -> Tensor:
        """V(s), (B,)."""
        return self.value(observations)[0, :, 0]
