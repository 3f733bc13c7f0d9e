"""Data sets: found and checked before anything heavy is imported, then loaded whole into memory, images as uint8.

A set that memory does not hold (``imagenet``) is read from its files batch by batch instead (``image_files``).

A data set is one module with two functions (see ``digits`` for the shortest):

    check(settings, data_root, offline)           light: missing files, unreadable paths, forbidden downloads
    load(settings, limits, data_root) -> Loaded   imports torch; called after ``check``

What is not labelled images says so in ``KIND``, and its ``load`` returns the finished data: tasks (``episodes``),
tasks of regression (``regression episodes``, see ``sinusoid``), environments, graphs, series ... Such data has
``to(device)``, ``describe()`` (a line about it) and ``display_name``. A kind with other settings than images
defines them in a class ``Settings`` of its module, below ``runner.schema.AnyDataset``; ``none`` is for methods
that take no data.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.datasets import cross_domain, files
from runner.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runner.datasets.episodes import EpisodeData
    from runner.datasets.images import ImageData
    from runner.datasets.linear_tasks import LinearTasks
    from runner.datasets.sinusoid import SinusoidData
    from runner.schema import AnyDataset, Scale

NAMED = ("digits", "fashion_mnist", "image_folder", "imagenet", "several", "tiny_imagenet", "torch_dataset")
MODULES = {
    **{name: f"runner.datasets.{name}" for name in NAMED},
    **dict.fromkeys(("cifar10", "cifar100"), "runner.datasets.cifar"),
    **dict.fromkeys(
        (
            "cifar_fs_episodes",
            "cub_episodes",
            "episode_folder",
            "mini_imagenet_episodes",
            "tiered_imagenet_episodes",
            "tiny_imagenet_episodes",
        ),
        "runner.datasets.episode_folder",
    ),
    "glyph_episodes": "runner.datasets.glyphs",
    "omniglot_episodes": "runner.datasets.omniglot",
    "linear_tasks": "runner.datasets.linear_tasks",
    "sinusoid": "runner.datasets.sinusoid",
    **dict.fromkeys(("cora", "citeseer", "graph_file"), "runner.datasets.graphs"),
    "block_graph": "runner.datasets.block_graph",
    "gestures": "runner.datasets.gestures",
    "series_file": "runner.datasets.series_file",
    "digit_tokens": "runner.datasets.digit_tokens",
    "listops": "runner.datasets.listops",
    "token_file": "runner.datasets.token_file",
    "shifted_gaussians": "runner.datasets.shifted_gaussians",
    "two_sample_file": "runner.datasets.two_samples",
    **dict.fromkeys(
        ("environment", "halfcheetah", "hopper", "pendulum", "walker2d"),
        "runner.datasets.environments",
    ),
    **dict.fromkeys(("pendulum_logged", "transitions"), "runner.datasets.transitions"),
    "ising_file": "runner.datasets.ising",
    "ising_models": "runner.datasets.ising_models",
    "none": "runner.datasets.none",
}

# Their content is fixed by published checksums wherever the files lie, so a path says nothing about the result.
CHECKSUMMED = {"cifar10", "cifar100", "fashion_mnist"}


def check_dataset(settings: AnyDataset, data_root: str | Path, offline: bool) -> None:
    """Find in milliseconds what would stop ``load_data``: unknown name, missing or unreadable path, forbidden download.

    Imports neither torch nor numpy, but for the module that ``dataset.target`` names. What only shows when an archive
    is read to its end is left to ``load_data``.

    Raises:
        UserError: with the cure.
    """
    _module(settings).check(settings, Path(data_root).expanduser(), offline)
    tasks = getattr(settings, "episodes", None)
    if tasks is not None and tasks.test_sets:
        if kind_of(settings) != "episodes":
            raise UserError(
                "dataset.episodes.test_sets: only tasks of images are tested on other sets too; leave it out with "
                f"dataset={settings.name}"
            )
        cross_domain.check(settings, Path(data_root).expanduser(), offline)
    augmentation = getattr(settings, "augmentation", None)
    for name in ("policy", "erasing"):
        value = getattr(augmentation, name, None)
        if value and (kind_of(settings) != "images" or settings.name == "imagenet"):
            raise UserError(
                f"dataset.augmentation.{name}={value}: only for images that memory holds; leave it out with "
                f"dataset={settings.name}"
            )


def kind_of(settings: AnyDataset) -> str:
    """images, episodes, graph ...: what ``data`` of a method's class must name. Raises UserError for unknown names."""
    return getattr(_module(settings), "KIND", "images")


def settings_class(name: object) -> type:
    """The typed settings of the data set ``name``; those of images where there is none of that name."""
    from runner.schema import DatasetSettings

    module = importlib.import_module(MODULES[name]) if name in MODULES else None
    return getattr(module, "Settings", DatasetSettings)


def fingerprint(name: str, path: str | None) -> str | None:
    """What ``dataset.path`` holds, for a run's key: the same content gives the same text wherever it lies.

    sha256 of a file or archive (cached by size and time), of the names and sizes of a folder's files (``imagenet``: of
    few sizes); None without a path, and for sets whose content is checked against published checksums.

    Raises:
        UserError: the path is missing or cannot be read.
    """
    if path is None or name in CHECKSUMMED:
        return None
    if name == "imagenet":
        from runner.datasets import imagenet

        return imagenet.fingerprint(files.user_path(path))
    return files.fingerprint(files.user_path(path))


def found_in_root(dataset: Mapping[str, Any], data_root: str | Path) -> Path | None:
    """What a set without ``path`` reads from the data root, where that is the user's own and no published file."""
    module = importlib.import_module(MODULES[dataset["name"]]) if dataset["name"] in MODULES else None
    looks = [getattr(module, name) for name in ("found", "found_part") if hasattr(module, name)]
    return next((place for look in looks if (place := look(dataset, Path(data_root).expanduser()))), None)


def load_data(
    settings: AnyDataset, scale: Scale, *, data_root: str | Path, offline: bool
) -> ImageData | EpisodeData | LinearTasks | SinusoidData:
    """Read, cap and split a data set. Of tasks, smoke alone reads fewer classes and images. Another kind gets the caps.

    The caps are class-balanced and take the first images of every class: ``settings.train_size`` and ``test_size`` win
    over the scale's, except at smoke, where the smaller holds. The validation part is taken after the caps from the end
    of every class of the training split; the test split is never divided. Without ``settings.normalisation`` the
    statistics are those of the training images that remain.

    Raises:
        UserError: whatever ``check_dataset`` finds, a failed download, damaged files, sizes that cannot be met.
    """
    from runner.datasets import images

    data_root = Path(data_root).expanduser()
    check_dataset(settings, data_root, offline)
    _whole_at_paper_scale(settings, scale, data_root)
    limits = images.Limits(
        train=_limit(getattr(settings, "train_size", None), scale.max_train_examples, scale.name),
        test=_limit(getattr(settings, "test_size", None), scale.max_test_examples, scale.name),
    )
    kind = kind_of(settings)
    if kind.endswith("episodes") and scale.name != "smoke":
        limits = images.Limits()
    if kind == "episodes":
        own = _module(settings).load(settings, limits, data_root)
        return cross_domain.with_test_sets(own, settings, limits, data_root)
    if kind != "images":
        return _module(settings).load(settings, limits, data_root)
    loaded = _module(settings).load(settings, limits, data_root)
    for note in loaded.notes:
        print(f"{loaded.display_name}: {note}", file=sys.stderr)
    return images.assemble(loaded, settings, limits)


def _whole_at_paper_scale(settings: AnyDataset, scale: Scale, data_root: Path) -> None:
    look = getattr(_module(settings), "found_part", None)
    if look is None or scale.name != "paper" or settings.path is not None:
        return
    part = look({"name": settings.name}, data_root)
    if part is not None:
        raise UserError(
            f"dataset={settings.name}: {part} is a part of the set, and scale=paper is for the whole; "
            f"dataset.path={part} takes the part all the same"
        )


def _limit(wished: int | None, of_scale: int | None, scale: str) -> int | None:
    if wished is None:
        return of_scale
    return min(wished, of_scale) if scale == "smoke" and of_scale is not None else wished


def _module(settings: AnyDataset):
    name = settings.name
    if getattr(settings, "target", None) is not None:
        if name in MODULES and name != "torch_dataset":
            raise UserError(
                f"dataset.target={settings.target}: dataset={name} is built in; use dataset=torch_dataset, or a config "
                "of your own with another name"
            )
        name = "torch_dataset"
    if name not in MODULES:
        raise UserError(f"dataset={name}: there is no such data set; {did_you_mean(name, MODULES)}")
    return importlib.import_module(MODULES[name])
