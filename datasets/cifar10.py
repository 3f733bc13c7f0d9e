"""CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32 in 10 classes, through torchvision.

``dataset.path`` or paths.data holds cifar-10-batches-py or cifar-10-python.tar.gz (or is one of them).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runner.datasets import download, files
from runner.errors import UserError

if TYPE_CHECKING:
    from runner.datasets.images import Images, Limits, Loaded
    from runner.schema import DatasetSettings

FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
BATCHES = ["batches.meta", *(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
DOWNLOAD = "170.5 MB"


def check(settings: DatasetSettings, data_root: Path, offline: bool) -> None:
    found = _find(settings, data_root)
    if found is None:
        download.check_allowed(_missing(data_root), data_root, offline)
    elif found.is_file():
        files.check_writable(data_root, "paths.data")


def load(settings: DatasetSettings, limits: Limits, data_root: Path) -> Loaded:
    from torchvision.datasets import CIFAR10

    from runner.datasets.images import Loaded

    found = _find(settings, data_root)
    if found is None or found.is_file():
        _unpack(found, data_root)
        found = data_root / FOLDER
    try:
        # The batches are pickles: torchvision opens them only after their md5 equals the published one.
        train, test = (CIFAR10(found.parent, train=is_train) for is_train in (True, False))
    except (RuntimeError, OSError) as error:
        raise UserError(f"{found} is damaged ({error}); delete it, or put a good copy there") from error
    return Loaded("CIFAR-10", _images(train, settings), _images(test, settings), list(train.classes))


def _images(split, settings: DatasetSettings) -> Images:
    import torch

    from runner.datasets.images import Images, resize

    pixels = torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous()
    if settings.image_size not in (None, 32):
        pixels = resize(pixels, settings.image_size)
    return Images(pixels, torch.tensor(split.targets), torch.arange(len(pixels)))


def _find(settings: DatasetSettings, data_root: Path) -> Path | None:
    """The folder of batches or the archive; None when it has to be downloaded."""
    root = data_root if settings.path is None else files.user_path(settings.path)
    if root.is_file():
        return root
    for path in (root, root / FOLDER):
        if path.name == FOLDER and all((path / name).is_file() for name in BATCHES):
            return path
    if (root / ARCHIVE).is_file():
        return root / ARCHIVE
    if settings.path is not None:
        raise UserError(f"dataset.path={settings.path}: found neither {FOLDER} (complete) nor {ARCHIVE}")
    return None


def _missing(data_root: Path) -> str:
    return f"CIFAR-10 ({DOWNLOAD}) is not in {data_root}: put {ARCHIVE} or {FOLDER} there, or set dataset.path"


def _unpack(archive: Path | None, data_root: Path) -> None:
    """Unpack the archive, or the downloaded one, below data_root."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity, download_url, extract_archive

    if archive is not None and not check_integrity(archive, CIFAR10.tgz_md5):
        raise UserError(
            f"{archive} is not CIFAR-10's archive, or not whole (its checksum differs); put a good copy there"
        )

    def fetch(folder: Path) -> Path:
        if archive is None:
            download_url(CIFAR10.url, folder, ARCHIVE, CIFAR10.tgz_md5)
        extract_archive(archive or folder / ARCHIVE, folder)
        return folder / FOLDER

    doing = f"downloading CIFAR-10 ({DOWNLOAD})" if archive is None else f"unpacking {archive}"
    download.into(data_root / FOLDER, fetch, doing, _missing(data_root))
