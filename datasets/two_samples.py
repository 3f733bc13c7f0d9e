"""Your own two samples, to be told apart feature by feature; ``shifted_gaussians`` are generated ones.

An .npz file of plain arrays, either x (n, d) and y (m, d), whose d columns are compared one by one; or
candidates (g, n, p) and real (m, p), such as the samples of g generators and real ones, each compared as a whole.
The longer sample loses its last rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

from runner.datasets import files
from runner.errors import UserError
from runner.schema import AnyDataset as Settings

if TYPE_CHECKING:
    import numpy
    import torch

    from runner.datasets.images import Limits

KIND = "two samples"
ARRAYS = "x (n, d) and y (m, d), or candidates (g, n, p) and real (m, p)"


def check(settings: Settings, data_root: Path, offline: bool) -> None:
    if settings.path is None:
        raise UserError(f"dataset=two_sample_file needs dataset.path=FILE.npz with {ARRAYS}")
    files.user_path(settings.path)


def load(settings: Settings, limits: Limits, data_root: Path) -> FileSamples:
    return read(files.user_path(settings.path), limits.train)


@dataclass
class FileSamples:
    """first (d, n, p) and second (d or 1, n, p) of a file; nothing is known about which differ."""

    display_name: str
    first: numpy.ndarray
    second: numpy.ndarray
    kind: str = KIND
    fixed: bool = True
    different: None = None

    @property
    def samples(self) -> int:
        return self.first.shape[1]

    def to(self, device: torch.device) -> FileSamples:
        return self

    def describe(self) -> str:
        count, samples, size = self.first.shape
        what = "features" if size == 1 else f"candidates of dimension {size}"
        return f"data {self.display_name}: two samples of {samples}, {count} {what}"

    def draw(self, generator: numpy.random.Generator) -> tuple[numpy.ndarray, numpy.ndarray]:
        return self.first, self.second


def read(place: Path, largest: int | None) -> FileSamples:
    """The arrays of a file, at most ``largest`` rows of each. Raises UserError: they are no two samples."""
    import numpy

    try:
        with numpy.load(place, allow_pickle=False) as file:
            arrays = {name: file[name].astype(float) for name in file.files}
    except (OSError, ValueError, EOFError, BadZipFile, TypeError) as error:
        raise UserError(f"{place} is no .npz file of plain arrays: {error}") from None
    shapes = {name: array.shape for name, array in arrays.items()}
    if {"x", "y"} <= set(arrays) and arrays["x"].ndim == arrays["y"].ndim == 2:
        first, second = arrays["x"].T[:, :, None], arrays["y"].T[:, :, None]
    elif {"candidates", "real"} <= set(arrays) and (arrays["candidates"].ndim, arrays["real"].ndim) == (3, 2):
        first, second = arrays["candidates"], arrays["real"][None]
    else:
        raise UserError(f"{place} has {shapes or 'nothing'}; two samples are {ARRAYS}")
    samples = min(first.shape[1], second.shape[1], largest or first.shape[1])
    if first.shape[2] != second.shape[2] or second.shape[0] not in (1, first.shape[0]) or samples < 4:
        raise UserError(f"{place}: {shapes} cannot be compared; two samples are {ARRAYS}, four rows or more")
    return FileSamples(f"two_sample_file:{place.stem}", first[:, :samples], second[:, :samples])
