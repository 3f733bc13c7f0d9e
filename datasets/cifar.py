"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32, through torchvision.

``dataset.path`` or paths.data holds the folder of batches or the archive of the python version (or is one of them).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.datasets import download, files
from runner.errors import UserError

if TYPE_CHECKING:
    from runner.datasets.images import Images, Limits, Loaded
    from runner.schema import DatasetSettings


@dataclass(frozen=True)
class Published:
    """How a set is distributed; ``source`` is torchvision's class, which knows address and checksums."""

    display_name: str
    source: str
    folder: str
    archive: str
    batches: tuple[str, ...]
    size: str  # of the download


SETS = {
    "cifar10": Published(
        "CIFAR-10",
        "CIFAR10",
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        ("batches.meta", *(f"data_batch_{number}" for number in range(1, 6)), "test_batch"),
        "170.5 MB",
    ),
    "cifar100": Published(
        "CIFAR-100", "CIFAR100", "cifar-100-python", "cifar-100-python.tar.gz", ("meta", "train", "test"), "169.0 MB"
    ),
}


def check(settings: DatasetSettings, data_root: Path, offline: bool) -> None:
    published = SETS[settings.name]
    found = _find(published, settings, data_root)
    if found is None:
        download.check_allowed(_missing(published, data_root), data_root, offline)
    elif found.is_file():
        files.check_writable(data_root, "paths.data")


def load(settings: DatasetSettings, limits: Limits, data_root: Path) -> Loaded:
    from torchvision import datasets

    from runner.datasets.images import Loaded

    published = SETS[settings.name]
    source = getattr(datasets, published.source)
    found = _find(published, settings, data_root)
    if found is None or found.is_file():
        _unpack(published, source, found, data_root)
        found = data_root / published.folder
    try:
        # The batches are pickles: torchvision opens them only after their md5 equals the published one.
        train, test = (source(found.parent, train=is_train) for is_train in (True, False))
    except (RuntimeError, OSError) as error:
        raise UserError(f"{found} is damaged ({error}); delete it, or put a good copy there") from error
    return Loaded(published.display_name, _images(train, settings), _images(test, settings), list(train.classes))


def _images(split, settings: DatasetSettings) -> Images:
    import torch

    from runner.datasets.images import Images, resize

    pixels = torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous()
    if settings.image_size not in (None, 32):
        pixels = resize(pixels, settings.image_size)
    return Images(pixels, torch.tensor(split.targets), torch.arange(len(pixels)))


def _find(published: Published, settings: DatasetSettings, data_root: Path) -> Path | None:
    """The folder of batches or the archive; None when it has to be downloaded."""
    root = data_root if settings.path is None else files.user_path(settings.path)
    if root.is_file():
        return root
    for path in (root, root / published.folder):
        if path.name == published.folder and all((path / name).is_file() for name in published.batches):
            return path
    if (root / published.archive).is_file():
        return root / published.archive
    if settings.path is not None:
        raise UserError(
            f"dataset.path={settings.path}: found neither {published.folder} (complete) nor {published.archive}"
        )
    return None


def _missing(published: Published, data_root: Path) -> str:
    return (
        f"{published.display_name} ({published.size}) is not in {data_root}: put {published.archive} or "
        f"{published.folder} there, or set dataset.path"
    )


def _unpack(published: Published, source: type, archive: Path | None, data_root: Path) -> None:
    """Unpack the archive, or the downloaded one, below data_root."""
    from torchvision.datasets.utils import check_integrity, download_url, extract_archive

    if archive is not None and not check_integrity(archive, source.tgz_md5):
        raise UserError(
            f"{archive} is not {published.display_name}'s archive, or not whole (its checksum differs); "
            "put a good copy there"
        )

    def fetch(folder: Path) -> Path:
        if archive is None:
            download_url(source.url, folder, published.archive, source.tgz_md5)
        extract_archive(archive or folder / published.archive, folder)
        return folder / published.folder

    doing = f"downloading {published.display_name} ({published.size})" if archive is None else f"unpacking {archive}"
    download.into(data_root / published.folder, fetch, doing, _missing(published, data_root))
