"""Test tasks from another data set than the training tasks: ``dataset.episodes.test_set``.

The other set is read from where it lies in paths.data (or is generated or fetched) and brought to the training images'
size and channels; its pixels are normalised as the training images are, which the network has learned from. Of a set
of tasks the test classes are taken, of labelled images the test split with all its classes. Validation stays at home.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from types import ModuleType

    from runner.datasets.episodes import EpisodeData
    from runner.datasets.images import Limits
    from runner.schema import DatasetSettings

SETS = (
    "cifar10",
    "cifar100",
    "cifar_fs_episodes",
    "cub_episodes",
    "digits",
    "fashion_mnist",
    "glyph_episodes",
    "mini_imagenet_episodes",
    "omniglot_episodes",
    "tiered_imagenet_episodes",
    "tiny_imagenet",
    "tiny_imagenet_episodes",
)


def check(settings: DatasetSettings, data_root: Path, offline: bool) -> None:
    """Raises UserError: an unknown set, or one whose files are missing."""
    found = _other(settings, settings.image_size)
    if found is not None:
        module, other = found
        module.check(other, data_root, offline)


def with_test_tasks(data: EpisodeData, settings: DatasetSettings, limits: Limits, data_root: Path) -> EpisodeData:
    """``data`` whose test tasks are of ``settings.episodes.test_set``; itself where that is null.

    Raises:
        UserError: too few classes or images for the tasks, or colour images for a network that is trained on grey ones.
    """
    import torch

    from runner.datasets import episodes, images

    found = _other(settings, data.image_size)
    if found is None:
        return data
    module, other = found
    if getattr(module, "KIND", "images") == episodes.KIND:
        read = module.load(other, limits, data_root)
        test = read.test
    else:
        read = module.load(other, images.Limits(), data_root)
        classes, count = episodes.smoke_sizes(data.settings, limits.train)
        rows = episodes.first_of_each(read.test.labels, count)
        test = read.test.take(rows[read.test.labels[rows] < (classes or len(read.class_names))])
        episodes.check_sizes(data.settings, "test", test, read.display_name)
    if test.shape[0] != data.channels:
        grey = test.images[:, :1]
        if not torch.equal(grey.expand_as(test.images), test.images):
            raise UserError(
                f"dataset.episodes.test_set={other.name}: its images are coloured, and dataset={settings.name} trains "
                "on grey ones"
            )
        test = replace(test, images=grey.expand(-1, data.channels, -1, -1))
    return replace(
        data,
        test=test,
        display_name=f"{data.display_name}, tested on {read.display_name}",
        class_names=[*data.class_names, *(f"{read.display_name}: {name}" for name in read.class_names)],
    )


def _other(settings: DatasetSettings, size: int | None) -> tuple[ModuleType, DatasetSettings] | None:
    """Module and settings of the other set. Raises UserError: there is none of that name."""
    from runner.datasets import MODULES

    name = None if settings.episodes is None else settings.episodes.test_set
    if name is None:
        return None
    if name not in SETS:
        raise UserError(
            f"dataset.episodes.test_set={name}: there is no such set to test on; {did_you_mean(name, SETS)}"
        )
    episodes = replace(settings.episodes, test_set=None, train_classes=None, train_ways=None, rotations=False)
    module = importlib.import_module(MODULES[name])
    return module, replace(
        settings,
        name=name,
        path=None,
        target=None,
        arguments={},
        image_size=size,
        normalisation=None,
        episodes=episodes if hasattr(module, "KIND") else None,
    )
