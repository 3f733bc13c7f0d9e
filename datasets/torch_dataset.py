"""Any torch Dataset: ``dataset.target=package:function``, called as function(split, **dataset.arguments).

``split`` is "train" or "test"; ``path`` is passed too where dataset.path is set. The function returns a map-style
dataset of (image, label): a PIL image, which becomes RGB, or a uint8 tensor (C,H,W); labels are 0 .. classes - 1. All
images are held in memory as uint8 and augmented here, so the dataset leaves out ToTensor, normalisation and
augmentation. Class names are its attribute ``classes`` where it has one; its attribute ``targets`` (all labels, as
torchvision's datasets have it) saves reading images that the limits leave out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runner.datasets import files
from runner.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from runner.datasets.images import Images, Limits, Loaded
    from runner.schema import DatasetSettings

WANTED = "PIL images or uint8 tensors (C,H,W), without ToTensor and normalisation"


def check(settings: DatasetSettings, data_root: Path, offline: bool) -> None:
    """Imports the module of the target, and whatever that imports."""
    if settings.target is None:
        raise UserError("dataset=torch_dataset needs dataset.target=package.module:function")
    function, arguments = _call(settings)
    try:
        inspect.signature(function).bind("train", **arguments)
    except TypeError as error:
        raise UserError(
            f"dataset.target={settings.target}: cannot be called as function(split"
            f"{''.join(f', {name}=...' for name in arguments)}) ({error}); see dataset.arguments and dataset.path"
        ) from error


def load(settings: DatasetSettings, limits: Limits, data_root: Path) -> Loaded:
    from runner.datasets.images import Loaded

    function, arguments = _call(settings)
    parts: dict[str, Images] = {}
    names: list[str] | None = None
    for split in ("train", "test"):
        dataset = function(split, **arguments)
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise UserError(
                f"dataset.target={settings.target}: returned {type(dataset).__name__} for {split}; it must be a "
                "map-style dataset, with __len__ and __getitem__"
            )
        shape = tuple(parts["train"].images.shape[1:]) if parts else None
        parts[split] = _read(settings, split, dataset, getattr(limits, split), shape)
        names = names or [str(name) for name in getattr(dataset, "classes", [])]
    classes = 1 + max(int(part.labels.max()) for part in parts.values())
    if names and len(names) < classes:
        raise UserError(f"dataset.target={settings.target}: has {len(names)} classes and a label {classes - 1}")
    name = settings.target if settings.name == "torch_dataset" else settings.name
    return Loaded(name, parts["train"], parts["test"], names or [str(number) for number in range(classes)])


def _call(settings: DatasetSettings) -> tuple[Callable, dict[str, Any]]:
    from runner.settings import load_target

    path = {} if settings.path is None else {"path": str(files.user_path(settings.path))}
    return load_target(settings.target, "dataset.target"), {**path, **settings.arguments}


def _read(
    settings: DatasetSettings, split: str, dataset: Any, limit: int | None, shape: tuple[int, int, int] | None
) -> Images:
    """The images of one split that the limit leaves; ``shape`` (C,H,W) is that of the other split."""
    import torch

    from runner.datasets.image_folder import check_memory
    from runner.datasets.images import Images, balanced_rows

    where = f"dataset.target={settings.target}"
    if len(dataset) == 0:
        raise UserError(f"{where}: the {split} split is empty")
    rows = torch.arange(len(dataset))
    if limit is not None and limit < len(dataset):
        rows = balanced_rows(_labels(dataset, f"{where}: {split}"), limit)
    pixels, labels = None, []
    for position, row in enumerate(rows.tolist()):
        at = f"{where}: {split}[{row}]"
        image, label = _item(dataset, row, at)
        image = _pixels(image, settings.image_size, at)
        if pixels is None:
            shape = shape or tuple(image.shape)
            if shape[1] != shape[2]:
                raise UserError(f"{at} is {shape[2]}x{shape[1]} pixels, not square; set dataset.image_size")
            check_memory(where, len(rows), shape[1])
            pixels = torch.empty(len(rows), *shape, dtype=torch.uint8)
        if tuple(image.shape) != shape:
            raise UserError(f"{at} has the shape {tuple(image.shape)}, others {shape}; set dataset.image_size")
        pixels[position] = image
        labels.append(label)
    return Images(pixels, torch.tensor(labels), rows)


def _labels(dataset: Any, where: str) -> torch.Tensor:
    """All labels; from ``targets`` where the dataset has it and does not transform it, else by reading every item."""
    import torch

    targets = getattr(dataset, "targets", None)
    if targets is not None and len(targets) == len(dataset) and getattr(dataset, "target_transform", None) is None:
        return torch.as_tensor(targets).long()
    return torch.tensor([_item(dataset, row, f"{where}[{row}]")[1] for row in range(len(dataset))])


def _item(dataset: Any, row: int, at: str) -> tuple[Any, int]:
    item = dataset[row]
    if not (isinstance(item, (tuple, list)) and len(item) == 2):
        raise UserError(f"{at} is {type(item).__name__}; every item must be (image, label)")
    try:
        label = int(item[1])
    except (TypeError, ValueError):
        label = -1
    if label < 0:
        raise UserError(f"{at} has the label {item[1]!r}; labels must be 0 .. classes - 1")
    return item[0], label


def _pixels(image: Any, size: int | None, at: str) -> torch.Tensor:
    """(C,H,W) uint8, of ``size`` where it is given: a PIL image is resized and cut, a square tensor resized."""
    import torch
    from PIL import Image

    from runner.datasets.image_folder import fit
    from runner.datasets.images import resize

    if isinstance(image, Image.Image):
        return torch.from_numpy(fit(image.convert("RGB"), size)).permute(2, 0, 1)
    if not (isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.dim() == 3):
        kind = f"a {image.dtype} tensor of shape {tuple(image.shape)}" if isinstance(image, torch.Tensor) else None
        raise UserError(f"{at} is {kind or type(image).__name__}; images must be {WANTED}")
    if size is None or tuple(image.shape[1:]) == (size, size):
        return image
    if image.shape[1] != image.shape[2]:
        raise UserError(f"{at} is {image.shape[2]}x{image.shape[1]} pixels; only square tensors are resized")
    return resize(image[None], size)[0]
