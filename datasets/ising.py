"""Pairwise models of binary variables, exp(theta'x + x'Ax) with x in {-1, +1}^n: your own file (``ising_file``).

An .npz of plain arrays: A (n, n), symmetric, half of a pair's coupling in either place, and theta (n,).
``ising_models`` are generated ones.
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

KIND = "ising"
ARRAYS = "A (n, n), symmetric, and theta (n,)"


def check(settings: Settings, data_root: Path, offline: bool) -> None:
    if settings.path is None:
        raise UserError(f"dataset=ising_file needs dataset.path=FILE.npz with {ARRAYS}")
    files.user_path(settings.path)


def load(settings: Settings, limits: Limits, data_root: Path) -> IsingModels:
    import numpy

    place = files.user_path(settings.path)
    try:
        with numpy.load(place, allow_pickle=False) as file:
            coupling, field = (file[name].astype(float) for name in ("A", "theta"))
    except (OSError, ValueError, EOFError, KeyError, BadZipFile, TypeError) as error:
        raise UserError(f"{place} is no .npz file of {ARRAYS}: {error}") from None
    if field.ndim != 1 or coupling.shape != (len(field),) * 2 or not numpy.allclose(coupling, coupling.T):
        raise UserError(f"{place}: A {coupling.shape} and theta {field.shape} make no model; it is {ARRAYS}")
    return IsingModels(f"ising_file:{place.stem}", {"": [IsingModel(coupling, field)]})


@dataclass(frozen=True)
class IsingModel:
    """coupling A (n, n) and field theta (n,); what stands on A's diagonal is a constant."""

    coupling: numpy.ndarray
    field: numpy.ndarray


@dataclass
class IsingModels:
    """Models by the strength of their couplings, as text."""

    display_name: str
    groups: dict[str, list[IsingModel]]
    kind: str = KIND

    def to(self, device: torch.device) -> IsingModels:
        return self

    def describe(self) -> str:
        models = [model for group in self.groups.values() for model in group]
        return f"data {self.display_name}: {len(models)} models of {len(models[0].field)} binary variables"
