"""AWAC: an actor that imitates logged actions by their advantage under critics of its own policy.

Nair, Gupta, Dalal and Levine, "AWAC: Accelerating Online Reinforcement Learning with Offline Datasets",
arXiv:2006.09359. Here its offline stage. Deviations: see the class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from runner.methods.rl.agents import save_agent, soft_actor_critic
from runner.methods.rl.learning import Discount, OfflineLearning, Share
from runner.methods.rl.logged import logged_transitions
from runner.methods.rl.soft_actor_critic import Rates, SoftActorCritic, critic_loss, soft_targets, update
from runner.methods.rl.weighted_regression import advantage_weights, weighted_likelihood_loss

if TYPE_CHECKING:
    from runner.context import Context
    from runner.methods.rl.replay import Batch


@dataclass(kw_only=True)
class AWAC(OfflineLearning):
    """Advantage-weighted actor-critic on logged transitions."""

    temperature: Annotated[float, Field(gt=0)] = 1.0  # lambda, which divides the advantages
    weight_cap: Annotated[float, Field(gt=0)] = 100.0
    rates: Rates = field(default_factory=Rates)  # Adam's learning rates; there is no temperature of entropy
    discount: Discount = 0.99
    target_share: Share = 0.005  # tau: of the critics in their slow copies, each update

    paper: ClassVar[str] = "arXiv:2006.09359"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "Weighting logged actions by their advantage learns offline, and goes on learning online."
    data: ClassVar[tuple[str, ...]] = ("transitions",)
    model: ClassVar[tuple[str, ...]] = ("network of vectors",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Nair, Gupta, Dalal, Levine. AWAC: Accelerating Online Reinforcement Learning with Offline Datasets. "
        "arXiv:2006.09359, 2020."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "the offline stage alone; going on online is what method off2on compares",
        "a tanh-Gaussian policy, as the other methods' here",
        "the losses of actor and critics are taken before one of them moves its weights",
        "of a logged transition at a time limit the last observation is known and used, where the file has it",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns what ``learn_offline`` measures."""
        logged = logged_transitions(ctx)
        agent = soft_actor_critic(ctx, logged.sizes, self.discount, 0.0)
        optimizer = agent.optimizer(self.rates)

        def learn(batch: Batch, number: int) -> dict[str, Tensor]:
            critic, policy = self.losses(agent, batch)
            update(agent, optimizer, critic + policy, self.target_share)
            return {"loss": critic.detach(), "policy_loss": policy.detach()}

        replay, policy = logged.replay(ctx.device), agent.policy.act
        state = {"agent": agent, "optimizer": optimizer}
        metrics = self.learn_offline(ctx, logged.environment, replay, policy, learn, **state)
        save_agent(ctx, agent)
        return metrics

    def losses(self, agent: SoftActorCritic, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of the critics, y = r + gamma (1 - d) min Q'(s', a'~pi); of the policy, weighted by A = min Q(s, a) -
        min Q(s, a~pi) without gradient."""
        values = agent.critics(batch.observations, batch.actions)
        with torch.no_grad():
            next_actions, _ = agent.policy(batch.next_observations)
            next_values = agent.critics.of_target(batch.next_observations, next_actions)
            targets = soft_targets(batch.rewards, batch.terminals, next_values, 0.0, 0.0, self.discount)
            drawn, _ = agent.policy(batch.observations)
            baseline = agent.critics(batch.observations, drawn).amin(0)[0]
            weights = advantage_weights(values.amin(0)[0] - baseline, 1 / self.temperature, self.weight_cap)
        log_density = agent.policy.log_density(batch.observations, batch.actions)
        return critic_loss(values, targets), weighted_likelihood_loss(log_density, weights)
