"""Several image sets as one: ``dataset.arguments.sets``, a list of names; the classes of the first come first.

Tasks of unlike data, as federated and continual learning want them. Every set is read from where it lies in paths.data
(or is fetched), at one ``image_size``. A limit on the training or test images holds for all classes together, balanced.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from types import ModuleType

    from runner.datasets.images import Images, Limits, Loaded
    from runner.schema import DatasetSettings

SETS = ("digits", "fashion_mnist", "cifar10", "cifar100", "tiny_imagenet")


def check(settings: DatasetSettings, data_root: Path, offline: bool) -> None:
    if settings.path is not None:
        raise UserError(f"dataset.path={settings.path}: the sets of dataset=several are read from paths.data")
    if settings.image_size is None:
        raise UserError("dataset=several needs dataset.image_size, the side to which all sets are brought")
    for module, own in _members(settings):
        module.check(own, data_root, offline)


def load(settings: DatasetSettings, limits: Limits, data_root: Path) -> Loaded:
    import torch

    from runner.datasets.images import Images, Limits, Loaded

    parts = [(own.name, module.load(own, Limits(), data_root)) for module, own in _members(settings)]

    def joined(split: str) -> Images:
        images, labels, first = [], [], 0
        for _, part in parts:
            found = getattr(part, split)
            images.append(found.images)
            labels.append(found.labels + first)
            first += len(part.class_names)
        return Images(torch.cat(images), torch.cat(labels), torch.arange(sum(map(len, labels))))

    names = [f"{name}: {label}" for name, part in parts for label in part.class_names]
    title = " + ".join(part.display_name for _, part in parts)
    return Loaded(title, joined("train"), joined("test"), names, [note for _, part in parts for note in part.notes])


def _members(settings: DatasetSettings) -> Iterator[tuple[ModuleType, DatasetSettings]]:
    """Module and settings of every set. Raises UserError: no sets, or one that cannot be joined."""
    import importlib

    from runner.datasets import MODULES

    unknown = [name for name in settings.arguments if name != "sets"]
    if unknown:
        raise UserError(f"dataset.arguments.{unknown[0]}: dataset=several takes sets alone")
    names = settings.arguments.get("sets")
    if not isinstance(names, list) or not names:
        raise UserError("dataset.arguments.sets: give a list of data sets, such as [digits,fashion_mnist]")
    for name in names:
        if name not in SETS:
            raise UserError(f"dataset.arguments.sets: there is no '{name}' to join; {did_you_mean(str(name), SETS)}")
        own = replace(settings, name=name, arguments={}, train_size=None, test_size=None)
        yield importlib.import_module(MODULES[name]), own
