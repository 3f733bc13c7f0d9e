"""Linear tasks: their conditioning, their classes, and what a task is a function of."""

import pytest
import torch

from runner.datasets import check_dataset
from runner.datasets.linear_tasks import LinearTasks, load
from runner.errors import UserError
from runner.schema import DatasetSettings, EpisodeSettings

SETTINGS = EpisodeSettings(ways=2, shots=10, queries=25)


def test_inputs_spread_over_a_decade_and_a_half_along_fixed_directions():
    spread = torch.linalg.svdvals(LinearTasks(SETTINGS).mixing)
    assert spread[0].item() == pytest.approx(1.5, rel=1e-5)
    assert (spread[0] / spread[-1]).item() == pytest.approx(10**1.5, rel=1e-4)
    assert torch.equal(LinearTasks(SETTINGS).mixing, LinearTasks(SETTINGS).mixing)


def test_a_linear_function_of_the_inputs_tells_the_classes():
    data = LinearTasks(SETTINGS)
    task = data.task("train", 3, seed=0)
    assert task.support.shape == (20, 10)
    assert task.query.shape == (50, 10)
    hidden = torch.linalg.solve(data.mixing.double(), torch.cat([task.support, task.query]).double().T).T
    signs = 2.0 * torch.cat([task.support_targets, task.query_targets]) - 1
    weight = torch.zeros(10, dtype=torch.float64)
    for _ in range(10_000):  # the perceptron rule ends only where a plane divides the classes
        wrong = (hidden @ weight) * signs <= 0
        if not wrong.any():
            break
        first = int(wrong.nonzero()[0])
        weight += signs[first] * hidden[first]
    assert not ((hidden @ weight) * signs <= 0).any()


def test_a_task_is_a_function_of_seed_split_and_number():
    data = LinearTasks(SETTINGS)
    first = data.task("train", 3, seed=0).support
    assert torch.equal(first, LinearTasks(SETTINGS).task("train", 3, seed=0).support)
    assert not torch.equal(first, data.task("train", 4, seed=0).support)
    assert not torch.equal(first, data.task("train", 3, seed=1).support)
    assert torch.equal(data.task("test", 3, seed=0).support, data.task("test", 3, seed=1).support)
    assert torch.equal(data.tasks("train", [3, 4], seed=0).support[0], first)


def test_other_numbers_of_classes_are_refused():
    with pytest.raises(UserError, match="ways=2"):
        load(DatasetSettings(name="linear_tasks", episodes=EpisodeSettings(ways=5)), None, None)


def test_tasks_of_images_to_test_on_are_refused():
    settings = DatasetSettings(name="linear_tasks", episodes=EpisodeSettings(ways=2, test_sets=["glyph_episodes"]))
    with pytest.raises(UserError, match="only for tasks of images"):
        check_dataset(settings, "data", offline=True)
