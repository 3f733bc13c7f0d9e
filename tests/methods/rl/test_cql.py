"""The conservative term against one written out."""

import math

import torch
from test_sac import agent, batch
from torch import nn

from runner.methods.rl.cql import conservative_gaps, step_multiplier


def test_the_term_is_the_one_written_out():
    own, data = agent(), batch(6)
    torch.manual_seed(3)
    found = conservative_gaps(own, data, 4)
    torch.manual_seed(3)
    uniform = torch.rand(4, 6, 2) * 2 - 1
    kinds = [
        (uniform, torch.full((4, 6), 2 * math.log(0.5))),
        own.policy.several(data.observations, 4),
        own.policy.several(data.next_observations, 4),  # scored at s, not at s'
    ]
    assert found.shape == (2, 1)
    for critic in range(2):
        terms = [
            own.critics(data.observations, actions[k])[critic, 0] - density[k]
            for actions, density in kinds
            for k in range(4)
        ]
        of_data = own.critics(data.observations, data.actions)[critic, 0]
        expected = torch.stack(terms).logsumexp(0).mean() - of_data.mean()
        torch.testing.assert_close(found[critic, 0], expected)


def test_the_draws_carry_no_gradient_to_the_policy():
    own = agent()
    conservative_gaps(own, batch(), 2).sum().backward()
    assert all(parameter.grad is None for parameter in own.policy.parameters())
    assert all(parameter.grad is not None for parameter in own.critics.online.parameters())


def test_a_constant_critic_has_a_gap_that_only_counts_the_draws():
    """Of values v everywhere and uniform draws alone the log-sum-exp is v + log(3 n) + da log 2 at a flat policy."""
    own, data = agent(), batch()
    with torch.no_grad():
        for parameter in own.critics.online.parameters():
            parameter.zero_()
    gap = conservative_gaps(own, data, 10)
    # each of the three kinds estimates the log of the volume 2^da, so the sum is about log(30) + 2 log 2
    assert torch.all((gap - math.log(30) - 2 * math.log(2)).abs() < 0.5)


def test_the_multiplier_weighs_the_critics_before_its_own_step():
    logarithm = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([logarithm], lr=0.5)
    assert step_multiplier(logarithm, optimizer, torch.tensor(2.0)).item() == 1
    assert logarithm.item() == 1  # 0 + 0.5 * 2 exp(0): the gap is too wide, so its weight grows
    found = step_multiplier(logarithm, optimizer, torch.tensor(-1.0))
    torch.testing.assert_close(found, torch.tensor(math.e))
    assert not found.requires_grad and logarithm.item() < 0
