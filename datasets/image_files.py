"""Labelled images that stay in their files and are decoded batch by batch, by worker processes.

What a batch holds is a function of the epoch's seed, the rows and nothing else: every image is augmented from a random
stream of its own, so neither the number of workers nor the batch at which an epoch is entered changes a bit.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from runner.datasets.augment import augment
from runner.datasets.images import Batch, Batches, Labelled, Part
from runner.errors import UserError
from runner.randomness import stream_seed

CROP_SCALE = (0.08, 1.0)  # part of the image's area (Szegedy et al. 2014, arXiv:1409.4842, section 6)
RESIZED = 256 / 224  # the shorter side at evaluation, over the side of the centre that is cut out
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_OPEN: weakref.WeakSet = weakref.WeakSet()  # epochs that are being read
MAX_WORKERS = 8  # of those that the number of cores suggests


@dataclass
class ImageFiles(Labelled):
    """Images in files: ``names`` (N,) bytes below ``folder``; colour, ``size`` x ``size`` pixels once they are read."""

    folder: Path
    names: numpy.ndarray  # fixed width: a list of a million texts would be copied into every worker
    labels: Tensor
    index: Tensor
    size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C,H,W)"""
        return 3, self.size, self.size

    def take(self, rows: Tensor) -> ImageFiles:
        """The images at ``rows`` (int64), in that order."""
        return ImageFiles(self.folder, self.names[rows.numpy()], self.labels[rows], self.index[rows], self.size)

    def to(self, device: torch.device | str) -> ImageFiles:
        """The same: what a batch holds goes to the device when it is read."""
        return self

    def batches(self, *arguments: Any, **settings: Any) -> FileBatches:
        """``FileBatches`` of these images."""
        return FileBatches(self, *arguments, **settings)

    def read(self, row: int) -> Image.Image:
        """One image, RGB. Raises UserError where it is damaged."""
        path = self.folder / os.fsdecode(self.names[row])
        try:
            with Image.open(path) as opened:
                return opened.convert("RGB")
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
            raise UserError(f"the image {path} cannot be read ({error}); replace or remove it") from error


class FileBatches(Batches):
    """Batches of images in files. A training view is a random part of the image's area resized, perhaps mirrored.

    ``augmentation`` says whether it is mirrored; colour varies as for images in memory. Without augmentation the
    shorter side is resized to 256/224 of the side of the centre that is cut out.
    """

    def __init__(self, *arguments: Any, workers: int | None = None, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.workers = default_workers() if workers is None else workers
        self.device = self.mean.device

    def iterate(
        self, generator_seed: int, start: int = 0, *, stride: int = 1, part: Part | None = None
    ) -> Iterator[Batch]:
        """As for images in memory; the images of batches and parts that are not wanted are not decoded.

        The augmentation's seed is that of torch's global generator at the call, which ``Loop`` sets every epoch.
        """
        epoch = self._read(self._rows(generator_seed, start, stride, part), torch.initial_seed())
        _OPEN.add(epoch)
        return epoch

    def _read(self, batches: list[tuple[Tensor, slice]], seed: int) -> Iterator[Batch]:
        flip = None if self.augmentation is None else self.augmentation.horizontal_flip
        reader = _Reader(self.images, flip, self.views, seed)
        workers = min(self.workers, len(batches))
        loader = DataLoader(
            reader,
            batch_size=None,  # an item is a batch
            sampler=[rows[wanted] for rows, wanted in batches],
            num_workers=workers,
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,  # children of this process
            worker_init_fn=partial(_begin_worker, os.getpid()) if workers else None,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else a draw from the global one for each start
        )
        with _signals_held():
            read = iter(loader)
        try:
            for (rows, wanted), pixels in zip(batches, read, strict=True):
                yield self._batch_of(rows, wanted, pixels)
        finally:
            del read  # its workers end with it, also where a traceback keeps this frame

    def _batch_of(self, rows: Tensor, wanted: slice, pixels: Tensor | str) -> Batch:
        if isinstance(pixels, str):
            raise UserError(pixels)
        count, rows = len(rows) * self.views, rows[wanted]
        pixels = pixels.to(self.device, non_blocking=True)
        images = augment(pixels, None, self.colour, self._of_views(wanted), count)
        images = (images.float() - self.mean) / self.std
        if self.views > 1:
            images = images.unflatten(0, (-1, self.views))
        return Batch(images, self.images.labels[rows].to(self.device), rows.to(self.device))


class _Reader(Dataset):
    """Batches of rows to uint8 (B*V,3,size,size), the views of an image side by side; a text where reading fails."""

    def __init__(self, files: ImageFiles, flip: bool | None, views: int, seed: int) -> None:
        self.files, self.views, self.seed, self.augments = files, views, seed, flip is not None
        self.crop = v2.RandomResizedCrop(files.size, scale=CROP_SCALE, antialias=True)
        self.flip = v2.RandomHorizontalFlip(0.5 if flip else 0.0)
        self.centre = v2.Compose([v2.Resize(round(files.size * RESIZED), antialias=True), v2.CenterCrop(files.size)])

    def __getitem__(self, rows: Tensor) -> Tensor | str:
        try:
            return torch.stack([view for row in rows.tolist() for view in self._views(row)])
        except UserError as error:  # a worker's exception would arrive wrapped in its traceback
            return str(error)

    def _views(self, row: int) -> Iterator[Tensor]:
        image = self.files.read(row)
        if not self.augments:
            view = _pixels(self.centre(image))
            yield from [view] * self.views
            return
        for number in range(self.views):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(stream_seed(self.seed, int(self.files.index[row]), number))
                yield _pixels(self.flip(self.crop(image)))


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Inside, signals that ask for a stop wait, in processes begun here too: those have yet to ignore them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(run: int, worker: int) -> None:
    """In a worker of the process ``run``.

    A stop is asked of the whole process group: the run finishes its step with what the workers give it. A worker ends
    when its parent changes; one whose run was killed before it could know its parent would stay for ever.
    """
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux" and os.getppid() != run:
        os._exit(1)


@atexit.register
def _end_workers() -> None:
    """Before multiprocessing waits for them at exit, after a signal that they ignore."""
    for epoch in list(_OPEN):
        epoch.close()


def default_workers() -> int:
    """One for every core that this process may use but one, at most ``MAX_WORKERS``; at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores - 1, MAX_WORKERS))
