"""Accuracy, loss and scores against sklearn; batch statistics against training mode."""

import copy

import numpy
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import nn

from runner.evaluation import accuracy_and_loss, batch_statistics, classify, evaluating


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    with torch.no_grad():
        for _ in range(3):  # moving averages that differ from any batch's
            network.train()(2 * torch.randn(8, 3, 6, 6) + 1)
    return network.eval()


@pytest.fixture
def batches() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(20, 3, 6, 6, generator=generator)
    labels = torch.randint(4, (20,), generator=generator)
    index = torch.arange(100, 120)
    return list(zip(images.split(7), labels.split(7), index.split(7), strict=True))


def test_accuracy_and_loss_are_those_of_sklearn(model, batches):
    rows = classify(model, batches)
    with torch.no_grad():
        logits = torch.cat([model(images) for images, _, _ in batches]).double()
    labels = torch.cat([labels for _, labels, _ in batches])
    assert rows["index"].tolist() == list(range(100, 120))
    found = accuracy_and_loss(rows)
    assert found["accuracy"] == accuracy_score(labels, logits.argmax(1))
    assert found["loss"] == pytest.approx(log_loss(labels, logits.softmax(1), labels=range(4)), rel=1e-6)


def test_loss_and_accuracy_by_hand():
    """Logits (0, ln 3): probabilities 1/4 and 3/4."""
    rows = classify(nn.Identity(), [(torch.tensor([[0.0, numpy.log(3)]] * 2), torch.tensor([0, 1]), torch.arange(2))])
    found = accuracy_and_loss(rows)
    assert found["accuracy"] == 0.5
    assert found["loss"] == pytest.approx((numpy.log(4) + numpy.log(4 / 3)) / 2)


def test_batch_statistics_normalises_as_training_does_and_changes_nothing(model, batches):
    images = batches[0][0]
    before = copy.deepcopy(model.state_dict())
    with evaluating(model), batch_statistics(model):
        inside = model(images)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    with torch.no_grad():
        assert torch.allclose(inside, copy.deepcopy(model).train()(images), atol=1e-6)
        assert not torch.allclose(inside, model(images), atol=1e-2)


def test_batch_statistics_puts_the_averages_back_after_an_error(model):
    mean = model[1].running_mean
    with pytest.raises(KeyError), batch_statistics(model):
        raise KeyError
    assert model[1].running_mean is mean


def test_every_module_keeps_its_mode(model):
    model.train()
    model[1].eval()
    with evaluating(model):
        assert not model[0].training
        assert not torch.is_grad_enabled()
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
