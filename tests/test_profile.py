"""Counting by the rule, and measuring without leaving a trace."""

import pytest
import torch
from torch import nn

from runner.profile import count, latency_ms


def small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2),  # 8x8 -> 6x6
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


def test_count_by_hand():
    # convolution 3*3*(4/2)*6*6*6, batch normalisation 2*6*6*6, linear 6*5
    # parameters: 6*2*9 + 6 biases, 4*6, 6*5 + 5 biases
    assert count(small_network(), (4, 8, 8)) == (108 + 6 + 24 + 35, 3888 + 432 + 30)


def test_a_layer_used_twice_costs_twice_but_is_stored_once():
    layer = nn.Linear(3, 3, bias=False)
    assert count(nn.Sequential(layer, layer), (7, 3)) == (9, 2 * 7 * 9)


def test_profile_leaves_no_trace():
    model = small_network()
    model[3].eval()  # one frozen layer inside a training network
    assert model[1].training  # whose statistics a forward pass in training mode would move
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    count(model, (4, 8, 8))
    latency_ms(model, (4, 8, 8), "cpu", seconds=0)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_are_restored_when_the_forward_pass_fails():
    model = small_network()
    with pytest.raises(RuntimeError):
        count(model, (5, 8, 8))
    assert model.training and not any(module._forward_hooks for module in model.modules())


def test_latency_by_batch_size():
    class Sleeper(nn.Module):
        def __init__(self):
            super().__init__()
            self.batches = []

        def forward(self, images):
            import time

            self.batches.append(len(images))
            time.sleep(0.005)
            return images

    model = Sleeper()
    measured = latency_ms(model, (1, 2, 2), "cpu", (1, 3), seconds=1e-9)
    assert list(measured) == ["1", "3"] and all(5 <= value < 100 for value in measured.values())
    assert model.batches == [1, 1, 3, 3]  # one pass to warm up, one timed
    latency_ms(model, (1, 2, 2), "cpu", (2,), seconds=0)
    assert model.batches[4:] == [2]
