"""Test tasks from other data sets than the training tasks: ``dataset.episodes.test_sets``.

Another set is read from where it lies in paths.data (or is generated or fetched) and brought to the training images'
size and channels; its pixels are normalised as the training images are, which the network has learned from. Of a set
of tasks the test classes are taken, of labelled images the test split with all its classes. Validation stays at home.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from runner.datasets import episode_folder, several
from runner.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from types import ModuleType

    from runner.datasets.episodes import EpisodeData
    from runner.datasets.images import Images, Limits
    from runner.schema import DatasetSettings

SETS = sorted({*several.SETS, *episode_folder.NAMES, episode_folder.TINY, "glyph_episodes", "omniglot_episodes"})


def check(settings: DatasetSettings, data_root: Path, offline: bool) -> None:
    """Raises UserError: an unknown set, or one whose files are missing."""
    for module, other in _others(settings, settings.image_size):
        module.check(other, data_root, offline)


def with_test_sets(data: EpisodeData, settings: DatasetSettings, limits: Limits, data_root: Path) -> EpisodeData:
    """``data``, in ``elsewhere`` the same for each of ``settings.episodes.test_sets``, with its test tasks of images.

    Raises:
        UserError: too few classes or images for the tasks, or colour images for a network that is trained on grey ones.
    """
    if settings.episodes is None or not settings.episodes.test_sets:
        return data
    found = {}
    for module, other in _others(settings, data.image_size):
        test, name = _test_images(module, other, data, limits, data_root)
        if test.shape[0] != data.channels:
            grey = test.images[:, :1]
            if not (grey == test.images).all():
                raise UserError(
                    f"dataset.episodes.test_sets: the images of {name} are coloured, and dataset={settings.name} "
                    "trains on grey ones"
                )
            test = replace(test, images=grey.expand(-1, data.channels, -1, -1))
        found[other.name] = replace(data, test=test, display_name=name)
    return replace(data, elsewhere=found)


def _test_images(
    module: ModuleType, other: DatasetSettings, data: EpisodeData, limits: Limits, data_root: Path
) -> tuple[Images, str]:
    """The images of the test classes, and the set's name for the screen."""
    from runner.datasets import episodes, images

    if other.episodes is not None:
        read = module.load(other, limits, data_root)
        return read.test, read.display_name
    read = module.load(other, images.Limits(), data_root)
    classes, count = episodes.smoke_sizes(data.settings, limits.train)
    rows = episodes.first_of_each(read.test.labels, count)
    test = read.test.take(rows[read.test.labels[rows] < (classes or len(read.class_names))])
    episodes.check_sizes(data.settings, "test", test, read.display_name)
    return test, read.display_name


def _others(settings: DatasetSettings, size: int | None) -> Iterator[tuple[ModuleType, DatasetSettings]]:
    """Module and settings of every set to test on. Raises UserError: there is none of that name, or it is the own."""
    from runner.datasets import MODULES

    for name in settings.episodes.test_sets:
        if name not in SETS:
            raise UserError(
                f"dataset.episodes.test_sets: there is no set '{name}' to test on; {did_you_mean(str(name), SETS)}"
            )
        if name == settings.name:
            raise UserError(f"dataset.episodes.test_sets: {name} is the data set itself, which is tested anyway")
        module = importlib.import_module(MODULES[name])
        episodes = replace(settings.episodes, test_sets=[], train_classes=None, train_ways=None, rotations=False)
        yield (
            module,
            replace(
                settings,
                name=name,
                path=None,
                target=None,
                arguments={},
                image_size=size,
                normalisation=None,
                episodes=episodes if hasattr(module, "KIND") else None,
            ),
        )
