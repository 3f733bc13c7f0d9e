"""CQL: a soft actor-critic on logged transitions, whose critics are pushed down where the data says nothing.

Kumar, Zhou, Tucker and Levine, "Conservative Q-Learning for Offline Reinforcement Learning", NeurIPS 2020,
arXiv:2006.04779 (CQL(H), on SAC; importance sampled log-sum-exp of the appendix). Deviations: see the class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from runner.methods.rl.agents import save_agent, soft_actor_critic
from runner.methods.rl.learning import Discount, OfflineLearning, Share, Size
from runner.methods.rl.logged import logged_transitions
from runner.methods.rl.soft_actor_critic import Rates, SoftActorCritic, update

if TYPE_CHECKING:
    from runner.context import Context
    from runner.methods.rl.replay import Batch


@dataclass(kw_only=True)
class CQL(OfflineLearning):
    """Conservative Q-learning: SAC with a term that lowers the values of actions that the data does not hold."""

    weight: Annotated[float, Field(ge=0)] = 5.0  # alpha_c of the conservative term; 0: plain SAC on the data
    samples: Size = 10  # actions of each kind (uniform, of pi(.|s), of pi(.|s')) in the log-sum-exp
    threshold: float | None = None  # of the term, by which a Lagrange multiplier adapts its weight; null: it is fixed
    entropy_in_target: bool = False
    cloning_steps: Annotated[int, Field(ge=0)] = 0  # at the start the actor learns the data's actions
    rates: Rates = field(default_factory=lambda: Rates(policy=1e-4))  # Adam's learning rates
    discount: Discount = 0.99
    target_share: Share = 0.005  # tau: of the critics in their slow copies, each update
    target_entropy: float | None = None  # nats; null: minus the number of action dimensions

    paper: ClassVar[str] = "arXiv:2006.04779"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "Critics that bound the policy's true value from below make offline learning safe."
    data: ClassVar[tuple[str, ...]] = ("transitions",)
    model: ClassVar[tuple[str, ...]] = ("network of vectors",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Kumar, Zhou, Tucker, Levine. Conservative Q-Learning for Offline Reinforcement Learning. NeurIPS 2020."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "the losses of actor, critics and temperature are all taken before one of them moves its weights",
        "networks start in torch's initialisation (the authors' code: small last layers)",
        "of a logged transition at a time limit the last observation is known and used, where the file has it",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns what ``learn_offline`` measures."""
        logged = logged_transitions(ctx)
        agent = soft_actor_critic(ctx, logged.sizes, self.discount, self.target_entropy)
        optimizer = agent.optimizer(self.rates)
        multiplier = nn.Parameter(torch.zeros((), device=ctx.device))  # its logarithm
        lagrange = torch.optim.Adam([multiplier], lr=self.rates.critic)

        def learn(batch: Batch, number: int) -> dict[str, Tensor]:
            losses = self.losses(agent, batch, cloning=number < self.cloning_steps)
            gaps = losses["gaps"]
            weight = self.weight
            if self.threshold is not None:
                excess = (self.weight * gaps.detach() - self.threshold).mean()
                weight = self.weight * step_multiplier(multiplier, lagrange, excess)
            loss = losses["policy"] + losses["critic"] + losses["temperature"] + weight * gaps.sum()
            update(agent, optimizer, loss, self.target_share)
            return {"loss": losses["critic"].detach(), "conservative": gaps.detach().mean()}

        replay = logged.replay(ctx.device)
        state = {"agent": agent, "optimizer": optimizer, "multiplier": multiplier, "lagrange": lagrange}
        metrics = self.learn_offline(ctx, logged.environment, replay, agent.policy.act, learn, **state)
        save_agent(ctx, agent)
        return metrics

    def losses(self, agent: SoftActorCritic, batch: Batch, *, cloning: bool = False) -> dict[str, Tensor]:
        """policy, critic and temperature as SAC's, and gaps (2, 1), the conservative term of each critic."""
        losses = agent.losses(batch, entropy_in_target=self.entropy_in_target)
        policy = losses.policy
        if cloning:
            alpha = agent.log_alpha.detach().exp()
            policy = (alpha * losses.log_density - agent.policy.log_density(batch.observations, batch.actions)).mean()
        gaps = conservative_gaps(agent, batch, self.samples)
        return {"policy": policy, "critic": losses.critic, "temperature": losses.temperature, "gaps": gaps}


def step_multiplier(logarithm: nn.Parameter, optimizer: torch.optim.Optimizer, excess: Tensor) -> Tensor:
    """The Lagrange multiplier, at most 1e6, as it was before the step that raises it where ``excess`` is positive."""
    multiplier = logarithm.exp().clamp(max=1e6)
    optimizer.zero_grad()
    (-multiplier * excess).backward()
    optimizer.step()
    return multiplier.detach()


def conservative_gaps(agent: SoftActorCritic, batch: Batch, samples: int) -> Tensor:
    """mean_s logsumexp - mean Q(s, a_data) of each critic, (2, N), the paper's term before its weight.

    The log-sum-exp is over the values at s, each less the log-density of its draw, of ``samples`` uniform actions, as
    many of pi(.|s), and as many of pi(.|s'). The draws carry no gradient.
    """
    count, size = batch.actions.shape
    with torch.no_grad():
        uniform = torch.rand(samples, count, size, device=batch.actions.device) * 2 - 1
        here, density_here = agent.policy.several(batch.observations, samples)
        there, density_there = agent.policy.several(batch.next_observations, samples)
        flat = torch.full_like(density_here, size * math.log(0.5))
        densities = torch.cat([flat, density_here, density_there])  # (3 samples, B)
        actions = torch.cat([uniform, here, there, batch.actions[None]])
    observations = batch.observations.expand(len(actions), *batch.observations.shape)
    values = agent.critics(observations.flatten(0, 1), actions.flatten(0, 1)).unflatten(-1, (len(actions), count))
    drawn, of_data = values[:, :, :-1] - densities, values[:, :, -1]
    return drawn.logsumexp(2).mean(-1) - of_data.mean(-1)
