"""Generated pairwise models of binary variables, drawn by the run's seed. See ``ising``. No download.

complete, grid: pairs' couplings J ~ U(-strength, strength), A = J / 2; low_rank: A = strength x sum of u u' over
``rank`` random orthonormal vectors u. Fields ~ U(-field, field).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from runner.datasets.ising import KIND as KIND  # the same kind as a file's
from runner.errors import UserError
from runner.schema import AnyDataset

if TYPE_CHECKING:
    import numpy

    from runner.datasets.images import Limits
    from runner.datasets.ising import IsingModels

Size = Annotated[int, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


@dataclass(kw_only=True)
class Settings(AnyDataset):
    variables: Annotated[int, Field(ge=2)] = 10  # of a grid a square number
    graph: Literal["complete", "grid", "low_rank"] = "complete"
    rank: Size = 1  # of low_rank
    strengths: Annotated[list[NotNegative], Field(min_length=1)] = field(
        default_factory=lambda: [0.1, 0.3, 0.5, 1.0, 2.0, 4.0]
    )
    field: NotNegative = 0.1
    models: Size = 8  # of each strength

    def __post_init__(self) -> None:
        if self.graph == "grid" and round(self.variables**0.5) ** 2 != self.variables:
            raise ValueError(f"variables: a grid is a square, and {self.variables} is no square number")
        if self.rank > self.variables:
            raise ValueError("rank: at most as many as variables")


def check(settings: Settings, data_root: Path, offline: bool) -> None:
    if settings.path is not None:
        raise UserError(f"dataset.path={settings.path}: these models are generated; use dataset=ising_file")


def load(settings: Settings, limits: Limits, data_root: Path) -> IsingModels:
    import numpy

    from runner.datasets.ising import IsingModel, IsingModels

    generator = numpy.random.default_rng(numpy.random.randint(2**31))  # of the run's stream of data
    groups: dict[str, list[IsingModel]] = {}
    for strength in settings.strengths:
        for _ in range(settings.models):
            theta = generator.uniform(-settings.field, settings.field, settings.variables)
            model = IsingModel(draw_coupling(settings, strength, generator), theta)
            groups.setdefault(f"{strength:g}", []).append(model)
    return IsingModels(settings.name, groups)


def draw_coupling(settings: Settings, strength: float, generator: numpy.random.Generator) -> numpy.ndarray:
    """A (n, n) of one model."""
    import numpy

    n = settings.variables
    if settings.graph == "low_rank":
        vectors = numpy.linalg.qr(generator.normal(size=(n, settings.rank)))[0]
        return strength * vectors @ vectors.T
    upper = numpy.triu(generator.uniform(-strength, strength, (n, n)), 1)
    if settings.graph == "grid":
        side = round(n**0.5)
        row, column = numpy.divmod(numpy.arange(n), side)
        upper *= (abs(row[:, None] - row) + abs(column[:, None] - column)) == 1
    return (upper + upper.T) / 2
