"""The proximal term and the partial work of FedProx."""

import pytest
import torch
from commands import runner

from runner.methods.federated.fedprox import half_squared_distance

SMOKE = ("model=logistic_regression", "scale=smoke", "hardware=cpu", "method.federation.partition=iid")


def test_the_term_and_its_gradient():
    weights = {"a": torch.tensor([1.0, 3.0], requires_grad=True), "b": torch.tensor([[2.0]], requires_grad=True)}
    anchor = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([[2.0]]), "buffer": torch.tensor(7.0)}
    value = half_squared_distance(weights, anchor)
    value.backward()
    assert value.item() == pytest.approx((1 + 4) / 2)
    assert torch.equal(weights["a"].grad, torch.tensor([1.0, 2.0]))  # w - a


def test_without_the_term_and_without_stragglers_it_is_fedavg(tmp_path):
    settings = (*SMOKE, "method.federation.stragglers=0")
    prox = runner("method=fedprox", "method.proximal_weight=0", *settings, place=tmp_path / "prox")
    rate = "recipe.optimizer.learning_rate=0.03"
    plain = runner("method=fedavg", rate, *settings, place=tmp_path / "plain")
    assert prox.code == plain.code == 0, prox.err + plain.err
    assert prox.result["metrics"] == plain.result["metrics"]


def test_the_work_of_stragglers_counts(tmp_path):
    answer = runner("method=fedprox", *SMOKE, "method.federation.stragglers=0.5", place=tmp_path)
    assert answer.code == 0, answer.err
    assert answer.result["metrics"]["bytes_up"] == answer.result["metrics"]["bytes_down"]
