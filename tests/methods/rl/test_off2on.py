"""The card's worked numbers and invariants: density ratios, priorities, merged agents."""

import math
from types import SimpleNamespace

import numpy
import pytest
import torch
from test_replay import rows
from test_sac import agent, batch
from torch import nn

from runner.checkpoints import decode, encode
from runner.methods.rl.density_ratio import DensityRatio, Priorities, first_priority, priorities_of, ratio_loss
from runner.methods.rl.interaction import Curve
from runner.methods.rl.networks import Ensemble, TanhGaussian
from runner.methods.rl.off2on import merged
from runner.methods.rl.replay import Batch, Replay
from runner.methods.rl.soft_actor_critic import (
    Critics,
    Rates,
    SoftActorCritic,
    critic_loss,
    policy_loss,
    soft_targets,
    update,
)
from runner.models.perceptron import perceptron


def filled(offline: int, online: int) -> Replay:
    replay = Replay(offline + online, (3, 2))
    replay.add(*rows(range(offline)))
    replay.keep()
    return replay


def test_new_transitions_get_their_share_at_once():
    assert first_priority(1000, 0.75, 1000) == pytest.approx(3)
    replay = filled(1000, 1000)
    priorities = Priorities(replay, first_priority(1000, 0.75, 1000))
    for number in range(1000):
        priorities.add(replay.add(*rows([number])))
    numpy.random.seed(0)
    places = numpy.concatenate([priorities.sample(256) for _ in range(40)])
    assert (places >= replay.kept).mean() == pytest.approx(0.75, abs=0.02)
    assert set(places.tolist()) <= set(range(2000))


def test_later_ones_get_the_largest_priority_seen():
    replay = filled(4, 4)
    priorities = Priorities(replay, 0.5)
    priorities.set(numpy.array([0, 1]), numpy.array([7.0, 0.2]))
    again = Priorities(filled(4, 4), 0.5)
    again.load_state_dict(decode(encode(priorities.state_dict())))
    for item in (priorities, again):
        item.add(replay.add(*rows([0])) if item is priorities else numpy.array([4]))
        assert item.tree.sums[item.tree.leaves :][:5].tolist() == [7, 0.2, 1, 1, 7]


def test_offline_transitions_stay_and_online_ones_make_room():
    replay = filled(3, 2)
    for number in (10, 11, 12):
        replay.add(*rows([number]))
    assert replay.rows[:5, 0].tolist() == [0, 1, 2, 12, 11]
    again = filled(3, 2)
    again.load_state_dict(decode(encode(replay.state_dict())))
    assert torch.equal(again.rows, replay.rows)
    assert again.add(*rows([13])).tolist() == replay.add(*rows([13])).tolist() == [4]


def test_ratio_loss():
    assert ratio_loss(torch.ones(3), torch.ones(3)).item() == pytest.approx(0, abs=1e-6)
    at_three = torch.full((1,), 3.0)
    only_offline = ratio_loss(at_three, torch.ones(1)).item()
    only_online = -ratio_loss(torch.ones(1), at_three).item()
    assert (only_offline, only_online) == (pytest.approx(0.6931, abs=1e-4), pytest.approx(0.4055, abs=1e-4))
    grid = torch.linspace(0.01, 10, 2000)
    pointwise = torch.stack([ratio_loss(w[None], torch.ones(1)) + 3 * ratio_loss(torch.ones(1), w[None]) for w in grid])
    assert grid[pointwise.argmin()].item() == pytest.approx(3, abs=0.01)  # where d_online = 3 d_offline
    assert ratio_loss(torch.zeros(2), torch.zeros(2)).isfinite()


def test_the_ratio_is_learnt_from_samples():
    """Online actions are N(1, 1), offline ones N(0, 1): the ratio is exp(a - 1/2)."""
    torch.manual_seed(0)
    ratio = DensityRatio(SimpleNamespace(network=lambda name, **shape: perceptron(**shape, hidden=[32])), (1, 1))
    *_, weight, bias = ratio.parameters()
    assert bias.item() == 1 and 2e-3 < weight.abs().max().item() <= 3e-3  # so that no ratio is 0 at the start
    optimizer = torch.optim.Adam(ratio.parameters(), 1e-2)

    def draw(shift: float):
        return batch(256)._replace(observations=torch.zeros(256, 1), actions=torch.randn(256, 1) + shift)

    for _ in range(400):
        loss = ratio_loss(ratio(draw(0)), ratio(draw(1)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    points = torch.tensor([[0.0], [0.5], [1.5]])
    found = ratio(batch(3)._replace(observations=torch.zeros(3, 1), actions=points)).detach()
    assert found.tolist() == pytest.approx((points[:, 0] - 0.5).exp().tolist(), rel=0.25)


def test_priorities():
    found = priorities_of(torch.tensor([32.0, 0.0, 1e30]), torch.tensor([1.0, 1.0]), 5.0)
    assert found.tolist() == pytest.approx([2, 1e-3, 1e3])
    assert priorities_of(torch.tensor([4.0]), torch.tensor([2.0, 6.0]), 1.0).item() == pytest.approx(1)


def test_one_agent_merged_is_that_agent_and_so_are_equal_ones():
    one, data = agent(1), batch()
    state = {name: value.clone() for name, value in one.state_dict().items()}
    for count in (1, 3):
        several = agent(count)
        several.load_state_dict(several.state_dict() | merged([state] * count))
        for found, expected in zip(
            several.policy.gaussian(data.observations), one.policy.gaussian(data.observations), strict=True
        ):
            torch.testing.assert_close(found, expected)
        torch.manual_seed(5)
        expected = one.losses(data)
        torch.manual_seed(5)
        found = several.losses(data)
        torch.testing.assert_close(found.critic, count * expected.critic)
        torch.testing.assert_close(found.policy, expected.policy)
        torch.testing.assert_close(found.temperature, expected.temperature)
        if count == 1:
            assert torch.equal(found.critic, expected.critic)  # plain SAC, to the bit


def test_members_keep_their_place_and_their_own_targets():
    torch.manual_seed(0)
    members = [agent(1) for _ in range(3)]
    for number, member in enumerate(members):
        nn.init.constant_(member.critics.online.biases[-1], number)
    several = agent(3)
    states = [{name: value.clone() for name, value in member.state_dict().items()} for member in members]
    several.load_state_dict(several.state_dict() | merged(states))
    data = batch()
    values = several.critics(data.observations, data.actions)
    assert values.shape == (2, 3, 16)
    for number, member in enumerate(members):
        torch.testing.assert_close(values[:, number], member.critics(data.observations, data.actions)[:, 0])
    following = torch.randn(2, 3, 16)
    targets = soft_targets(data.rewards, data.terminals, following, torch.zeros(16), 0.2, 0.99)
    changed = following.clone()
    changed[:, 1] += 1
    moved = soft_targets(data.rewards, data.terminals, changed, torch.zeros(16), 0.2, 0.99)
    assert torch.equal(moved[[0, 2]], targets[[0, 2]]) and not torch.equal(moved[1], targets[1])
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(critic_loss(values[:, order], targets[order]), critic_loss(values, targets))
    density = torch.zeros(16)
    torch.testing.assert_close(policy_loss(values[:, order], density, 0.1), policy_loss(values, density, 0.1))


def test_networks_that_are_no_perceptrons_are_merged_too():
    states = [{"log_alpha": torch.zeros(()), "policy.networks.members.0.w": torch.full((2,), float(k))} for k in (3, 4)]
    for k, state in enumerate(states):
        state |= {f"critics.online.members.{j}.w": torch.full((2,), 10.0 * j + k) for j in range(2)}
    found = {name: value[0].item() for name, value in merged(states).items()}
    assert found == {
        "policy.networks.members.0.w": 3,
        "policy.networks.members.1.w": 4,
        "critics.online.members.0.w": 0,
        "critics.online.members.1.w": 1,
        "critics.online.members.2.w": 10,
        "critics.online.members.3.w": 11,
    }


def test_area_and_drop():
    curve = Curve(None, None, None, every=250, episodes=1)
    curve.points = [(250, -900.0), (500, -1200.0), (1500, -2000.0)]
    assert curve.summary()["area"] == pytest.approx(-4100 / 3)
    assert (curve.drop(-1000.0, 1000), curve.drop(-1500.0, 1000)) == (200, 0)
    assert math.isclose(curve.drop(-1000.0, 2000), 1000)


def waves(*shape: int, phase: float = 0.0) -> torch.Tensor:
    """Numbers in [-1, 1] that need no generator."""
    return torch.sin(1.7 * torch.arange(math.prod(shape)) + phase).view(shape)


def fixed_agent(members: int = 2) -> SoftActorCritic:
    """Members with the weights of ``waves``, and slow copies that differ."""
    policy = TanhGaussian(Ensemble([perceptron(3, 4, [8, 8]) for _ in range(members)]), exact=True)
    found = SoftActorCritic(policy, Critics([perceptron(5, 1, [8, 8]) for _ in range(2 * members)]), -2.0, 0.99)
    with torch.no_grad():
        for number, parameter in enumerate(found.parameters()):
            parameter.copy_(0.5 * waves(*parameter.shape, phase=number))
    return found


def test_updates_are_those_of_the_released_code():
    """The numbers are what the authors' trainer gave (torch's noise from the seeds below, float32)."""
    own = fixed_agent()
    optimizer = own.optimizer(Rates(policy=1e-2, critic=1e-2, temperature=1e-2))
    data = Batch(waves(6, 3), waves(6, 2, phase=1), waves(6, phase=2), torch.tensor([0.0, 0, 1, 0, 0, 1]), waves(6, 3))
    found = []
    for number in range(3):
        torch.manual_seed(number)
        losses = own.losses(data)
        found.append([losses.policy.item(), losses.critic.item(), losses.temperature.item()])
        update(own, optimizer, losses.policy + losses.critic + losses.temperature, 0.005)
    assert found == [
        pytest.approx(row, rel=1e-4, abs=1e-6)
        for row in (
            [-0.3585376, 5.9072466, 0.0],
            [-0.7121040, 8.6738529, -0.0324928],
            [-0.9421463, 7.4471836, -0.0677191],
        )
    ]
    w_offline, w_online, w = 1 + waves(6), 1.5 + waves(6, phase=1), 2 * waves(6, phase=2).relu()
    assert ratio_loss(w_offline, w_online).item() == pytest.approx(-0.1188720, rel=1e-5)
    expected = [1.1475278, 1e-3, 1e-3, 1.0979028, 1.0506084, 1e-3]
    assert priorities_of(w, w_offline, 5.0).tolist() == pytest.approx(expected, rel=1e-5)
