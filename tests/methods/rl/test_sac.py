"""Networks, densities, targets and losses of the soft actor-critic."""

import math
from pathlib import Path

import pytest
import torch
from commands import runner
from safetensors.torch import load_file
from torch import nn

from runner.methods.rl.networks import Ensemble, TanhGaussian, is_perceptron, merge_gaussians, squash
from runner.methods.rl.replay import Batch
from runner.methods.rl.soft_actor_critic import (
    Critics,
    Rates,
    SoftActorCritic,
    critic_loss,
    policy_loss,
    soft_targets,
    temperature_loss,
    update,
)
from runner.models.perceptron import perceptron

DRAWS = torch.Generator().manual_seed(0)


class Other(nn.Module):
    """A network that is no chain of layers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs):
        return self.inner(inputs)


def agent(members: int = 1, hidden: int = 8) -> SoftActorCritic:
    torch.manual_seed(0)
    policy = TanhGaussian(Ensemble([perceptron(3, 4, [hidden]) for _ in range(members)]))
    return SoftActorCritic(policy, Critics([perceptron(5, 1, [hidden]) for _ in range(2 * members)]), -2.0, 0.9)


def batch(count: int = 16) -> Batch:
    return Batch(
        torch.randn(count, 3, generator=DRAWS),
        torch.rand(count, 2, generator=DRAWS) * 2 - 1,
        torch.randn(count, generator=DRAWS),
        (torch.arange(count) % 4 == 0).float(),
        torch.randn(count, 3, generator=DRAWS),
    )


@pytest.mark.parametrize("wrap", [lambda m: m, Other], ids=["perceptron", "other"])
def test_an_ensemble_is_its_members(wrap):
    members = [perceptron(3, 2, [8, 8]) for _ in range(3)]
    ensemble = Ensemble([wrap(member) for member in members])
    assert is_perceptron(members[0]) and not is_perceptron(Other(members[0]))
    inputs = torch.randn(5, 3, requires_grad=True)
    expected = torch.stack([member(inputs) for member in members])
    torch.testing.assert_close(ensemble(inputs), expected)
    own = torch.randn(3, 5, 3)
    torch.testing.assert_close(ensemble(own), torch.stack([m(x) for m, x in zip(members, own, strict=True)]))
    ensemble(inputs, frozen=True).sum().backward()
    assert inputs.grad is not None and all(parameter.grad is None for parameter in ensemble.parameters())


@pytest.mark.parametrize("exact", [False, True])
def test_the_density_of_a_squashed_gaussian_integrates_to_one(exact):
    mean, std = torch.tensor(0.4, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    before = torch.linspace(-6, 6, 200_001, dtype=torch.float64)[:, None]
    actions, log_density = squash(before, (before - mean) / std, std, exact=exact)
    assert torch.trapezoid(log_density.exp(), actions[:, 0]).item() == pytest.approx(1, abs=1e-3)


def test_both_forms_of_the_density_agree_where_the_action_is_inside():
    before, std = torch.randn(100, 2, generator=DRAWS), torch.ones(100, 2)
    plain, exact = (squash(before, before, std, exact=form)[1] for form in (False, True))
    torch.testing.assert_close(plain, exact, atol=1e-3, rtol=0)
    assert squash(torch.full((1, 1), 30.0), torch.zeros(1, 1), torch.ones(1, 1), exact=True)[1].isfinite().all()


def test_the_density_of_drawn_actions_is_found_again():
    policy = agent().policy
    observations = torch.randn(50, 3, generator=DRAWS)
    actions, log_density = policy(observations)
    torch.testing.assert_close(policy.log_density(observations, actions), log_density, atol=1e-3, rtol=1e-3)


def test_merged_gaussians():
    mean, std = merge_gaussians(torch.tensor([-1.0, 1.0]), torch.zeros(2))
    assert (mean.item(), std.item()) == (0, 1)
    mean, std = merge_gaussians(torch.full((5,), 0.3), torch.full((5,), 0.2))
    assert (mean.item(), std.item()) == (pytest.approx(0.3), pytest.approx(0.2))
    assert merge_gaussians(torch.zeros(2), torch.zeros(2))[1].item() == pytest.approx(math.exp(-20))


def test_targets():
    next_values = torch.tensor([[[1.0, 5.0]], [[2.0, 4.0]]])  # two critics of one pair, two transitions
    targets = soft_targets(
        torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0]), next_values, torch.tensor([-2.0, -2.0]), 0.5, 0.9
    )
    assert targets.tolist() == [[pytest.approx(1 + 0.9 * (1 + 1)), 1.0]]


def test_losses():
    values = torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]])
    assert critic_loss(values, torch.tensor([[0.0, 0.0]])).item() == (1 + 4) / 2 + (9 + 0) / 2
    assert policy_loss(values, torch.tensor([2.0, 4.0]), 0.5).item() == pytest.approx((1 + 2 - 1 - 0) / 2)
    log_alpha = torch.tensor(0.3, requires_grad=True)
    temperature_loss(log_alpha, torch.tensor([0.5, 1.5]), -2.0).backward()
    assert log_alpha.grad.item() == 1  # the entropy -1 is above the target -2: alpha falls


def test_one_update_of_the_sum_is_three_updates():
    """No loss reaches another's weights."""
    own, data = agent(), batch()
    losses = own.losses(data)
    groups = {
        "policy": list(own.policy.parameters()),
        "critic": list(own.critics.online.parameters()),
        "temperature": [own.log_alpha],
    }
    for name, loss in zip(("policy", "critic", "temperature"), losses[:3], strict=True):
        for other, weights in groups.items():
            found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
            assert all((grad is not None) == (name == other) for grad in found), (name, other)
    before = [value.clone() for value in own.critics.target.parameters()]
    update(own, own.optimizer(Rates()), losses.policy + losses.critic + losses.temperature, 0.25)
    for old, slow, fast in zip(before, own.critics.target.parameters(), own.critics.online.parameters(), strict=True):
        torch.testing.assert_close(slow, 0.75 * old + 0.25 * fast)
        assert not slow.requires_grad


def test_the_critic_loss_is_that_of_a_plain_reference():
    own, data = agent(), batch()
    torch.manual_seed(1)
    losses = own.losses(data)
    torch.manual_seed(1)
    _, _ = own.policy(data.observations)
    with torch.no_grad():
        actions, density = own.policy(data.next_observations)
        joined = torch.cat([data.next_observations, actions], 1)
        both = own.critics.target(joined).squeeze(-1)
        value = torch.minimum(both[0], both[1]) - density
        wanted = data.rewards + 0.9 * (1 - data.terminals) * value
    both = own.critics.online(torch.cat([data.observations, data.actions], 1)).squeeze(-1)
    expected = nn.functional.mse_loss(both[0], wanted) + nn.functional.mse_loss(both[1], wanted)
    torch.testing.assert_close(losses.critic, expected)


def small(in_features: int, out_features: int) -> nn.Module:
    """A user's own network, which is no chain of layers."""
    return Other(perceptron(in_features, out_features, [8]))


def test_copies_and_a_network_of_ones_own(tmp_path, monkeypatch):
    """Three copies side by side; critics and actor by ``model.target``."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    answer = runner(
        *("method=sac", "scale=smoke", "hardware=cpu", "dataset.copies=3", "method.steps=6"),
        *("model.target=test_sac:small", "~model.arguments.hidden"),
        place=tmp_path,
    )
    assert answer.code == 0, answer.err
    assert "members.0.inner" in " ".join(load_file(answer.folder / "artifacts" / "agent.safetensors"))
