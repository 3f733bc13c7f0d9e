"""ImageNet-1k (ILSVRC 2012, Russakovsky et al., arXiv:1409.0575), or any set laid out as train/WNID and val/WNID.

It needs an account at image-net.org, so it is not downloaded here. ``dataset.path`` is the folder with train/ and val/,
as torchvision's ImageNet unpacks the archives. The validation images are the test split. Images stay in their files and
are decoded on the fly (``image_files``). Classes are WordNet ids, sorted: the order of torchvision's weights.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from runner.datasets import files
from runner.datasets.image_folder import SUFFIXES
from runner.errors import UserError

if TYPE_CHECKING:
    from runner.datasets.images import Limits, Loaded
    from runner.schema import DatasetSettings

SPLITS = {"train": "train", "test": "val"}
ENDINGS = tuple(SUFFIXES)
ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
LAYOUT = "train/WNID/*.JPEG and val/WNID/*.JPEG"
UNPACK = (
    "torchvision.datasets.ImageNet(FOLDER, split='val') sorts them, from ILSVRC2012_img_val.tar and "
    "ILSVRC2012_devkit_t12.tar.gz in FOLDER"
)


def check(settings: DatasetSettings, data_root: Path, offline: bool) -> None:
    if settings.path is None:
        raise UserError(
            f"dataset=imagenet needs dataset.path=FOLDER with {LAYOUT}; the images come from image-net.org, with an "
            "account"
        )
    _folders(files.user_path(settings.path))
    for name, example in (("image_size", "224"), ("normalisation", "its default")):
        if getattr(settings, name) is None:
            raise UserError(f"dataset.{name}=null: imagenet is not read beforehand to find it; set {example}")
    if settings.augmentation.crop_padding:
        raise UserError(
            f"dataset.augmentation.crop_padding={settings.augmentation.crop_padding}: imagenet's training views are "
            "random parts, resized; set 0"
        )


def load(settings: DatasetSettings, limits: Limits, data_root: Path) -> Loaded:
    import numpy
    import torch

    from runner.datasets.image_files import ImageFiles
    from runner.datasets.images import Loaded

    root = files.user_path(settings.path)
    folders = _folders(root)
    class_names = sorted(folders["train"])
    parts = {}
    for split, found in folders.items():
        lacking = sorted(set(class_names) ^ set(found))
        if lacking:
            raise UserError(f"dataset.path={root}: the class {lacking[0]} is not in both train and val; needs {LAYOUT}")
        names, labels = [], []
        for label, name in enumerate(class_names):
            images = _images(found[name])
            if not images:
                raise UserError(f"dataset.path={root}: {found[name]} holds no images; needs {LAYOUT}")
            names += [f"{name}/{image}" for image in images]
            labels += [label] * len(images)
        parts[split] = ImageFiles(
            root / SPLITS[split],
            numpy.array([os.fsencode(name) for name in names]),
            torch.tensor(labels, dtype=torch.int64),
            torch.arange(len(names)),
            settings.image_size,
        )
    return Loaded("ImageNet" if len(class_names) == 1000 else f"imagenet:{root.name}", **parts, class_names=class_names)


def fingerprint(root: Path) -> str:
    """sha256 over the names of all images, and the size of the first of every class.

    The sizes of 1.3 million files would take longer to ask for than many a run; copies at another resolution differ in
    nearly every file.
    """
    digest = hashlib.sha256()
    for split, folders in _folders(root).items():
        for name in sorted(folders):
            images = _images(folders[name])
            size = (folders[name] / images[0]).stat().st_size if images else 0
            digest.update("\0".join([split, name, str(size), *images, ""]).encode(errors="surrogateescape"))
    return "images:" + digest.hexdigest()


def _folders(root: Path) -> dict[str, dict[str, Path]]:
    """The class folders of each split by name.

    Raises:
        UserError: archives, another layout, the validation images unsorted; with the cure.
    """
    if not root.is_dir():
        raise UserError(f"dataset.path={root} is a file; needs a folder with {LAYOUT}: {UNPACK}, split='train' too")
    found = {}
    for split, folder in SPLITS.items():
        place = root / folder
        if not place.is_dir():
            archives = [name for name in ARCHIVES if (root / name).is_file()]
            cure = f"; {archives[0]} is there: {UNPACK}" if archives else ""
            raise UserError(f"dataset.path={root} has no folder {folder}; needs {LAYOUT}{cure}")
        with os.scandir(place) as entries:
            found[split] = {e.name: place / e.name for e in entries if e.name[0] != "." and e.is_dir()}
        if not found[split]:
            images = _images(place)
            if images:
                raise UserError(
                    f"dataset.path={root}: {len(images)} images lie in {folder} itself, such as {images[0]}, but must "
                    f"be sorted into {folder}/WNID by the ground truth: {UNPACK}"
                )
            raise UserError(f"dataset.path={root}: {folder} is empty; needs {LAYOUT}")
    return found


def _images(folder: Path) -> list[str]:
    """The names of the images in a folder, sorted."""
    with os.scandir(folder) as entries:  # of a million names: Path.iterdir() makes an object of each
        return sorted(entry.name for entry in entries if entry.name.lower().endswith(ENDINGS))
