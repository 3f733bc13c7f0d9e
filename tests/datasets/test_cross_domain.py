"""Test tasks from another set than the one that is trained on."""

import dataclasses

import pytest
import torch
from PIL import Image

from runner.datasets import check_dataset, load_data
from runner.datasets.glyphs import glyphs
from runner.datasets.images import Normalisation
from runner.errors import UserError
from runner.schema import DatasetSettings, EpisodeSettings

GREY = {"mean": [10.0], "std": [100.0]}


def settings(name="glyph_episodes", test_sets=("digits",), **episodes):
    return DatasetSettings(
        name=name,
        normalisation=GREY,
        episodes=EpisodeSettings(**{"queries": 10, "test_sets": list(test_sets), **episodes}),
    )


def test_test_tasks_are_of_the_other_sets_test_split_in_the_training_images_form(scale):
    data = load_data(settings(), scale("paper", None), data_root="unused", offline=True)
    assert data.describe().endswith("10 queries a class; tested on digits too (10 classes)")
    other = data.elsewhere["digits"]
    task = other.task("test", 0)
    assert task.query.shape == (50, 1, 28, 28)
    assert task.query.min() == pytest.approx(-0.1)  # normalised as the glyphs are: no pixel is below 0
    alone = load_data(
        DatasetSettings(name="digits", image_size=28), scale("paper", None), data_root="unused", offline=True
    )
    assert torch.equal(other.test.images, alone.test.images[:, :1])
    home = load_data(settings(test_sets=()), scale("paper", None), data_root="unused", offline=True)
    for split in ("train", "validation", "test"):
        assert torch.equal(data.task(split, 4, seed=1).query, home.task(split, 4, seed=1).query)


def test_test_classes_of_another_set_of_tasks(shared_data, scale):
    own = settings("omniglot_episodes", ["glyph_episodes"], train_classes=30)
    own = dataclasses.replace(own, path=str(shared_data / "omniglot"), image_size=28)
    data = load_data(own, scale("paper", None), data_root="unused", offline=True)
    assert torch.equal(data.elsewhere["glyph_episodes"].test.images[:20, 0], glyphs(140))


def test_a_smoke_run_reads_few_images_of_the_other_set_too(scale):
    data = load_data(settings(queries=3), scale("smoke", 100), data_root="unused", offline=True)
    assert torch.bincount(data.elsewhere["digits"].test.labels).tolist() == [4] * 5


def test_grey_images_have_equal_channels_for_a_colour_network(shared_data, scale):
    own = dataclasses.replace(
        settings("tiny_imagenet_episodes", ["glyph_episodes"]),
        path=str(shared_data / "tiny_imagenet_100_per_class.tar.xz"),
        normalisation=None,
        image_size=32,
    )
    data = load_data(own, scale("smoke", 100), data_root="unused", offline=True)
    test = data.elsewhere["glyph_episodes"].test
    assert test.shape == (3, 32, 32) and torch.equal(test.images[:, 0], test.images[:, 2])


def test_coloured_images_for_a_network_trained_on_grey_ones_are_refused(scale, tmp_path):
    for name in ("train/a", "train/b", "val/c", "val/d", "test/e", "test/f"):
        (tmp_path / "CUB" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (28, 28), (90, 20, number)).save(tmp_path / "CUB" / name / f"{number}.png")
    own = settings(test_sets=["cub_episodes"], ways=2, queries=1)
    with pytest.raises(
        UserError, match="the images of CUB are coloured, and dataset=glyph_episodes trains on grey ones"
    ):
        load_data(own, scale("paper", None), data_root=tmp_path, offline=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test_sets": ["digit"]}, r"test_sets: there is no set 'digit' to test on.*did you mean digits\?"),
        ({"test_sets": ["glyph_episodes"]}, "glyph_episodes is the data set itself, which is tested anyway"),
        ({"test_sets": ["cub_episodes"]}, "CUB is not in nowhere"),
        ({"name": "sinusoid"}, "only tasks of images are tested on other sets too; leave it out with dataset=sinusoid"),
    ],
)
def test_what_cannot_be_tested_on_is_said_before_anything_is_read(changed, message):
    with pytest.raises(UserError, match=message):
        check_dataset(settings(**changed), "nowhere", offline=True)


def test_too_few_classes_for_the_tasks(scale):
    with pytest.raises(UserError, match=r"11-way tasks, but .* has 10 test classes"):
        load_data(settings(ways=11, queries=5), scale("paper", None), data_root="unused", offline=True)


def test_the_normalisation_of_given_weights_holds_for_other_sets_too(scale):
    data = load_data(settings(), scale("smoke", 100), data_root="unused", offline=True)
    data.normalisation = Normalisation(torch.tensor([0.0]), torch.tensor([255.0]))  # as the context does
    for tasks in (data.to(torch.device("cpu")), data.elsewhere["digits"]):
        assert tasks.task("test", 0).query.min() == 0
