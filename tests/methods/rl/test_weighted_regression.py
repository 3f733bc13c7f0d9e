"""IQL and AWAC: expectiles, weights, densities."""

import math
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from test_off2on import fixed_agent, waves
from test_sac import agent, batch

from runner.datasets.transitions import Transitions
from runner.methods.rl.awac import AWAC
from runner.methods.rl.iql import IQL, BoundedGaussian, ImplicitAgent, return_scale
from runner.methods.rl.networks import Ensemble
from runner.methods.rl.replay import Batch
from runner.methods.rl.weighted_regression import advantage_weights, expectile_loss, weighted_likelihood_loss
from runner.models.perceptron import perceptron


def test_expectile_loss():
    assert expectile_loss(torch.tensor([2.0, -2.0]), 0.7).item() == pytest.approx((0.7 * 4 + 0.3 * 4) / 2)
    assert expectile_loss(torch.tensor([2.0, -1.0]), 0.5).item() == pytest.approx(0.5 * 2.5)
    values = torch.tensor([0.0, 1.0])
    grid = torch.linspace(0, 1, 1001)
    best = grid[torch.stack([expectile_loss(values - point, 0.7) for point in grid]).argmin()]
    assert best.item() == pytest.approx(0.7, abs=1e-3)  # of two equally frequent values 0 and 1


def test_weights_are_capped_and_without_gradient():
    advantages = torch.tensor([0.0, 1.0, 10.0], requires_grad=True)
    weights = advantage_weights(advantages, 3.0)
    assert weights.tolist() == pytest.approx([1, math.exp(3), 100]) and not weights.requires_grad
    assert weighted_likelihood_loss(
        torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 3.0, 9.0])
    ).item() == pytest.approx(-7 / 3)


def test_the_bounded_gaussian_is_a_density():
    policy = BoundedGaussian(Ensemble([perceptron(3, 1, [8])]), 1)
    observation = torch.randn(1, 3)
    grid = torch.linspace(-8, 8, 20_001)[:, None]
    density = policy.log_density(observation.expand(len(grid), 3), grid).exp()
    assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1, abs=1e-3)
    drawn = policy.act(observation.expand(1000, 3), explore=True)
    assert drawn.abs().max() <= 1 and drawn.std() > 0.3
    assert torch.equal(policy.act(observation, explore=False), policy.mean(observation).detach())


def test_returns_are_scaled_to_a_range_of_a_thousand():
    count = 6
    transitions = Transitions(
        torch.zeros(count, 3),
        torch.zeros(count, 1),
        torch.tensor([1.0, 2.0, 3.0, -4.0, 0.0, 1.0]),
        torch.tensor([0.0, 0, 1, 0, 1, 0]),
        torch.zeros(count, 3),
        torch.tensor([False, False, False, False, False, True]),
    )
    assert transitions.returns().tolist() == [6, -4, 1]
    assert return_scale(transitions) == pytest.approx(100)


def test_awac_gives_each_loss_its_own_weights():
    own, data = agent(), batch()
    critic, policy = AWAC().losses(own, data)
    actor, critics = list(own.policy.parameters()), list(own.critics.online.parameters())
    for loss, mine, others in ((critic, critics, actor), (policy, actor, critics)):
        assert all(g is not None for g in torch.autograd.grad(loss, mine, retain_graph=True))
        found = torch.autograd.grad(loss, others, retain_graph=True, allow_unused=True)
        assert all(g is None for g in found)


def test_iql_takes_its_steps_in_the_order_of_the_authors_code():
    """Values first; policy and critics see their new weights, the slow copies the critics'."""
    torch.manual_seed(0)
    ctx = SimpleNamespace(network=lambda name, **shape: perceptron(**shape, hidden=[8]), device="cpu")
    own, data = ImplicitAgent(ctx, (3, 2)), batch()
    before = deepcopy(own)
    parts = (own.value, own.policy, own.critics.online)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.5) for part in parts]
    shown = IQL(discount=0.9, target_share=0.25).update(own, optimizers, data)
    both = before.critics.of_target(data.observations, data.actions)[:, 0]
    lower = torch.minimum(both[0], both[1])
    errors = lower - before.values(data.observations)
    assert shown["value_loss"].item() == pytest.approx((torch.where(errors > 0, 0.7, 0.3) * errors**2).mean().item())
    weights = torch.exp(3 * (lower - own.values(data.observations))).clamp(max=100)
    expected = -(weights * before.policy.log_density(data.observations, data.actions)).mean()
    assert shown["policy_loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    targets = data.rewards + 0.9 * (1 - data.terminals) * own.values(data.next_observations)
    errors = before.critics(data.observations, data.actions)[:, 0] - targets
    assert shown["loss"].item() == pytest.approx((errors[0] ** 2 + errors[1] ** 2).mean().item(), rel=1e-5)
    for old, slow, new in zip(
        before.critics.target.parameters(),
        own.critics.target.parameters(),
        own.critics.online.parameters(),
        strict=True,
    ):
        torch.testing.assert_close(slow, 0.75 * old + 0.25 * new)
    assert not torch.allclose(own.values(data.observations), before.values(data.observations), atol=1e-4)


def test_awac_has_the_losses_of_its_reference():
    """The numbers are what CORL's critic and actor losses gave for these networks and draws (float32)."""
    data = Batch(waves(6, 3), waves(6, 2, phase=1), waves(6, phase=2), torch.tensor([0.0, 0, 1, 0, 0, 1]), waves(6, 3))
    own = fixed_agent(1)
    torch.manual_seed(5)
    critic, policy = AWAC().losses(own, data)
    assert (critic.item(), policy.item()) == (pytest.approx(1.1958021, rel=1e-5), pytest.approx(0.9934350, rel=1e-5))
