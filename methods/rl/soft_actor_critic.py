"""The soft actor-critic of N actors and N pairs of critics, N = 1 in SAC itself: losses, targets and one update.

Haarnoja et al. 2018, arXiv:1812.05905, with the temperature adapted. For N > 1 Lee et al. 2021, arXiv:2107.00591: one
policy of the actors' mixture, and a target for each pair of critics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from runner.methods.rl.networks import Ensemble, TanhGaussian

if TYPE_CHECKING:
    from runner.methods.rl.replay import Batch

Rate = Annotated[float, Field(gt=0)]


def soft_targets(
    rewards: Tensor,
    terminals: Tensor,
    next_values: Tensor,
    next_log_density: Tensor | float,
    alpha: Tensor | float,
    discount: float,
) -> Tensor:
    """y_i = r + gamma (1 - d) [min_k Q'_ik(s', a') - alpha log pi(a'|s')], (N, B), of next_values (2, N, B)."""
    value = next_values.amin(0) - alpha * next_log_density
    return rewards + discount * (1 - terminals) * value


def critic_loss(values: Tensor, targets: Tensor) -> Tensor:
    """sum_k sum_i mean_B (Q_ik - y_i)^2 of values (2, N, B) and targets (N, B)."""
    return (values - targets).square().mean(-1).sum()


def policy_loss(values: Tensor, log_density: Tensor, alpha: Tensor | float) -> Tensor:
    """mean_B (alpha log pi(a|s) - mean_i min_k Q_ik(s, a)) of values (2, N, B) at drawn actions."""
    return (alpha * log_density - values.amin(0).mean(0)).mean()


def temperature_loss(log_alpha: Tensor, log_density: Tensor, target_entropy: float) -> Tensor:
    """-log alpha * mean_B (log pi + target entropy), whose second factor has no gradient."""
    return -log_alpha * (log_density.detach() + target_entropy).mean()


class Losses(NamedTuple):
    """Of one batch."""

    policy: Tensor
    critic: Tensor
    temperature: Tensor
    log_density: Tensor  # (B,) of the actions that the policy drew


class Critics(nn.Module):
    """N pairs of critics Q_ik(s, a), i = 1..N, k = 1, 2, and their slow copies."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.pairs = len(networks) // 2
        self.online, self.target = Ensemble(networks), Ensemble(networks)
        self.target.requires_grad_(False)
        self._online, self._target = list(self.online.parameters()), list(self.target.parameters())

    def forward(self, observations: Tensor, actions: Tensor, *, frozen: bool = False) -> Tensor:
        """(2, N, B); frozen: gradients reach the actions only."""
        values = self.online(torch.cat([observations, actions], -1), frozen=frozen)
        return values.view(2, self.pairs, -1)

    def of_target(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The slow copies' values, (2, N, B)."""
        return self.target(torch.cat([observations, actions], -1)).view(2, self.pairs, -1)

    def follow(self, share: float) -> None:
        """Polyak averaging: Q' <- (1 - share) Q' + share Q."""
        with torch.no_grad():
            torch._foreach_lerp_(self._target, self._online, share)


@dataclass(kw_only=True)
class Rates:
    """Learning rates of Adam."""

    policy: Rate = 3e-4
    critic: Rate = 3e-4
    temperature: Rate = 3e-4


class SoftActorCritic(nn.Module):
    """Actors, critics and the temperature alpha.

    Args:
        policy: of N networks.
        critics: N pairs.
        target_entropy: where None, minus the number of action dimensions is the caller's to give.
        log_alpha: at the start; alpha starts at 1.
    """

    def __init__(self, policy: TanhGaussian, critics: Critics, target_entropy: float, discount: float) -> None:
        super().__init__()
        self.policy, self.critics = policy, critics
        self.log_alpha = nn.Parameter(torch.zeros(()))
        self.target_entropy, self.discount = target_entropy, discount

    def losses(self, batch: Batch, *, entropy_in_target: bool = True) -> Losses:
        """All three losses, before any of the weights moves."""
        alpha = self.log_alpha.detach().exp()
        actions, log_density = self.policy(batch.observations)
        policy = policy_loss(self.critics(batch.observations, actions, frozen=True), log_density, alpha)
        with torch.no_grad():
            next_actions, next_log_density = self.policy(batch.next_observations)
            next_values = self.critics.of_target(batch.next_observations, next_actions)
            weight = alpha if entropy_in_target else 0.0
            targets = soft_targets(batch.rewards, batch.terminals, next_values, next_log_density, weight, self.discount)
        critic = critic_loss(self.critics(batch.observations, batch.actions), targets)
        return Losses(policy, critic, temperature_loss(self.log_alpha, log_density, self.target_entropy), log_density)

    def optimizer(self, rates: Rates) -> torch.optim.Adam:
        """One Adam over everything that is trained: a step of all costs one call."""
        groups = [
            {"params": list(self.policy.parameters()), "lr": rates.policy},
            {"params": list(self.critics.online.parameters()), "lr": rates.critic},
            {"params": [self.log_alpha], "lr": rates.temperature},
        ]
        return torch.optim.Adam(groups, fused=True)


def update(agent: SoftActorCritic, optimizer: torch.optim.Optimizer, loss: Tensor, share: float) -> None:
    """One step of all weights down ``loss``, then of the critics' slow copies.

    The losses of policy, critics and temperature have no weights in common, so their sum gives each its own gradient.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    agent.critics.follow(share)
