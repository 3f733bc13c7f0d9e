"""MHGD: the invariants of the card, and the losses against the released formulas in float64."""

import math
from itertools import pairwise

import pytest
import torch
from waves import SHAPES, STUDENT, TEACHER, wave

from runner.methods.distillation import mhgd
from runner.methods.distillation.graph_attention import GraphAttention, drop_heads, graph_divergence

NUMBERS = 0.05490158, 0.98268934  # transfer; estimation with every head kept
S, T = [maps.relu() for maps in STUDENT], [maps.relu() for maps in TEACHER]


def attention(heads: int = 3) -> torch.nn.ModuleList:
    """One network a transition, its parameters and statistics the same on every machine; in evaluation mode."""
    found = torch.nn.ModuleList(GraphAttention(front[1], back[1], heads) for front, back in pairwise(SHAPES))
    for part in found:
        with torch.no_grad():
            for number, item in enumerate(part.parameters()):
                item.copy_(wave(*item.shape, phase=number + 1) * 0.5 + 0.3 * (item.ndim == 1))
            for number, item in enumerate(part.buffers()):
                if item.ndim == 1:
                    item.copy_(wave(*item.shape, phase=number + 1) * 0.2 + 0.8)
    return found.eval()


def vectors(student=S, teacher=T):
    of_teacher = [found * found.sum(1, keepdim=True).sign() for found in mhgd.teacher_vectors(teacher)]
    return mhgd.student_vectors(student, of_teacher, 4), of_teacher


def test_the_losses_are_those_of_the_released_formulas(monkeypatch):
    """KD_methods_with_TF in NumPy, float64; the vectors' sign fixed, no head dropped."""
    monkeypatch.setattr("runner.methods.distillation.graph_attention.drop_heads", lambda graphs: graphs)
    of_student, of_teacher = vectors()
    assert mhgd.transfer_loss(attention(), of_student, of_teacher).item() == pytest.approx(NUMBERS[0], rel=1e-3)
    assert mhgd.estimation_loss(attention(), of_teacher).item() == pytest.approx(NUMBERS[1], rel=1e-4)


def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient():
    maps = [item.clone().requires_grad_() for item in T]
    of_student, of_teacher = vectors(maps)
    for s, t in zip(of_student, of_teacher, strict=True):
        assert torch.allclose(s, t, atol=1e-5)
    loss = mhgd.transfer_loss(attention(), of_student, of_teacher)
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert max(item.abs().max().item() for item in torch.autograd.grad(loss, maps)) < 1e-4


def test_the_student_learns_from_the_frozen_network():
    networks = attention().requires_grad_(False)
    before = {name: item.clone() for name, item in networks.state_dict().items()}
    maps = [item.clone().requires_grad_() for item in S]
    mhgd.transfer_loss(networks, *vectors(maps)).backward()
    assert all(item.grad.abs().sum() > 0 for item in maps)
    assert all(torch.equal(item, before[name]) for name, item in networks.state_dict().items())


def test_the_graphs_of_a_batch_twice_are_twice_the_loss():
    """A sum over rows; each row spreads its weight over twice as many items in the same ratios."""
    once = mhgd.transfer_loss(attention(), *vectors())
    twice = mhgd.transfer_loss(attention(), *vectors([item.repeat(2, 1, 1, 1) for item in S], [*map(doubled, T)]))
    assert twice.item() == pytest.approx(2 * once.item(), rel=1e-3)


def doubled(maps):
    return maps.repeat(2, 1, 1, 1)


def test_softened_graphs_have_rows_of_sum_one_and_bounded_ratio():
    scores = 50 * wave(2, 6, 6, phase=1)
    graphs = scores.tanh().softmax(-1)
    assert torch.allclose(graphs.sum(-1), torch.ones(2, 6))
    assert (graphs.amax(-1) / graphs.amin(-1)).max().item() <= math.exp(2) * (1 + 1e-5)
    assert torch.allclose(torch.zeros(1, 6, 6).tanh().softmax(-1), torch.full((1, 6, 6), 1 / 6))
    assert graph_divergence(scores, scores).item() == pytest.approx(0, abs=1e-6)


def test_a_score_relates_an_items_back_vector_to_anothers_front_vector():
    network = attention()[0]
    front, back = wave(5, 6, phase=1), wave(5, 8, phase=2)
    scores = network(front, back)
    assert scores.shape == (3, 5, 5)
    moved = back.clone()
    moved[2] += 1
    changed = (network(front, moved) != scores).any(0)
    assert changed[2].all() and not changed[[0, 1, 3, 4]].any()


@pytest.mark.parametrize("heads", [2, 8])
def test_every_item_keeps_some_heads_and_loses_some(heads):
    torch.manual_seed(0)
    kept = drop_heads(torch.ones(heads, 500, 3))
    counts = kept[..., 0].sum(0)
    assert ((kept == 0) | (kept == 1)).all() and (kept == kept[..., :1]).all()
    assert counts.min() >= 1 and counts.max() <= heads - 1
    assert counts.mean().item() == pytest.approx(heads / 2, rel=0.1)


def test_a_single_head_is_kept():
    assert (drop_heads(torch.ones(1, 4, 4)) == 1).all()


def test_the_distiller_learns_what_the_mean_direction_does_not_tell():
    """Back vectors that follow from the front ones: the estimate beats the trivial predictor (card, section 7)."""
    torch.manual_seed(0)
    front = torch.nn.functional.normalize(torch.randn(32, 6), dim=1)
    back = torch.nn.functional.normalize(front @ torch.randn(6, 8), dim=1)
    trivial = 1 - (back @ torch.nn.functional.normalize(back.mean(0), dim=0)).mean()
    network = GraphAttention(6, 8, 4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(150):
        optimizer.zero_grad()
        loss = network.estimation_loss(front, back)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * trivial.item()
