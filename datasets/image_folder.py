"""The user's own images: split/class/image or class/image, in a folder or an archive (``archive.KINDS``).

Splits are the folders train and test; val (or validation) is the test split where there is no test. Without splits the
last fifth of every class, at least one image, is the test split. Classes are the folders' names, sorted; within a class
images stand sorted by name. A folder around it all is looked through. Images become RGB, the shorter side resized to
``image_size`` (bilinear, antialiased) and the centre cut out.

The decoded images are kept in the user's cache folder, so that an archive is decoded once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from runner.datasets import archive, files
from runner.errors import UserError

if TYPE_CHECKING:
    import numpy
    from PIL import Image

    from runner.datasets.images import Limits, Loaded
    from runner.schema import DatasetSettings

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
SPLITS = {"train": "train", "test": "test", "val": "val", "validation": "val"}
LAYOUT = "train/CLASS/image and test/CLASS/image, or CLASS/image"


def check(settings: DatasetSettings, data_root: Path, offline: bool) -> None:
    if settings.path is None:
        raise UserError(f"dataset=image_folder needs dataset.path=PATH: {archive.KINDS} of {LAYOUT}")
    archive.check(files.user_path(settings.path))


def load(settings: DatasetSettings, limits: Limits, data_root: Path) -> Loaded:
    path = files.user_path(settings.path)
    name = path.resolve().name.removesuffix(path.suffix).removesuffix(".tar") if path.is_file() else path.resolve().name
    return load_from(path, settings, limits, f"image_folder:{name}", arrange)


def load_from(
    path: Path,
    settings: DatasetSettings,
    limits: Limits,
    display_name: str,
    arrange: Callable[[Path, list[str]], Layout],
) -> Loaded:
    """The images of a folder or archive; ``arrange(path, names)`` finds splits and classes in the files' names."""
    from runner.datasets import decoded
    from runner.datasets.images import Images, Loaded

    seen = files.fingerprint(path, times=True)
    key = decoded.key(seen, arrange.__module__, settings.image_size, limits.train, limits.test)
    stored = decoded.read(key)
    if stored is not None:
        parts, class_names, notes = stored
    else:
        layout = arrange(path, archive.list_files(path))
        rows = layout.rows(limits)
        chosen = {split: [layout.names[split][row] for row in rows[split].tolist()] for split in rows}
        pixels = decode_all(path, chosen, settings.image_size)
        parts = {split: Images(pixels[split], layout.labels(split)[rows[split]], rows[split]) for split in rows}
        class_names, notes = layout.class_names, layout.notes
        decoded.write(key, parts, class_names, notes)
    return Loaded(display_name, parts["train"], parts["test"], class_names, notes)


@dataclass
class Layout:
    """Which files are which images: names of each split sorted by class, then name."""

    class_names: list[str]
    names: dict[str, list[str]]
    classes: dict[str, list[int]]
    notes: list[str]

    def labels(self, split: str):
        import torch

        return torch.tensor(self.classes[split], dtype=torch.int64)

    def rows(self, limits: Limits):
        from runner.datasets.images import balanced_rows

        return {split: balanced_rows(self.labels(split), getattr(limits, split)) for split in ("train", "test")}


def arrange(path: Path, names: list[str]) -> Layout:
    """Find splits and classes in the files' names.

    Raises:
        UserError: no images, another layout, one class, a class that is missing in a split.
    """
    parts = {name: PurePosixPath(name).parts for name in names}
    parts = {
        name: part
        for name, part in parts.items()
        if PurePosixPath(name).suffix.lower() in SUFFIXES and not any(p.startswith((".", "__MACOSX")) for p in part)
    }
    if not parts:
        raise UserError(f"dataset.path={path} holds no images ({', '.join(sorted(SUFFIXES))}); needs {LAYOUT}")
    while len({part[0] for part in parts.values()}) == 1 and min(map(len, parts.values())) > 2:
        parts = {name: part[1:] for name, part in parts.items()}  # a folder around it all
    has_splits = any(part[0] in SPLITS and len(part) > 2 for part in parts.values())
    if has_splits:
        parts = {name: part for name, part in parts.items() if part[0] in SPLITS}
    depth = 3 if has_splits else 2
    for name, part in parts.items():
        if len(part) != depth:
            where = "deeper than" if len(part) > depth else "outside"
            raise UserError(f"dataset.path={path}: {name} lies {where} a class folder; needs {LAYOUT}")
    by_split: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, part in sorted(parts.items(), key=lambda item: item[1]):
        by_split[SPLITS[part[0]] if has_splits else "all"][part[-2]].append(name)
    notes: list[str] = []
    train, test = _with_splits(path, by_split, notes) if has_splits else _divided(path, by_split["all"], notes)
    class_names = sorted(train)
    if len(class_names) < 2:
        raise UserError(f"dataset.path={path} has only the class {class_names[0]}; needs two or more, as {LAYOUT}")
    splits = {"train": train, "test": test}
    return Layout(
        class_names,
        {split: [name for c in class_names for name in groups[c]] for split, groups in splits.items()},
        {split: [k for k, c in enumerate(class_names) for _ in groups[c]] for split, groups in splits.items()},
        notes,
    )


def _with_splits(path: Path, by_split: dict, notes: list[str]) -> tuple[dict, dict]:
    if "train" not in by_split or len(by_split) < 2:
        raise UserError(f"dataset.path={path} has only {', '.join(by_split)}; needs train and test (or val)")
    if "test" in by_split and "val" in by_split:
        notes.append("val is left unread: test is the test split, and validation images are taken from train")
    elif "val" in by_split:
        notes.append("val is the test split, as there is no test")
    train, test = by_split["train"], by_split["test" if "test" in by_split else "val"]
    for split, groups, others in (("test", test, train), ("train", train, test)):
        lacking = sorted(set(others) - set(groups))
        if lacking:
            raise UserError(f"dataset.path={path}: the class {lacking[0]} has no {split} images ({len(lacking)} such)")
    return train, test


def _divided(path: Path, groups: dict[str, list[str]], notes: list[str]) -> tuple[dict, dict]:
    train, test = {}, {}
    for name, members in groups.items():
        if len(members) < 2:
            raise UserError(f"dataset.path={path}: the class {name} has one image; without a test split it needs two")
        cut = len(members) - max(1, len(members) // 5)
        train[name], test[name] = members[:cut], members[cut:]
    notes.append("no train and test folders: the last fifth of every class is the test split")
    return train, test


def decode_all(path: Path, chosen: dict[str, list[str]], size: int | None) -> dict:
    """The chosen images of each split as uint8 (N,3,size,size) tensors; ``size`` None: as the first one is stored.

    Raises:
        UserError: an image that cannot be decoded (named), differing or not square ones without a size, no memory.
    """
    import torch

    places = {name: (split, row) for split, names in chosen.items() for row, name in enumerate(names)}
    pixels: dict[str, torch.Tensor] = {}
    first, side = "", size
    for name, content in archive.read_files(path, set(places)):
        if not pixels and size is not None:
            check_memory(path, len(places), size)  # before the first image is enlarged
        image = _decode(path, name, content, size)
        if not pixels:
            first, side = name, image.shape[0]
            if image.shape[0] != image.shape[1]:
                raise UserError(f"{name} is {_sides(image)} pixels, not square; set dataset.image_size")
            check_memory(path, len(places), side)
            pixels = {split: torch.empty(len(chosen[split]), 3, side, side, dtype=torch.uint8) for split in chosen}
        if image.shape[:2] != (side, side):
            raise UserError(f"{name} is {_sides(image)} pixels, {first} is {side}x{side}; set dataset.image_size")
        split, row = places[name]
        pixels[split][row] = torch.from_numpy(image).permute(2, 0, 1)
    return pixels


def check_memory(where: object, count: int, side: int) -> None:
    """Raise a UserError unless ``count`` colour images of ``side`` pixels fit into the free memory."""
    import psutil

    need, free = count * 3 * side**2, psutil.virtual_memory().available
    if need > free:
        raise UserError(
            f"{where}: {count} images of {side}x{side} need {need / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are "
            "free; set dataset.train_size or a smaller dataset.image_size"
        )


def _decode(path: Path, name: str, content: bytes, size: int | None) -> numpy.ndarray:
    """(H,W,3) uint8."""
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as opened:
            image = opened.convert("RGB")
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise UserError(
            f"{path}: the image {name} is damaged or cannot be read ({error}); replace or remove it"
        ) from error
    return fit(image, size)


def fit(image: Image.Image, size: int | None) -> numpy.ndarray:
    """(H,W,3) uint8 of an RGB image: the shorter side resized to ``size`` and the centre cut out, where it is given."""
    import numpy
    from PIL import Image

    if size is not None and image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return numpy.array(image)


def _sides(image: numpy.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
