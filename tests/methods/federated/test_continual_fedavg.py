"""Elastic weight consolidation, and the arms of federated averaging on task sequences."""

import pytest
import torch
from commands import runner
from torch import nn

from runner.methods.federated.continual_fedavg import elastic_penalty, fisher_information, merge_anchors

SMOKE = ("method=continual_fedavg", "model=perceptron_100_50", "scale=smoke", "hardware=cpu")


def test_the_elastic_penalty_by_hand():
    weights = {"w": torch.tensor([1.0, 2.0])}
    found = elastic_penalty(weights, {"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([0.0, 9.0])})
    assert found.item() == pytest.approx(1.5)


def test_merged_anchors_have_the_gradient_of_the_sum():
    draws = torch.Generator().manual_seed(0)
    first, second = ({"w": torch.rand(5, generator=draws)} for _ in range(2))  # Fisher information
    one, two = ({"w": torch.randn(5, generator=draws)} for _ in range(2))  # weights
    first["w"][0] = second["w"][0] = 0
    weights = {"w": torch.randn(5, generator=draws, requires_grad=True)}
    fisher, anchor = merge_anchors(first, one, second, two)
    (together,) = torch.autograd.grad(elastic_penalty(weights, fisher, anchor), weights["w"])
    apart = elastic_penalty(weights, first, one) + elastic_penalty(weights, second, two)
    assert torch.allclose(together, torch.autograd.grad(apart, weights["w"])[0], atol=1e-6)


def test_fisher_information_of_a_linear_classifier():
    torch.manual_seed(0)
    network = nn.Linear(3, 2, bias=False)
    inputs, labels = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    examples = [(inputs[n : n + 1], labels[n : n + 1], None) for n in range(4)]
    found = fisher_information(network, {"weight": network.weight}, examples)["weight"]
    # the gradient of -log p(label) is (p - onehot) x^T
    errors = network(inputs).softmax(1) - nn.functional.one_hot(labels, 2)
    expected = (errors[:, :, None] * inputs[:, None]).square().mean(0)
    assert torch.allclose(found, expected, atol=1e-6)


def test_every_arm_runs_and_restarting_forgets_nothing(tmp_path):
    arms = {
        "elastic": ("method.elastic_weight=100",),
        "proximal": ("method.proximal_weight=1",),
        "alone": ("method.communicate=false",),
        "single": ("method.communicate=false", "method.restart=true"),
    }
    for name, options in arms.items():
        answer = runner(*SMOKE, *options, place=tmp_path / name)
        assert answer.code == 0, answer.err
        metrics = answer.result["metrics"]
        assert (metrics["bytes_up"] > 0) == (name in ("elastic", "proximal"))
        assert name != "single" or metrics["forgetting"] == 0


def test_restarting_what_is_averaged_is_refused(tmp_path):
    answer = runner(*SMOKE, "method.restart=true", place=tmp_path)
    assert answer.code == 2 and "communicate=false" in answer.message
