"""The user's windows of series: a .npz file of x (N, channels, length), y (N,) classes and domain (N,).

Classes and domains are numbers or text; ``dataset.test_domains`` names the domains of the test split.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.datasets import files
from runner.datasets.series import KIND as KIND
from runner.datasets.series import SeriesSettings, split_by_domain
from runner.errors import UserError

if TYPE_CHECKING:
    from runner.datasets.examples import ExampleData
    from runner.datasets.images import Limits

ARRAYS = ("x", "y", "domain")
FORMAT = "a .npz file of x (N, channels, length), y (N,) and domain (N,)"


@dataclass(kw_only=True)
class Settings(SeriesSettings):
    """Of windows in a file."""

    standardise: bool = True  # every channel to mean 0 and deviation 1 of the training domains


def check(settings: Settings, data_root: Path, offline: bool) -> None:
    if settings.path is None:
        raise UserError(f"dataset=series_file: needs dataset.path={FORMAT}")
    path = files.user_path(settings.path)
    try:
        with zipfile.ZipFile(path) as archive:
            missing = [name for name in ARRAYS if f"{name}.npy" not in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        raise UserError(f"dataset.path={settings.path}: needs {FORMAT}") from None
    if missing:
        raise UserError(f"dataset.path={settings.path}: the array {missing[0]} is missing; needs {FORMAT}")
    if not settings.test_domains:
        raise UserError("dataset.test_domains: name the domains of the test split, such as dataset.test_domains=[0]")


def load(settings: Settings, limits: Limits, data_root: Path) -> ExampleData:
    import numpy
    import torch

    try:
        with numpy.load(files.user_path(settings.path), allow_pickle=False) as archive:
            x, y, domain = (archive[name] for name in ARRAYS)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"dataset.path={settings.path}: cannot be read ({error}); needs {FORMAT}") from None
    if x.ndim != 3 or x.dtype.kind not in "fiu" or y.shape != x.shape[:1] or domain.shape != y.shape or not len(x):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in zip(ARRAYS, (x, y, domain), strict=True))
        raise UserError(f"dataset.path={settings.path}: has {shapes}; needs {FORMAT}")
    windows = torch.from_numpy(x.astype("float32"))
    if not torch.isfinite(windows).all():
        raise UserError(f"dataset.path={settings.path}: x holds values that are not finite")
    class_names, labels = numpy.unique(y, return_inverse=True)
    domain_names, domains = numpy.unique(domain, return_inverse=True)
    data = split_by_domain(
        settings,
        limits,
        Path(settings.path).stem,
        windows,
        torch.from_numpy(labels.astype("int64")),
        torch.from_numpy(domains.astype("int64")),
        [str(name) for name in domain_names],
        [str(name) for name in class_names],
    )
    if settings.standardise:
        seen = torch.cat((data.train.inputs, data.validation.inputs))
        mean, deviation = seen.mean((0, 2), keepdim=True), seen.std((0, 2), keepdim=True)
        deviation = torch.where(deviation > 0, deviation, 1.0)
        for part in (data.train, data.validation, data.test):
            part.inputs = (part.inputs - mean) / deviation
    return data
