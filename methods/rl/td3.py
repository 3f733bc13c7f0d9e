"""TD3: a deterministic actor whose critics are kept from overestimating by a twin, smoothed targets and patience.

Fujimoto, van Hoof and Meger, "Addressing Function Approximation Error in Actor-Critic Methods", ICML 2018,
arXiv:1802.09477. Deviations: see the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from runner.methods.rl.agents import check_continuous, critics, networks, save_agent
from runner.methods.rl.interaction import training_environments
from runner.methods.rl.learning import Discount, OnlineLearning, Share, Size
from runner.methods.rl.networks import Ensemble
from runner.methods.rl.soft_actor_critic import Critics, Rate, critic_loss, soft_targets

if TYPE_CHECKING:
    from runner.context import Context
    from runner.methods.rl.replay import Batch

NotNegative = Annotated[float, Field(ge=0)]


@dataclass(kw_only=True)
class TD3(OnlineLearning):
    """Twin delayed deep deterministic policy gradient."""

    exploration_noise: NotNegative = 0.1  # standard deviation, of actions in [-1, 1]
    target_noise: NotNegative = 0.2  # on the target's actions
    noise_clip: NotNegative = 0.5
    policy_every: Size = 2  # critic updates, to one of the actor and of all slow copies
    rate: Rate = 3e-4  # of Adam
    discount: Discount = 0.99
    target_share: Share = 0.005  # tau: of the networks in their slow copies

    paper: ClassVar[str] = "arXiv:1802.09477"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "The lower of two critics, delayed and smoothed, removes the harm of overestimated values."
    data: ClassVar[tuple[str, ...]] = ("environment",)
    model: ClassVar[tuple[str, ...]] = ("network of vectors",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Fujimoto, van Hoof, Meger. Addressing Function Approximation Error in Actor-Critic Methods. ICML 2018."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "learning rate 3e-4 and batches of 256, as the authors' later code has them (the paper: 1e-3 and 100)",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns what ``learn_online`` measures."""
        environments = training_environments(ctx, ctx.data)
        check_continuous(environments)
        actor = DeterministicActor(ctx, environments.sizes, self.exploration_noise).to(ctx.device)
        agent = nn.ModuleDict({"policy": actor, "critics": critics(ctx, environments.sizes)})
        of_actor = torch.optim.Adam(actor.online.parameters(), lr=self.rate, fused=True)
        of_critics = torch.optim.Adam(agent["critics"].online.parameters(), lr=self.rate, fused=True)

        def learn(batch: Batch, number: int) -> dict[str, Tensor]:
            return {"loss": self.update(actor, agent["critics"], of_actor, of_critics, batch, number)}

        state = {"agent": agent, "of_actor": of_actor, "of_critics": of_critics}
        metrics = self.learn_online(ctx, environments, actor.act, learn, **state)
        save_agent(ctx, agent)
        return metrics

    def update(
        self,
        actor: DeterministicActor,
        twins: Critics,
        of_actor: torch.optim.Optimizer,
        of_critics: torch.optim.Optimizer,
        batch: Batch,
        number: int,
    ) -> Tensor:
        """One step of the critics, whose loss it returns; at every ``policy_every``-th ``number``, which counts from 0,
        also one of the actor and of all slow copies."""
        with torch.no_grad():
            next_actions = smoothed(actor.of_target(batch.next_observations), self.target_noise, self.noise_clip)
            next_values = twins.of_target(batch.next_observations, next_actions)
            targets = soft_targets(batch.rewards, batch.terminals, next_values, 0.0, 0.0, self.discount)
        loss = critic_loss(twins(batch.observations, batch.actions), targets)
        of_critics.zero_grad()
        loss.backward()
        of_critics.step()
        if (number + 1) % self.policy_every == 0:
            of_actor.zero_grad()
            policy_loss(twins, batch.observations, actor(batch.observations)).backward()
            of_actor.step()
            twins.follow(self.target_share)
            actor.follow(self.target_share)
        return loss.detach()


def smoothed(actions: Tensor, noise: float, clip: float) -> Tensor:
    """clip(a + clip(N(0, noise^2), -clip, clip), -1, 1)."""
    return (actions + (torch.randn_like(actions) * noise).clamp(-clip, clip)).clamp(-1, 1)


def policy_loss(twins: Critics, observations: Tensor, actions: Tensor) -> Tensor:
    """-mean Q_1(s, mu(s)); the critics get no gradient."""
    return -twins(observations, actions, frozen=True)[0].mean()


class DeterministicActor(nn.Module):
    """mu(s) = tanh(network(s)) in [-1, 1], and its slow copy."""

    def __init__(self, ctx: Context, sizes: tuple[int, int], noise: float) -> None:
        super().__init__()
        members = networks(ctx, "actor", 1, *sizes)
        self.online, self.target, self.noise = Ensemble(members), Ensemble(members), noise
        self.target.requires_grad_(False)

    def forward(self, observations: Tensor) -> Tensor:
        """(B, da)."""
        return torch.tanh(self.online(observations)[0])

    def of_target(self, observations: Tensor) -> Tensor:
        """The slow copy's actions."""
        return torch.tanh(self.target(observations)[0])

    def follow(self, share: float) -> None:
        """Polyak averaging of the slow copy."""
        with torch.no_grad():
            torch._foreach_lerp_(list(self.target.parameters()), list(self.online.parameters()), share)

    def act(self, observations: Tensor, *, explore: bool) -> Tensor:
        """mu(s), to explore with Gaussian noise."""
        with torch.inference_mode():
            actions = self(observations)
            return (actions + self.noise * torch.randn_like(actions)).clamp(-1, 1) if explore else actions
