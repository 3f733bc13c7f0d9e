"""SAC: an off-policy actor and twin critics that maximise return and entropy, with the temperature adapted.

Haarnoja, Zhou, Hartikainen, Tucker, Ha, Tan, Kumar, Zhu, Gupta, Abbeel and Levine, "Soft Actor-Critic Algorithms and
Applications", arXiv:1812.05905. The formulas stand in ``soft_actor_critic``. Deviations: see the class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from runner.methods.rl.agents import check_continuous, save_agent, soft_actor_critic
from runner.methods.rl.interaction import training_environments
from runner.methods.rl.learning import Discount, OnlineLearning, Share
from runner.methods.rl.soft_actor_critic import Rates, update

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context
    from runner.methods.rl.replay import Batch


@dataclass(kw_only=True)
class SAC(OnlineLearning):
    """Soft actor-critic: twin critics, a tanh-Gaussian actor, and a temperature adapted to a target entropy."""

    rates: Rates = field(default_factory=Rates)  # Adam's learning rates
    discount: Discount = 0.99
    target_share: Share = 0.005  # tau: of the critics in their slow copies, each update
    target_entropy: float | None = None  # nats; null: minus the number of action dimensions

    paper: ClassVar[str] = "arXiv:1812.05905"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "Maximum-entropy off-policy learning is sample-efficient, and stable without tuning by task."
    data: ClassVar[tuple[str, ...]] = ("environment",)
    model: ClassVar[tuple[str, ...]] = ("network of vectors",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Haarnoja, Zhou, Hartikainen, Tucker, Ha, Tan, Kumar, Zhu, Gupta, Abbeel, Levine. Soft Actor-Critic Algorithms "
        "and Applications. arXiv:1812.05905, 2018."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "the losses of actor, critics and temperature are all taken before one of them moves its weights",
        "learning begins after the random steps",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns what ``learn_online`` measures."""
        environments = training_environments(ctx, ctx.data)
        check_continuous(environments)
        agent = soft_actor_critic(ctx, environments.sizes, self.discount, self.target_entropy)
        optimizer = agent.optimizer(self.rates)

        def learn(batch: Batch, number: int) -> dict[str, Tensor]:
            losses = agent.losses(batch)
            update(agent, optimizer, losses.policy + losses.critic + losses.temperature, self.target_share)
            return {"loss": losses.critic.detach(), "alpha": agent.log_alpha.detach().exp()}

        policy = agent.policy.act
        metrics = self.learn_online(ctx, environments, policy, learn, agent=agent, optimizer=optimizer)
        save_agent(ctx, agent)
        return metrics
