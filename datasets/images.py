"""Labelled images, here in memory as uint8: splits, class-balanced subsets, normalisation, batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from runner.datasets.augment import WHOLE, augment, erase
from runner.errors import UserError
from runner.schema import AugmentationSettings, DatasetSettings

Part = Callable[[int], tuple[slice, float]]  # of a batch of so many rows: which are wanted, and their share
CHUNK = 1024  # images converted at once where a whole split in a wider type would fill the memory


class Labelled:
    """What every kind of labelled images has: labels (N,) int64, and index (N,) int64, the row in the original split.

    Beside it a kind has ``shape`` (C,H,W), ``take(rows)``, ``to(device)`` and ``batches(...)`` (``Batches``).
    """

    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first_per_class(self, count: int) -> Self:
        """The first ``count`` images of every class (all of a smaller class), class by class in rising order.

        The search set of EKG (card 2.11) is this, shuffled by the method.
        """
        rows = torch.nonzero(rank_in_class(self.labels) < count).flatten()
        return self.take(rows[torch.argsort(self.labels[rows], stable=True)])

    def last_per_class(self, count: int) -> Self:
        """The last ``count`` images of every class (all of a smaller class), class by class, the very last first.

        The validation set of EKG (card 2.11) is this, shuffled by the method.
        """
        rows = torch.nonzero(rank_in_class(self.labels.flip(0)).flip(0) < count).flatten().flip(0)
        return self.take(rows[torch.argsort(self.labels[rows], stable=True)])


@dataclass
class Images(Labelled):
    """In memory: images (N,C,H,W) uint8, labels (N,) int64, index (N,) int64."""

    images: Tensor
    labels: Tensor
    index: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C,H,W)"""
        return tuple(self.images.shape[1:])

    def take(self, rows: Tensor) -> Images:
        """The images at ``rows`` (int64), in that order; a copy."""
        return Images(self.images[rows], self.labels[rows], self.index[rows])

    def to(self, device: torch.device | str) -> Images:
        return Images(self.images.to(device), self.labels.to(device), self.index.to(device))

    def batches(self, *arguments: Any, **settings: Any) -> Batches:
        """``Batches`` of these images."""
        return Batches(self, *arguments, **settings)


@dataclass
class Normalisation:
    """Per-channel mean and standard deviation (C,) float32 on the 0-255 scale."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, images: Tensor) -> Normalisation:
        """The statistics over all pixels of images (N,C,H,W) uint8; a constant channel has the deviation 1.

        Summed in integers, so the result does not depend on order or thread count.
        """
        totals = torch.zeros(images.shape[1], dtype=torch.int64)
        squares = torch.zeros_like(totals)
        for chunk in images.cpu().split(CHUNK):
            totals += chunk.sum((0, 2, 3), dtype=torch.int64)
            squares += chunk.int().square_().sum((0, 2, 3), dtype=torch.int64)
        pixels = images.numel() // images.shape[1]
        mean = [total / pixels for total in totals.tolist()]
        # Python's integers do not overflow, and the difference is exact
        variance = [(q * pixels - t * t) / pixels**2 for t, q in zip(totals.tolist(), squares.tolist(), strict=True)]
        return cls(torch.tensor(mean), torch.tensor([math.sqrt(v) if v > 0 else 1.0 for v in variance]))


@dataclass
class Limits:
    """The most images of each split that will be used; None: all."""

    train: int | None = None
    test: int | None = None


@dataclass
class Loaded:
    """What a data set's module returns; it may apply the limits itself (``balanced_rows``) to save reading."""

    display_name: str
    train: Images
    test: Images
    class_names: list[str]
    notes: list[str] = field(default_factory=list)  # what the user should read about how the files were taken


@dataclass
class ImageData:
    """A data set ready for training. ``validation`` may be empty; its rows are not in ``train``."""

    name: str
    display_name: str
    train: Images
    validation: Images
    test: Images
    class_names: list[str]
    normalisation: Normalisation
    augmentation: AugmentationSettings
    kind: str = "images"

    def to(self, device: torch.device) -> ImageData:
        """Moves what lies in memory."""
        for split in ("train", "validation", "test"):
            setattr(self, split, getattr(self, split).to(device))
        return self

    def describe(self) -> str:
        """One line for the screen."""
        return (
            f"data {self.display_name}: {len(self.train)} train, {len(self.validation)} validation, "
            f"{len(self.test)} test, {self.num_classes} classes, {self.image_size}x{self.image_size}"
        )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return self.train.shape[0]

    @property
    def image_size(self) -> int:
        """Side in pixels."""
        return self.train.shape[2]


class Batch(NamedTuple):
    """images float32 normalised (B,C,H,W), or (B,V,C,H,W) with V > 1 views; labels (B,); index (B,): row in the set."""

    images: Tensor
    labels: Tensor
    index: Tensor


class Batches:
    """Batches of a set that lies in memory, augmented together on ``device``.

    The order of an epoch is a function of its seed alone. The augmentation draws from torch's global generator of the
    device when a batch is asked for, never ahead, so that a saved generator state resumes exactly.

    Args:
        augmentation: the plain training view; None: the images as they are.
        views: independently augmented copies of every image.
        colour: brightness, contrast and saturation vary too (``augment.vary_colour``).
        drop_last: leave out a last, smaller batch, unless it is the only one.
        workers: processes that read images from files (null: by the number of cores); none are needed here.
    """

    def __init__(
        self,
        images: Images,
        normalisation: Normalisation,
        batch_size: int,
        *,
        shuffle: bool,
        augmentation: AugmentationSettings | None,
        views: int = 1,
        colour: bool = False,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
        workers: int | None = None,
    ):
        self.images = images.to(device)
        self.mean = normalisation.mean.to(device).view(1, -1, 1, 1)
        self.std = normalisation.std.to(device).view(1, -1, 1, 1)
        self.batch_size, self.shuffle, self.drop_last = batch_size, shuffle, drop_last
        self.augmentation, self.views, self.colour = augmentation, views, colour

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole + (rest > 0 and not (self.drop_last and whole > 0))

    def iterate(
        self,
        generator_seed: int,
        start: int = 0,
        *,
        stride: int = 1,
        part: Part | None = None,
    ) -> Iterator[Batch]:
        """One epoch in the order of ``generator_seed``, from batch ``start`` on; skipped batches are not computed.

        Args:
            stride: every so many batches.
            part: which rows of a batch of so many are wanted (``runner.ranks.Ranks.part``). They get the views that
                they get in the whole batch.
        """
        for rows, wanted in self._rows(generator_seed, start, stride, part):
            yield self._batch(rows.to(self.images.labels.device), wanted)

    def _rows(self, generator_seed: int, start: int, stride: int, part: Part | None) -> list[tuple[Tensor, slice]]:
        """Of each batch of an epoch that is wanted: its rows, and which of them are."""
        count = len(self.images)
        if self.shuffle:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(generator_seed))
        else:
            order = torch.arange(count)
        batches = order.split(self.batch_size)[start : len(self) : stride]
        return [(rows, WHOLE if part is None else part(len(rows))[0]) for rows in batches]

    def _of_views(self, wanted: slice) -> slice:
        """The same rows where every image has its views side by side."""
        return slice(*(None if end is None else end * self.views for end in (wanted.start, wanted.stop)))

    def _batch(self, rows: Tensor, wanted: slice) -> Batch:
        count, rows = len(rows) * self.views, rows[wanted]
        images = self.images.images[rows]
        if self.views > 1:
            images = images.repeat_interleave(self.views, 0)
        images = augment(images, self.augmentation, self.colour, self._of_views(wanted), count)
        images = (images.float() - self.mean) / self.std
        if self.augmentation is not None and self.augmentation.erasing:  # by the mean on 0..1, as codes have it
            images = erase(images, self.augmentation.erasing, self.mean / 255, self._of_views(wanted), count)
        if self.views > 1:
            images = images.unflatten(0, (-1, self.views))
        return Batch(images, self.images.labels[rows], rows)


def rank_in_class(labels: Tensor) -> Tensor:
    """For every row, how many earlier rows have its label; (N,) int64."""
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    starts = torch.cumsum(counts, 0) - counts
    ranks = torch.empty_like(labels)
    ranks[order] = torch.arange(len(labels), device=labels.device) - starts[labels[order]]
    return ranks


def balanced_rows(labels: Tensor, count: int | None) -> Tensor:
    """Rows of a class-balanced subset of ``count`` images, in their order: the first images of every class.

    Where ``count`` does not divide, or a class runs out, the rest is spread over the first classes that have more.
    """
    if count is None or count >= len(labels):
        return torch.arange(len(labels))
    priority = rank_in_class(labels) * (int(labels.max()) + 1) + labels
    return torch.argsort(priority)[:count].sort().values


def hold_out(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Rows that stay and rows held out, each in their order: the last ``fraction`` of every class, rounded up.

    With a fraction above 0 every class that has two images or more gives at least one and keeps at least one.
    """
    counts = torch.bincount(labels)
    quota = [min(math.ceil(round(fraction * n, 6)), max(n - 1, 0)) for n in counts.tolist()]
    held = rank_in_class(labels.flip(0)).flip(0) < torch.tensor(quota, dtype=torch.int64)[labels]
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()


def resize(images: Tensor, size: int) -> Tensor:
    """Images (N,C,H,W) on the 0-255 scale, resized bilinearly with antialiasing to size x size; uint8."""
    parts = [
        torch.nn.functional.interpolate(chunk.float(), (size, size), mode="bilinear", antialias=True)
        for chunk in images.split(CHUNK)
    ]
    return torch.cat([part.round_().clamp_(0, 255).to(torch.uint8) for part in parts])


def assemble(loaded: Loaded, settings: DatasetSettings, limits: Limits) -> ImageData:
    """Apply the limits, take the validation part, find the normalisation. See ``load_data``."""
    for split, wished in (("train", settings.train_size), ("test", settings.test_size)):
        limit, found = getattr(limits, split), len(getattr(loaded, split))
        if wished is not None and limit == wished > found:
            raise UserError(f"dataset.{split}_size={wished}, but {loaded.display_name} has {found} {split} images")
    train = _subset(loaded.train, balanced_rows(loaded.train.labels, limits.train))
    test = _subset(loaded.test, balanced_rows(loaded.test.labels, limits.test))
    kept, held = hold_out(train.labels, settings.validation_fraction)
    train, validation = _subset(train, kept), train.take(held)
    data = ImageData(
        name=settings.name,
        display_name=loaded.display_name,
        train=train,
        validation=validation,
        test=test,
        class_names=loaded.class_names,
        normalisation=normalisation_of(settings.normalisation, train),
        augmentation=settings.augmentation,
    )
    check_padding(settings.augmentation, data.image_size)
    return data


def check_padding(augmentation: AugmentationSettings, size: int) -> None:
    """Raises UserError: images of ``size`` pixels are too small for the padding."""
    if augmentation.crop_padding >= size:
        raise UserError(
            f"dataset.augmentation.crop_padding={augmentation.crop_padding} must be smaller than the images "
            f"({size} pixels)"
        )


def _subset(images: Images, rows: Tensor) -> Images:
    return images if len(rows) == len(images) else images.take(rows)  # no second copy of a whole set


def normalisation_of(given: dict[str, list[float]] | None, images: Images) -> Normalisation:
    """The ``given`` one, else that of the images. Raises UserError: not a mean and a positive std for each channel."""
    if given is None:
        return Normalisation.of(images.images)
    channels = images.shape[0]
    complete = set(given) == {"mean", "std"} and all(len(values) == channels for values in given.values())
    if not complete or min(given["std"]) <= 0:
        raise UserError(
            f"dataset.normalisation={given}: needs mean and std, {channels} numbers each, 0-255 scale, std above 0"
        )
    return Normalisation(torch.tensor(given["mean"]).float(), torch.tensor(given["std"]).float())
