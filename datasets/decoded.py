"""A few decoded image sets in the user's cache folder. Losing one costs time only; a damaged one counts as absent."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from pathlib import Path

import PIL
import safetensors
import torch
from safetensors.torch import load_file, save_file

from runner.datasets import files
from runner.datasets.images import Images

KEPT = 4
LARGEST = 1 << 30  # bytes; larger sets are decoded again rather than fill the home folder
RULE = 1  # raise it when the layout, resizing or order of image_folder changes

Stored = tuple[dict[str, Images], list[str], list[str]]


def key(fingerprint: str, *selection: int | str | None) -> str:
    """A name for one selection of one set; the decoder's version belongs to it."""
    return hashlib.sha256(json.dumps([RULE, PIL.__version__, fingerprint, selection]).encode()).hexdigest()[:32]


def read(key: str) -> Stored | None:
    """The parts, class names and notes, or None."""
    path = _folder() / f"{key}.safetensors"
    try:
        tensors = load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata()
        if int(metadata["crc32"]) != _checksum(tensors):
            return None
        with contextlib.suppress(OSError):
            path.touch()  # the least recently used ones are removed
        parts = {
            split: Images(*(tensors[f"{split}.{name}"] for name in ("images", "labels", "index")))
            for split in dict.fromkeys(name.partition(".")[0] for name in tensors)
        }
        return parts, json.loads(metadata["class_names"]), json.loads(metadata["notes"])
    except (OSError, KeyError, ValueError, TypeError, safetensors.SafetensorError):
        return None


def write(key: str, parts: dict[str, Images], class_names: list[str], notes: list[str]) -> None:
    """Keep it if there is room and permission, and remove all but the last few used."""
    tensors = {
        f"{split}.{name}": getattr(images, name)
        for split, images in parts.items()
        for name in ("images", "labels", "index")
    }
    if sum(tensor.nbytes for tensor in tensors.values()) > LARGEST:
        return
    metadata = {
        "crc32": str(_checksum(tensors)),
        "class_names": json.dumps(class_names),
        "notes": json.dumps(notes),
    }
    with contextlib.suppress(OSError, safetensors.SafetensorError):
        target = _folder() / f"{key}.safetensors"
        files.write_atomic(target, lambda temporary: save_file(tensors, temporary, metadata))
        by_age = sorted(_folder().glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        for path in by_age[:-KEPT]:
            path.unlink()


def _folder() -> Path:
    return files.cache_folder() / "decoded"


def _checksum(tensors: dict[str, torch.Tensor]) -> int:
    result = 0
    for name in sorted(tensors):
        result = zlib.crc32(tensors[name].contiguous().numpy(), result)
    return result
