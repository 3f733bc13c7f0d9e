"""Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): 60,000 + 10,000 grayscale images of 28x28 in 10 classes.

Read from the four idx files, gzipped or not, in ``dataset.path`` or paths.data (the folder itself or its
FashionMNIST/raw, as torchvision has it); the folder is not written to. Sizes above 28 are reached by padding with
zeros, the background of the set (one pixel more on the right and bottom when odd); smaller ones by averaging areas. The
channel is repeated to three, so that every network of the zoo takes them.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from runner.datasets import download, files
from runner.errors import UserError

if TYPE_CHECKING:
    import numpy

    from runner.datasets.images import Images, Limits, Loaded
    from runner.schema import DatasetSettings

# md5 of the unpacked content: a file packed anew has other gzip bytes
CONTENT = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
DOWNLOAD = "30.9 MB"
RAW = "FashionMNIST/raw"


def check(settings: DatasetSettings, data_root: Path, offline: bool) -> None:
    if settings.path is not None:
        _find(files.user_path(settings.path), f"dataset.path={settings.path}")
    elif not _complete(data_root / RAW):
        download.check_allowed(_missing(data_root), data_root, offline)


def load(settings: DatasetSettings, limits: Limits, data_root: Path) -> Loaded:
    from runner.datasets.images import Loaded

    if settings.path is not None:
        folder = _find(files.user_path(settings.path), f"dataset.path={settings.path}")
    else:
        folder = data_root / RAW
        if not _complete(folder):
            _download(data_root)
    side = settings.image_size or 28
    return Loaded("Fashion-MNIST", _split(folder, "train", side), _split(folder, "t10k", side), CLASSES)


def parse_idx(content: bytes) -> numpy.ndarray:
    """The uint8 array of an idx file: two zero bytes, type 8, rank, the sizes as big-endian 32-bit numbers, the values.

    Raises:
        ValueError: another type, or not as many values as the sizes say.
    """
    import numpy

    rank = content[3] if len(content) > 3 else 0
    start = 4 + 4 * rank
    if content[:3] != b"\0\0\x08" or len(content) < start:
        raise ValueError("not an idx file of bytes")
    shape = numpy.frombuffer(content, ">u4", rank, 4).astype(int)
    return numpy.frombuffer(content, numpy.uint8, offset=start).reshape(shape)


def _split(folder: Path, name: str, side: int) -> Images:
    import torch
    from torch.nn.functional import interpolate, pad

    from runner.datasets.images import Images

    labels = torch.from_numpy(parse_idx(_read(folder, f"{name}-labels-idx1-ubyte")).astype("int64"))
    pixels = torch.from_numpy(parse_idx(_read(folder, f"{name}-images-idx3-ubyte")).copy())[:, None]
    border = side - pixels.shape[-1]
    if border >= 0:
        pixels = pad(pixels, (border // 2, border - border // 2) * 2)
    else:
        pixels = interpolate(pixels.float(), (side, side), mode="area").round_().to(torch.uint8)
    return Images(pixels.expand(-1, 3, -1, -1).contiguous(), labels, torch.arange(len(labels)))


def _read(folder: Path, name: str) -> bytes:
    path = _file(folder, name)
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} is damaged or cannot be read ({error}); delete it, or put a good copy there"
        ) from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != CONTENT[name]:
        raise UserError(
            f"{path} is not Fashion-MNIST's file (its checksum differs); delete it, or put a good copy there"
        )
    return content


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _complete(folder: Path) -> bool:
    return all(_file(folder, name) for name in CONTENT)


def _find(path: Path, setting: str) -> Path:
    for folder in (path, path / "raw", path / RAW):
        if _complete(folder):
            return folder
    raise UserError(f"{setting}: found no Fashion-MNIST; it needs {', '.join(CONTENT)} (or .gz) in it or its {RAW}")


def _missing(data_root: Path) -> str:
    names = ", ".join(f"{name}.gz" for name in CONTENT)
    return f"Fashion-MNIST ({DOWNLOAD}) is not in {data_root}: put {names} into {data_root / RAW}, or set dataset.path"


def _download(data_root: Path) -> None:
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_url

    def fetch(folder: Path) -> Path:
        for name, md5 in FashionMNIST.resources:
            download.first_that_works(
                [lambda m=mirror, n=name, c=md5: download_url(m + n, folder, n, c) for mirror in FashionMNIST.mirrors]
            )
        return folder

    download.into(data_root / RAW, fetch, f"downloading Fashion-MNIST ({DOWNLOAD})", _missing(data_root))
