"""No data: for methods that make or derive all they need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import UserError
from runner.schema import AnyDataset as Settings

if TYPE_CHECKING:
    import torch

    from runner.datasets.images import Limits

KIND = "none"


def check(settings: Settings, data_root: Path, offline: bool) -> None:
    if settings.path is not None:
        raise UserError(f"dataset.path={settings.path}: dataset=none reads nothing")


def load(settings: Settings, limits: Limits, data_root: Path) -> NoData:
    return NoData()


@dataclass
class NoData:
    kind: str = KIND
    display_name: str = "none"

    def to(self, device: torch.device) -> NoData:
        return self

    def describe(self) -> str:
        return "data: none"
