"""Any torch Dataset by dataset.target=package:function."""

import pytest
import torch
import torch_datasets
from PIL import Image

from runner.compose import compose
from runner.datasets import check_dataset, load_data
from runner.errors import UserError
from runner.plan import plan
from runner.schema import DatasetSettings


@pytest.fixture
def load(scale):
    def load(function="pictures", limits=(), name="torch_dataset", **settings):
        settings = DatasetSettings(name=name, target=f"torch_datasets:{function}", **settings)
        return load_data(settings, scale("paper", *limits), data_root="unused", offline=True)

    return load


def test_pil_images_become_rgb(load):
    data = load()
    assert (data.train.images.shape, data.train.images.dtype) == ((30, 3, 16, 16), torch.uint8)
    assert data.train.images[:, 2, 5, 5].tolist() == [2 * row for row in range(30)]
    assert data.train.labels.tolist() == [0, 1, 2] * 10 and len(data.test) == 9
    assert (data.class_names, data.display_name) == (["0", "1", "2"], "torch_datasets:pictures")


def test_uint8_tensors_keep_their_channels(load):
    data = load(arguments={"kind": "uint8", "side": 20})
    assert data.train.images.shape == (30, 1, 20, 20) and data.channels == 1
    assert load(arguments={"kind": "uint8", "side": 20}, image_size=10).train.images[7].unique().tolist() == [14]
    assert load(image_size=8).test.images.shape == (9, 3, 8, 8)


@pytest.mark.parametrize("function", ["pictures", "with_targets"])
def test_limits_are_balanced_and_rows_are_those_of_the_split(load, function):
    data = load(function, limits=(6, 3))
    assert data.train.index.tolist() == [0, 1, 2, 3, 4, 5] and data.test.index.tolist() == [0, 1, 2]
    assert len(load(function, train_size=9).train) == 9


def test_targets_save_reading(load):
    data = load("with_targets", limits=(6, 3))
    assert torch_datasets.MADE["train"].read == [0, 1, 2, 3, 4, 5]
    assert data.class_names == ["a", "b", "c", "none of them"]


def test_a_subset_and_a_name_of_its_own(load):
    data = load("part", name="mine")
    assert data.train.images[:, 0, 0, 0].tolist() == [6, 8, 10]
    assert (data.display_name, data.name) == ("mine", "mine")


def test_the_path_is_passed(load, tmp_path):
    Image.new("RGB", (16, 16), (1, 2, 3)).save(tmp_path / "one.png")
    assert load("of_path", path=str(tmp_path / "one.png")).train.images[0, :, 0, 0].tolist() == [1, 2, 3]
    assert load("growing", image_size=16).train.images.shape == (4, 3, 16, 16)


@pytest.mark.parametrize(
    ("function", "settings", "words"),
    [
        ("pictures", {"arguments": {"kind": "float"}}, r"train\[0\] is a torch.float32 tensor.*without ToTensor"),
        ("pictures", {"arguments": {"label": -1}}, "labels must be 0"),
        ("pictures", {"arguments": {"label": "cat"}}, "has the label 'cat'"),
        ("part", {"path": "."}, r"cannot be called as function\(split, path=...\)"),
        ("growing", {}, r"train\[1\] has the shape .* set dataset\.image_size"),
        ("growing", {"arguments": {"side": 3}}, r"cannot be called as function\(split, side=...\)"),
        ("unlabelled", {}, r"must be \(image, label\)"),
        ("stream", {}, "map-style"),
        ("picture", {}, "did you mean pictures"),
        ("part", {"name": "digits"}, "dataset=digits is built in; use dataset=torch_dataset"),
        ("part", {"train_size": 4}, "has 3 train images"),
    ],
)
def test_wrong_ones_say_what_to_do(load, function, settings, words):
    with pytest.raises(UserError, match=words):
        load(function, **settings)


def test_without_a_target():
    with pytest.raises(UserError, match=r"needs dataset\.target"):
        check_dataset(DatasetSettings(name="torch_dataset"), "data", offline=True)


def test_key_and_code():
    def planned(*overrides):
        return plan(compose(["method=supervised", "dataset=torch_dataset", *overrides]).config)

    target = "dataset.target=torch_datasets:pictures"
    keys = [planned(*words).key for words in ([], [target], [target, "+dataset.arguments.side=8"])]
    assert len(set(keys)) == 3
    assert planned(target).code() != planned().code()
