"""Tiny ImageNet (Stanford CS231n): 200 classes of 64x64 colour images, 500 for training and 50 for validation a class.

``dataset.path`` is the published zip, what it unpacks to, or a folder or archive of train/WNID/image and
val/WNID/image (a part of the set, too); without it the published zip is read from paths.data. The validation images
are the test split: those of the published test folder have no labels. Classes are WordNet ids, sorted.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from runner.datasets import archive, download, files, image_folder
from runner.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runner.datasets.image_folder import Layout
    from runner.datasets.images import Limits, Loaded
    from runner.schema import DatasetSettings

ARCHIVE, MD5, SIZE = "tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", "248.1 MB"
URL = f"http://cs231n.stanford.edu/{ARCHIVE}"
ANNOTATIONS = "val_annotations.txt"


def check(settings: DatasetSettings, data_root: Path, offline: bool) -> None:
    if settings.path is not None:
        archive.check(files.user_path(settings.path))
    elif not (data_root / ARCHIVE).is_file() and found_part({}, data_root) is None:
        download.check_allowed(_missing(data_root), data_root, offline)


def load(settings: DatasetSettings, limits: Limits, data_root: Path) -> Loaded:
    return image_folder.load_from(place(settings, data_root), settings, limits, "Tiny ImageNet", arrange)


def place(settings: DatasetSettings, data_root: Path) -> Path:
    """Where the images are: ``dataset.path``, else the published zip, else a part of it, else the zip is fetched.

    Raises:
        UserError: a path that is missing, a failed download, a damaged zip.
    """
    path = data_root / ARCHIVE if settings.path is None else files.user_path(settings.path)
    if settings.path is None and (part := found_part({}, data_root)) is not None:
        return part
    if settings.path is None:
        from torchvision.datasets.utils import check_integrity

        if not path.is_file():
            _fetch(data_root)
        elif not check_integrity(path, MD5):
            raise UserError(f"{path} is damaged (its checksum differs); delete it, or put a good copy there")
    return path


def found_part(dataset: Mapping[str, Any], data_root: Path) -> Path | None:
    """The one archive tiny-imagenet... or tiny_imagenet... of the data root, where it lacks the published zip."""
    if (data_root / ARCHIVE).is_file():
        return None
    places = [place for place in data_root.glob("tiny[-_]imagenet*") if place.name.endswith(archive.ENDINGS)]
    return places[0] if len(places) == 1 else None


def arrange(path: Path, names: list[str]) -> Layout:
    """Splits and classes, from the published layout or from split/class/image.

    Raises:
        UserError: validation images that the annotations do not name; whatever ``image_folder.arrange`` finds.
    """
    annotated = [name for name in names if PurePosixPath(name).name == ANNOTATIONS]
    if not annotated:
        return image_folder.arrange(path, names)
    ((_, content),) = archive.read_files(path, {annotated[0]})
    lines = [line.split("\t") for line in content.decode().splitlines() if line.strip()]
    class_of = {line[0]: line[1] for line in lines if len(line) > 1}
    stored: dict[str, str] = {}  # train/WNID/image or val/WNID/image -> where it is stored
    for name in names:
        *_, split, third, _, image = ("", "", "", *PurePosixPath(name).parts)
        if PurePosixPath(name).suffix.lower() not in image_folder.SUFFIXES:
            continue
        if PurePosixPath(name).parent.name != "images":
            raise UserError(
                f"dataset.path={path}: {name} lies outside a folder 'images'; unpack the published zip again"
            )
        if split == "train":
            stored[f"train/{third}/{image}"] = name
        elif third == "val":
            if image not in class_of:
                raise UserError(f"dataset.path={path}: {annotated[0]} does not name {image}; unpack the zip again")
            stored[f"val/{class_of[image]}/{image}"] = name
    layout = image_folder.arrange(path, list(stored))
    layout.names = {split: [stored[name] for name in named] for split, named in layout.names.items()}
    return layout


def _fetch(data_root: Path) -> None:
    from torchvision.datasets.utils import download_url

    def fetch(folder: Path) -> Path:
        download_url(URL, folder, ARCHIVE, MD5)
        return folder

    download.into(data_root, fetch, f"downloading Tiny ImageNet ({SIZE})", _missing(data_root))


def _missing(data_root: Path) -> str:
    return f"Tiny ImageNet ({SIZE}) is not in {data_root}: put {ARCHIVE} there, or set dataset.path"
