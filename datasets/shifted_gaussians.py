"""Two samples of standard normal features, some of which have another mean or variance in the first; drawn anew for
every trial. Yamada et al., arXiv:1802.06226, and the follow-up's experiments. No download.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from runner.datasets.two_samples import KIND
from runner.errors import UserError
from runner.schema import AnyDataset

if TYPE_CHECKING:
    import numpy
    import torch

    from runner.datasets.images import Limits

Size = Annotated[int, Field(gt=0)]


@dataclass(kw_only=True)
class Settings(AnyDataset):
    samples: Annotated[int, Field(ge=4)] = 1000  # of each
    features: Size = 50
    shift: Literal["mean", "variance", "none"] = "mean"
    shifted: Annotated[int, Field(ge=0)] = 10
    mean: float = 0.5  # of the shifted features
    variance: Annotated[float, Field(gt=0)] = 1.5

    def __post_init__(self) -> None:
        if self.shifted > self.features:
            raise ValueError(f"shifted: there are {self.features} features")


def check(settings: Settings, data_root: Path, offline: bool) -> None:
    if settings.path is not None:
        raise UserError(f"dataset.path={settings.path}: these samples are generated; use dataset=two_sample_file")


def load(settings: Settings, limits: Limits, data_root: Path) -> ShiftedGaussians:
    return ShiftedGaussians(settings, settings.samples if limits.train is None else min(limits.train, settings.samples))


@dataclass
class ShiftedGaussians:
    settings: Settings
    samples: int
    kind: str = KIND
    display_name: str = "shifted_gaussians"
    fixed: bool = False  # every draw is anew

    def to(self, device: torch.device) -> ShiftedGaussians:
        return self

    def describe(self) -> str:
        settings = self.settings
        changed = {"mean": f"mean {settings.mean}", "variance": f"variance {settings.variance}", "none": "no change"}
        return (
            f"data {self.display_name}: two samples of {self.samples}, {settings.features} features, "
            f"{settings.shifted} of them with {changed[settings.shift]}"
        )

    @property
    def different(self) -> numpy.ndarray:
        """(features,): whose distributions differ."""
        import numpy

        return (numpy.arange(self.settings.features) < self.settings.shifted) & (self.settings.shift != "none")

    def draw(self, generator: numpy.random.Generator) -> tuple[numpy.ndarray, numpy.ndarray]:
        """(features, samples, 1) twice."""
        settings = self.settings
        first, second = generator.normal(size=(2, settings.features, self.samples, 1))
        if settings.shift == "mean":
            first[: settings.shifted] += settings.mean
        elif settings.shift == "variance":
            first[: settings.shifted] *= settings.variance**0.5
        return first, second
