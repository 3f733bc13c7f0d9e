"""Annealed importance sampling of ln Z: from independent variables to the model, by Gibbs sweeps.

Neal, Statistics and Computing 2001. A baseline of Park et al., arXiv:1905.05348.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy
from pydantic import Field
from scipy.special import expit, logsumexp

from runner.methods.optimization.ising import measure

if TYPE_CHECKING:
    from runner.context import Context
    from runner.datasets.ising import IsingModel


@dataclass(kw_only=True)
class AnnealedImportance:
    """Couplings grow linearly from 0; one sweep over all variables a step."""

    steps: Annotated[int, Field(gt=0)] = 200
    chains: Annotated[int, Field(gt=0)] = 100

    paper: ClassVar[str] = "none"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "Weights of annealed chains estimate the partition function without bias."
    data: ClassVar[tuple[str, ...]] = ("ising",)
    model: ClassVar[tuple[str, ...]] = ("none",)
    citation: ClassVar[str] = "Neal. Annealed Importance Sampling. Statistics and Computing, 2001."
    deviations: ClassVar[tuple[str, ...]] = ()

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns log_partition and error (see ``ising.measure``)."""
        return measure(ctx, self.estimate)

    def estimate(self, model: IsingModel, generator: numpy.random.Generator) -> tuple[float, dict[str, float]]:
        """ln of the mean weight."""
        field, variables = model.field, len(model.field)
        diagonal = numpy.diagonal(model.coupling)
        off = model.coupling - numpy.diag(diagonal)
        states = numpy.where(generator.random((self.chains, variables)) < expit(2 * field), 1.0, -1.0)
        weights = numpy.zeros(self.chains)
        for step in range(1, self.steps + 1):
            weights += ((states @ off) * states).sum(1) / self.steps
            draws = generator.random((variables, self.chains))
            for i in range(variables):
                up = expit(2 * (field[i] + 2 * step / self.steps * (states @ off[i])))
                states[:, i] = numpy.where(draws[i] < up, 1.0, -1.0)
        start = numpy.logaddexp(field, -field).sum()
        return float(start + diagonal.sum() + logsumexp(weights) - math.log(self.chains)), {}
