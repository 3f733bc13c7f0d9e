"""Tasks over images of the user: miniImageNet, tieredImageNet, CIFAR-FS, CUB and the like, with their published splits.

``dataset.path`` is a folder, .tar, .tar.gz, .tar.bz2, .tar.xz or .zip of one of
- train/CLASS/image, val/CLASS/image and test/CLASS/image, each class in one split;
- images and the lists train.csv, val.csv and test.csv with the columns filename and label (miniImageNet's published
  splits), wherever the images lie.
``mini_imagenet_episodes``, ``tiered_imagenet_episodes``, ``cifar_fs_episodes`` and ``cub_episodes`` are such folders or
archives under their names in paths.data, where dataset.path names no other. ``tiny_imagenet_episodes`` takes the
training images of Tiny ImageNet instead (what ``dataset=tiny_imagenet`` reads) and divides its 200 classes, sorted by
WordNet id, into 100, 40 and 60 (Lee et al., arXiv:2110.02508).
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from runner.datasets import archive, files, image_folder, tiny_imagenet
from runner.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runner.datasets.episodes import EpisodeData
    from runner.datasets.images import Limits
    from runner.schema import DatasetSettings

KIND = "episodes"
TINY = "tiny_imagenet_episodes"
NAMES = {  # of sets that nobody may hand out here: below paths.data, a folder or an archive
    "mini_imagenet_episodes": "miniImageNet",
    "tiered_imagenet_episodes": "tieredImageNet",
    "cifar_fs_episodes": "CIFAR-FS",
    "cub_episodes": "CUB",
}
SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
LAYOUT = "train/CLASS/image, val/CLASS/image and test/CLASS/image, or images with train.csv, val.csv and test.csv"
PROPORTIONS = (0.5, 0.2)  # of Tiny ImageNet's classes for training and validation

Members = dict[str, dict[str, list[str]]]  # split -> class -> names of images


def check(settings: DatasetSettings, data_root: Path, offline: bool) -> None:
    if settings.name == TINY:
        tiny_imagenet.check(settings, data_root, offline)
        return
    archive.check(_place(settings, data_root))


def load(settings: DatasetSettings, limits: Limits, data_root: Path) -> EpisodeData:
    import torch

    from runner.datasets import decoded, episodes
    from runner.datasets.images import Images

    tiny = settings.name == TINY
    path = tiny_imagenet.place(settings, data_root) if tiny else _place(settings, data_root)
    classes, count = episodes.smoke_sizes(episodes.episode_settings(settings), limits.train)
    selection = f"{settings.name} {PROPORTIONS}" if tiny else settings.name
    key = decoded.key(files.fingerprint(path, times=True), selection, settings.image_size, classes, count)
    stored = decoded.read(key)
    if stored is not None:
        splits, names, _ = stored
    else:
        listed = archive.list_files(path)
        found = _tiny(path, listed) if tiny else arrange(path, listed)
        found = {
            split: {name: members[name][:count] for name in sorted(members)[:classes]}
            for split, members in found.items()
        }
        chosen = {split: [name for group in members.values() for name in group] for split, members in found.items()}
        pixels = image_folder.decode_all(path, chosen, settings.image_size)
        splits = {}
        for split, members in found.items():
            labels = torch.tensor([label for label, group in enumerate(members.values()) for _ in group])
            splits[split] = Images(pixels[split], labels, torch.arange(len(labels)))
        names = [name for members in found.values() for name in members]
        decoded.write(key, splits, names, [])
    named = "Tiny ImageNet" if tiny else NAMES.get(settings.name)
    shown = named or f"episode_folder:{path.resolve().stem.removesuffix('.tar')}"
    return episodes.assemble(settings, shown, splits, names)


def found(dataset: Mapping[str, Any], data_root: Path) -> Path | None:
    """The user's copy in the data root, whose content enters the key as that of ``dataset.path`` does."""
    name = NAMES.get(dataset["name"])
    places = [data_root / f"{name}{ending}" for ending in ("", *archive.ENDINGS)] if name else []
    return next((place for place in places if place.exists()), None)


def found_part(dataset: Mapping[str, Any], data_root: Path) -> Path | None:
    """A part of Tiny ImageNet in the data root, where the published zip is not there; None for the other sets."""
    return tiny_imagenet.found_part(dataset, data_root) if dataset["name"] == TINY else None


def _place(settings: DatasetSettings, data_root: Path) -> Path:
    """The folder or archive. Raises UserError where there is none."""
    if settings.path is not None:
        return files.user_path(settings.path)
    if settings.name not in NAMES:
        raise UserError(f"dataset={settings.name} needs dataset.path=PATH: {archive.KINDS} of {LAYOUT}")
    name, place = NAMES[settings.name], found({"name": settings.name}, data_root)
    if place is None:
        raise UserError(
            f"{name} is not in {data_root}: its publishers ask for registration, so nothing is fetched; put your copy "
            f"there as {name} or {name}.zip, or set dataset.path: {LAYOUT}"
        )
    return place


def arrange(path: Path, names: list[str]) -> Members:
    """Splits and classes from the files' names, or from the lists of the published splits.

    Raises:
        UserError: no images, another layout, a split that is missing, a class in two splits.
    """
    images = [
        name
        for name in names
        if PurePosixPath(name).suffix.lower() in image_folder.SUFFIXES
        and not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
    ]
    lists = {PurePosixPath(name).stem: name for name in names if name.lower().endswith(".csv")}
    found: Members = {}
    if set(lists) >= {"train", "val", "test"}:
        places = {PurePosixPath(name).name: name for name in images}
        counts = Counter(PurePosixPath(name).name for name in images)
        for name, content in archive.read_files(path, {lists[word] for word in ("train", "val", "test")}):
            split = SPLITS[PurePosixPath(name).stem]
            found[split] = {}
            for row in csv.DictReader(io.StringIO(content.decode())):
                if row.get("filename") not in places or not row.get("label"):
                    raise UserError(
                        f"dataset.path={path}: {name} names {row.get('filename')}, which is not among the images; its "
                        "columns must be filename and label"
                    )
                if counts[row["filename"]] > 1:
                    raise UserError(
                        f"dataset.path={path}: {name} names {row['filename']}, and {counts[row['filename']]} images "
                        "have this name; give train/CLASS/image, val/CLASS/image and test/CLASS/image instead"
                    )
                found[split].setdefault(row["label"], []).append(places[row["filename"]])
    else:
        for name in sorted(images):
            *_, split, group, _ = ("", "", *PurePosixPath(name).parts)
            if split in SPLITS:
                found.setdefault(SPLITS[split], {}).setdefault(group, []).append(name)
    missing = [word for word in ("train", "val", "test") if SPLITS[word] not in found]
    if missing:
        raise UserError(f"dataset.path={path} has no {missing[0]} classes; needs {LAYOUT}")
    for split, others in (("train", "validation"), ("train", "test"), ("validation", "test")):
        both = sorted(set(found[split]) & set(found[others]))
        if both:
            raise UserError(
                f"dataset.path={path}: the class {both[0]} is in {split} and in {others}; tasks need classes that were "
                "not trained on"
            )
    return {split: found[split] for split in ("train", "validation", "test")}


def _tiny(path: Path, names: list[str]) -> Members:
    layout = tiny_imagenet.arrange(path, names)
    groups: dict[str, list[str]] = {name: [] for name in layout.class_names}
    for name, label in zip(layout.names["train"], layout.classes["train"], strict=True):
        groups[layout.class_names[label]].append(name)
    first, second = (round(part * len(groups)) for part in PROPORTIONS)
    ordered = sorted(groups)
    parts = {"train": ordered[:first], "validation": ordered[first : first + second], "test": ordered[first + second :]}
    return {split: {name: groups[name] for name in chosen} for split, chosen in parts.items()}
