"""Sequences of tasks over clients, and the measures of continual learning."""

import numpy
import pytest
import torch

from runner.datasets.images import Images
from runner.errors import UserError
from runner.methods.federated.task_streams import (
    TaskStream,
    average_accuracy,
    draw_sequences,
    draw_tasks,
    fall_on_plateau,
    forgetting,
)


def generator(seed: int = 0):
    return numpy.random.default_rng(seed)


@pytest.mark.parametrize(("families", "clients", "tasks"), [(10, 5, 4), (5, 5, 4), (20, 5, 10), (4, 2, 2), (7, 3, 7)])
@pytest.mark.parametrize("seed", range(3))
def test_sequences_share_families_evenly_at_different_times(families, clients, tasks, seed):
    sequences = draw_sequences(families, clients, tasks, generator(seed))
    assert all(len(set(own)) == tasks for own in sequences)
    uses = numpy.bincount(numpy.concatenate(sequences), minlength=families)
    assert uses.max() - uses.min() <= 1
    if uses.max() <= tasks:
        times = [(family, time) for own in sequences for time, family in enumerate(own)]
        assert len(set(times)) == len(times)


def test_the_images_of_a_shared_task_are_dealt_out():
    labels = {"train": torch.arange(8).repeat(12), "validation": torch.arange(8).repeat(4), "test": torch.arange(8)}
    settings = TaskStream(clients=4, tasks=2, classes=2)
    tasks = draw_tasks(labels, 8, settings, generator())
    seen = torch.cat([task.train for own in tasks for task in own])
    assert torch.equal(seen.sort()[0], torch.arange(96))  # every image once
    for own in tasks:
        for task in own:
            assert torch.bincount(labels["train"][task.train], minlength=8)[task.classes].tolist() == [6, 6]
            assert labels["test"][task.test].tolist() == task.classes  # of all who share it
    images = Images(torch.zeros(96, 1, 2, 2, dtype=torch.uint8), labels["train"], torch.arange(96))
    taken = tasks[0][0].take(images, "train")
    assert taken.labels.unique().tolist() == [0, 1]
    assert torch.equal(torch.tensor(tasks[0][0].classes)[taken.labels], labels["train"][tasks[0][0].train])


def test_what_cannot_be_dealt_is_refused():
    labels = {"train": torch.arange(4), "validation": torch.arange(4), "test": torch.arange(4)}
    with pytest.raises(UserError, match="4 classes make 2 tasks of 2"):
        draw_tasks(labels, 4, TaskStream(clients=1, tasks=3, classes=2), generator())
    with pytest.raises(UserError, match="a task has no train images"):
        draw_tasks(labels, 4, TaskStream(clients=3, tasks=2, classes=2), generator())


def test_accuracy_and_forgetting_by_hand():
    one = [[0.9], [0.7, 0.8], [0.8, 0.6, 1.0]]  # task 0: best 0.9, now 0.8; task 1: best 0.8, now 0.6
    two = [[0.5], [0.6, 0.5], [0.7, 0.5, 0.6]]  # task 0 got better: -0.1; task 1 stayed
    assert average_accuracy([one, two]) == pytest.approx((0.8 + 0.6) / 2)
    assert forgetting([one, two]) == pytest.approx((0.1 + 0.2 - 0.1 + 0.0) / 4)
    assert forgetting([[[0.4]]]) == 0


def test_the_rate_falls_after_three_rounds_without_a_lower_loss():
    rate = {"rate": 0.9, "lowest": float("inf"), "patience": 3}
    rates = []
    for loss in (1.0, 1.1, 1.2, 0.9, 0.9, 0.9, 0.9, 1.0):
        fall_on_plateau(rate, loss, 3, 3.0)
        rates.append(round(rate["rate"], 6))
    assert rates == [0.9] * 6 + [0.3] * 2
