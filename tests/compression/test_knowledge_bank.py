"""The bank and its loss against worked numbers and a transcription of the card's formulas."""

from __future__ import annotations

import math

import pytest
import torch

from runner.methods.compression import knowledge_bank
from runner.methods.compression.knowledge_bank import (
    active_teachers,
    bank_loss,
    choose_teachers,
    default_temperature,
    divergence,
    mean_teacher,
    stack_bank,
)


def test_teachers_of_the_worked_example():
    assert choose_teachers([0.10, 0.12, 0.15, 0.30, 0.31, 0.50], 3) == [0, 3, 4]


def test_teachers_are_found_in_any_order_of_losses():
    losses = [0.31, 0.10, 0.50, 0.30, 0.12, 0.15]
    assert [losses[index] for index in choose_teachers(losses, 3)] == [0.10, 0.30, 0.31]


def test_fewer_networks_than_teachers_and_equal_losses():
    assert sorted(choose_teachers([0.2, 0.1], 5)) == [0, 1]
    assert sorted(choose_teachers([0.2, 0.2, 0.2], 2)) == [0, 1]


def test_divergence_of_the_worked_example():
    left, right = torch.tensor([2.0, 0, 0]).double(), torch.tensor([0, 2.0, 0]).double()
    assert divergence(left, right, 4.0).item() == pytest.approx(0.355588, abs=1e-6)
    assert divergence(left, left, 4.0).item() == 0


def test_temperature_by_the_number_of_classes():
    assert (default_temperature(999), default_temperature(1000)) == (4.0, 10.0)


def transcribed_loss(preds, labels, bank, temperature, rule=True):
    """Card 2.10 in plain numbers: preds [B][2][classes], bank [B][classes][K]."""

    def log_softmax(row):
        row = [value / temperature for value in row]
        norm = math.log(sum(math.exp(value) for value in row))
        return [value - norm for value in row]

    def kl(a, b):
        return temperature * sum(math.exp(x) * (x - y) for x, y in zip(log_softmax(a), log_softmax(b), strict=True))

    size, classes, teachers = len(preds), len(preds[0][0]), len(bank[0][0])
    rows = range(size)
    top = [[bank[n][c][0] for c in range(classes)] for n in rows]
    mean = [[(preds[n][0][c] + preds[n][1][c]) / 2 for c in range(classes)] for n in rows]
    current = sum(kl(top[n], mean[n]) for n in rows)
    active = [
        k
        for k in range(teachers)
        if not rule or sum(kl(top[n], [bank[n][c][k] for c in range(classes)]) for n in rows) < current
    ]
    merged = [[sum(bank[n][c][k] for k in active) / max(1, len(active)) for c in range(classes)] for n in rows]
    total = 0.0
    for view in range(2):
        for n in rows:
            norm = math.log(sum(math.exp(value) for value in preds[n][view]))
            total += norm - preds[n][view][labels[n]] + kl(merged[n], preds[n][view])
    return total / size / 2, len(active)


@pytest.mark.parametrize("rule", [True, False])
@pytest.mark.parametrize("scale", [0.1, 0.7, 3.0])
def test_bank_loss_equals_the_formulas(scale, rule):
    generator = torch.Generator().manual_seed(int(10 * scale))
    bank = torch.randn(6, 5, 4, generator=generator, dtype=torch.float64)
    near = bank[..., 0].unsqueeze(1) + scale * torch.randn(6, 2, 5, generator=generator, dtype=torch.float64)
    labels = torch.arange(6) % 5
    expected, active = transcribed_loss(near.tolist(), labels.tolist(), bank.tolist(), 4.0, rule)
    assert bank_loss(near, labels, bank, 4.0, rule).item() == pytest.approx(expected, rel=1e-12)
    if rule:
        assert active_teachers(near.mean(1), bank, 4.0).sum() == active


def test_weaker_teachers_drop_out_as_the_student_nears_the_best():
    best = torch.tensor([[4.0, 0, 0]]).double()
    bank = torch.stack([best, best * 0.5, -best], dim=-1)
    assert active_teachers(-2 * best, bank, 4.0).tolist() == [True, True, True]
    assert active_teachers(best * 0.1, bank, 4.0).tolist() == [True, True, False]
    assert active_teachers(best * 0.9, bank, 4.0).tolist() == [True, False, False]
    assert active_teachers(best, bank, 4.0).tolist() == [False, False, False]  # nothing is left to learn
    assert not mean_teacher(best, bank, 4.0, activity_rule=True).any()


def test_no_gradient_flows_through_the_selection():
    logits = torch.randn(4, 2, 5, dtype=torch.float64, requires_grad=True)
    bank, labels = torch.randn(4, 5, 3, dtype=torch.float64), torch.arange(4)
    (gradient,) = torch.autograd.grad(bank_loss(logits, labels, bank, 4.0), logits)
    teacher = mean_teacher(logits.detach().mean(1), bank, 4.0, activity_rule=True)
    expected = (logits.softmax(-1) - torch.nn.functional.one_hot(labels, 5).unsqueeze(1)) / 8
    expected = expected + ((logits / 4).softmax(-1) - (teacher / 4).softmax(-1).unsqueeze(1)) / 8
    torch.testing.assert_close(gradient, expected.detach())


def test_a_large_bank_is_stored_in_half_precision(monkeypatch):
    logits = [torch.randn(10, 5), torch.randn(10, 5)]
    assert stack_bank(logits).dtype == torch.float32
    monkeypatch.setattr(knowledge_bank, "HALF_PRECISION_ABOVE", 399)  # the bank takes 400 bytes
    bank = stack_bank(logits)
    assert (bank.dtype, bank.shape) == (torch.float16, (10, 5, 2))


def test_teachers_are_chosen_by_the_whole_batch_where_processes_share_it():
    bank = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    student = bank[..., 0] + 1.2 * torch.randn(6, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    whole = active_teachers(student, bank, 4.0)
    others: list[torch.Tensor] = []
    part = active_teachers(student[4:], bank[4:], 4.0, lambda value: others.append(value.clone()) or value)
    first = active_teachers(student[:4], bank[:4], 4.0, lambda value: value + others.pop(0))
    assert first.tolist() == whole.tolist()
    assert part.tolist() != whole.tolist(), "the test could not fail"
