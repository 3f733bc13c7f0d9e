"""The gradient of a distillation loss, clipped tensor by tensor to the task's."""

import pytest
import torch

from runner.methods.distillation.clipping import clip_to, clipped_sum, rising_rate


def test_the_worked_example_of_the_cards():
    task = torch.tensor([3.0, 4.0])
    assert clip_to(torch.tensor([6.0, 8.0]), task, 0.5).tolist() == [1.5, 2.0]
    assert clip_to(torch.tensor([0.3, 0.4]), task, 0.5).tolist() == pytest.approx([0.3, 0.4])  # short ones stay
    assert clip_to(torch.zeros(2), task, 0.5).tolist() == [0, 0]


def test_each_tensor_and_each_loss_is_clipped_alone():
    a, b, c = (torch.zeros(2, requires_grad=True) for _ in range(3))
    task = (a * torch.tensor([3.0, 4.0])).sum() + (b * torch.tensor([0.0, 10.0])).sum() + 7
    first = (a * torch.tensor([6.0, 8.0])).sum() + (b * torch.tensor([1.0, 0.0])).sum() + (c * 100.0).sum() + 1
    second = (a * torch.tensor([0.0, 50.0])).sum()
    total = clipped_sum(task, [first, second], [a, b, c], 0.5)
    assert total.item() == 8
    total.backward()
    assert a.grad.tolist() == [3 + 1.5, 4 + 2 + 2.5]
    assert b.grad.tolist() == [1, 10]
    assert c.grad.tolist() == [100, 100]  # an adapter's: the task does not know it


def test_the_rate_rises_from_a_half_to_one():
    assert rising_rate(0) == 0.5
    assert rising_rate(1) == pytest.approx(0.731, abs=1e-3)
    assert rising_rate(2) == pytest.approx(0.881, abs=1e-3)
    assert rising_rate(50) == 1
