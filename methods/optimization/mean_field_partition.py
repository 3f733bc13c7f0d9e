"""Naive mean field: a lower bound of ln Z from independent variables.

    ln Z >= max over m of theta'm + m'Am + sum of H(m_i),   at m_i = tanh(theta_i + 2 sum over j of A_ij m_j)

Peterson and Anderson, Complex Systems 1 (1987); a baseline of Park et al., arXiv:1905.05348.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy
from pydantic import Field
from scipy.special import entr

from runner.methods.optimization.ising import measure

if TYPE_CHECKING:
    from runner.context import Context
    from runner.datasets.ising import IsingModel


@dataclass(kw_only=True)
class MeanFieldPartition:
    """Coordinate ascent from random starts, of which the best counts."""

    restarts: Annotated[int, Field(gt=0)] = 5
    sweeps: Annotated[int, Field(gt=0)] = 500  # at most, over all variables
    tolerance: Annotated[float, Field(gt=0)] = 1e-8  # change of a mean in a sweep at which it ends

    paper: ClassVar[str] = "none"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "Independent variables bound the partition function from below."
    data: ClassVar[tuple[str, ...]] = ("ising",)
    model: ClassVar[tuple[str, ...]] = ("none",)
    citation: ClassVar[str] = (
        "Peterson, Anderson. A Mean Field Theory Learning Algorithm for Neural Networks. Complex Systems, 1987."
    )
    deviations: ClassVar[tuple[str, ...]] = ()

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns log_partition and error (see ``ising.measure``)."""
        return measure(ctx, self.estimate)

    def estimate(self, model: IsingModel, generator: numpy.random.Generator) -> tuple[float, dict[str, float]]:
        """The bound of the best start."""
        off = model.coupling - numpy.diag(numpy.diagonal(model.coupling))
        best = -math.inf
        for _ in range(self.restarts):
            means = generator.uniform(-1, 1, len(model.field))
            for _ in range(self.sweeps):
                before = means.copy()
                for i, row in enumerate(off):
                    means[i] = math.tanh(model.field[i] + 2 * (row @ means))
                if numpy.abs(means - before).max() < self.tolerance:
                    break
            best = max(best, lower_bound(model.coupling, model.field, means))
        return best, {}


def lower_bound(coupling: numpy.ndarray, field: numpy.ndarray, means: numpy.ndarray) -> float:
    """theta'm + m'Am + entropy of independent variables of means (n,); A's diagonal counts as it is: x_i^2 = 1."""
    diagonal = numpy.diagonal(coupling)
    energy = field @ means + means @ coupling @ means + diagonal @ (1 - means**2)
    return float(energy + (entr((1 + means) / 2) + entr((1 - means) / 2)).sum())
