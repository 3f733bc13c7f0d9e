"""Several image sets as one."""

import pytest
import torch

from runner.datasets import load_data
from runner.errors import UserError
from runner.schema import DatasetSettings


@pytest.fixture
def load(scale, tmp_path):
    def load(name, root=tmp_path / "data", **settings):
        return load_data(DatasetSettings(name=name, **settings), scale("paper"), data_root=root, offline=True)

    return load


def test_classes_follow_one_another(load):
    alone = load("digits", image_size=8)
    twice = load("several", arguments={"sets": ["digits", "digits"]}, image_size=8)
    count = len(alone.train)
    assert twice.num_classes == 20 and len(twice.train) == 2 * count and len(twice.test) == 2 * len(alone.test)
    assert torch.equal(twice.train.images[count:], alone.train.images)
    assert torch.equal(twice.train.labels[count:], alone.train.labels + 10)
    assert twice.class_names[0] == "digits: 0" and torch.equal(twice.train.index, torch.arange(2 * count))


def test_limits_hold_for_all_classes_together(load):
    data = load("several", arguments={"sets": ["digits", "digits"]}, image_size=8, train_size=60, test_size=40)
    assert torch.bincount(data.train.labels).tolist() == [3] * 20
    assert torch.bincount(data.test.labels).tolist() == [2] * 20


@pytest.mark.parametrize(
    ("arguments", "size", "message"),
    [
        ({}, 8, "give a list"),
        ({"sets": []}, 8, "give a list"),
        ({"sets": ["digit"]}, 8, "no 'digit'"),
        ({"sets": ["digits"], "names": []}, 8, "takes sets alone"),
        ({"sets": ["digits"]}, None, "needs dataset.image_size"),
    ],
)
def test_wrong_requests(load, arguments, size, message):
    with pytest.raises(UserError, match=message):
        load("several", arguments=arguments, image_size=size)


def test_real_sets(shared_data, load):
    arguments = {"sets": ["digits", "fashion_mnist"]}
    data = load("several", shared_data, arguments=arguments, image_size=14, train_size=4442)
    assert torch.bincount(data.train.labels).tolist()[10:] == [300] * 10
    assert data.train.shape == (3, 14, 14)
