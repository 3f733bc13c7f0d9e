"""Partitions of examples over clients, and the mean of what they send."""

import numpy
import pytest
import torch

from runner.methods.federated.clients import (
    RunningMean,
    dense_bytes,
    dirichlet_parts,
    iid_parts,
    participants,
    shard_parts,
    sparse_bytes,
)

LABELS = torch.arange(10).repeat(60)  # 600 examples of 10 classes


def generator():
    return numpy.random.default_rng(0)


def shares(part: torch.Tensor) -> torch.Tensor:
    return torch.bincount(LABELS[part], minlength=10) / len(part)


@pytest.mark.parametrize(
    "parts",
    [
        iid_parts(LABELS, 7, generator()),
        shard_parts(LABELS, 7, 2, generator()),
        dirichlet_parts(LABELS, 7, 0.1, generator()),
        dirichlet_parts(LABELS, 7, 1e-4, generator()),
    ],
)
def test_every_example_has_one_client_and_sizes_are_nearly_equal(parts):
    assert torch.equal(torch.cat(parts).sort()[0], torch.arange(600))
    assert max(map(len, parts)) - min(map(len, parts)) <= 2


def test_shards_give_few_classes():
    parts = shard_parts(LABELS, 10, 2, generator())  # 20 shards of 30: half a class each
    assert max(int((shares(part) > 0).sum()) for part in parts) == 2


def test_a_large_concentration_is_uniform_and_a_small_one_is_not():
    even = torch.stack([shares(part) for part in dirichlet_parts(LABELS, 3, 1e6, generator())])
    assert (even - 0.1).abs().max() < 4 * (0.1 * 0.9 / 200) ** 0.5  # sampling error
    first = dirichlet_parts(LABELS, 10, 0.05, generator())[0]
    assert shares(first).max() > 0.5


def test_an_absent_class_is_no_class():
    labels = torch.tensor([0, 2] * 10)
    assert sum(map(len, dirichlet_parts(labels, 4, 0.5, generator()))) == 20


def test_at_least_one_client_takes_part():
    assert len(participants(100, 0.1, generator())) == 10
    assert len(participants(100, 0.001, generator())) == 1
    assert len(set(participants(20, 1.0, generator()))) == 20


def test_the_mean_is_weighted_by_the_number_of_examples_and_survives_a_checkpoint():
    mean = RunningMean()
    mean.add({"weight": torch.tensor([1.0, 2.0]), "count": torch.tensor(3)}, 30)
    resumed = RunningMean()
    resumed.load_state_dict(mean.state_dict())
    resumed.add({"weight": torch.tensor([5.0, 0.0]), "count": torch.tensor(4)}, 10)
    found = resumed.take()
    assert torch.equal(found["weight"], torch.tensor([2.0, 1.5])) and found["count"] == 4
    assert resumed.weight == 0 and not resumed.sums


def test_bytes():
    state = {"a": torch.tensor([[0.0, 1.0], [2.0, 0.0]]), "b": torch.tensor([0.0, 3.0])}
    assert dense_bytes(state) == 6 * 4
    assert sparse_bytes(state) == 3 * 8
