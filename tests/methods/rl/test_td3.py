"""Smoothed targets and the deterministic policy's loss."""

import torch
from test_sac import agent, batch

from runner.methods.rl.td3 import policy_loss, smoothed


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
