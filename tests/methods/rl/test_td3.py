"""Smoothed targets and the deterministic policy's loss."""

from types import SimpleNamespace

import pytest
import torch
from test_off2on import waves
from test_sac import agent, batch
from torch import nn

from runner.methods.rl.replay import Batch
from runner.methods.rl.soft_actor_critic import Critics
from runner.methods.rl.td3 import TD3, DeterministicActor, policy_loss, smoothed
from runner.models.perceptron import perceptron


def test_target_noise_is_clipped_and_actions_stay_in_range():
    torch.manual_seed(0)
    actions = torch.tensor([0.0, 0.9]).expand(10_000, 2)
    found = smoothed(actions, 0.2, 0.5)
    noise = found - actions
    assert noise[:, 0].abs().max() <= 0.5 and abs(noise[:, 0].std().item() - 0.2) < 0.01
    assert found.max() == 1
    assert torch.equal(smoothed(actions, 0.0, 0.5), actions)


def test_the_policys_loss_is_of_the_first_critic_and_leaves_it_alone():
    own, data = agent(), batch()
    actions = data.actions.clone().requires_grad_()
    loss = policy_loss(own.critics, data.observations, actions)
    loss.backward()
    torch.testing.assert_close(loss.detach(), -own.critics(data.observations, data.actions)[0].mean().detach())
    assert actions.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in own.critics.parameters())


def fixed(inputs: int, outputs: int, phase: int) -> nn.Sequential:
    """A network of two hidden layers with the weights of ``waves``."""
    network = perceptron(inputs, outputs, [8, 8])
    with torch.no_grad():
        for number, layer in enumerate(network[::2]):
            layer.weight.copy_(0.5 * waves(*layer.weight.shape, phase=phase + number))
            layer.bias.copy_(0.5 * waves(*layer.bias.shape, phase=phase + number + 0.5))
    return network


def test_updates_are_those_of_the_authors_code():
    """The numbers are what the authors' TD3 gave at rate 0.01 (torch's noise from the seeds below, float32)."""
    ctx = SimpleNamespace(network=lambda name, in_features, out_features: fixed(in_features, out_features, 0))
    actor, twins = DeterministicActor(ctx, (3, 2), 0.1), Critics([fixed(5, 1, 3), fixed(5, 1, 6)])
    optimizers = [torch.optim.Adam(part.online.parameters(), lr=1e-2) for part in (actor, twins)]
    data = Batch(waves(6, 3), waves(6, 2, phase=1), waves(6, phase=2), torch.tensor([0.0, 0, 1, 0, 0, 1]), waves(6, 3))
    losses = []
    for number in range(4):
        torch.manual_seed(number)
        losses.append(TD3().update(actor, twins, *optimizers, data, number).item())
    assert losses == pytest.approx([2.0372195, 1.7913579, 1.6289893, 1.4578442], rel=1e-5)
    assert actor(data.observations)[0].tolist() == pytest.approx([0.8203924, -0.2469340], rel=1e-4)
    assert actor.of_target(data.observations)[0].tolist() == pytest.approx([0.7381194, -0.3475731], rel=1e-4)
