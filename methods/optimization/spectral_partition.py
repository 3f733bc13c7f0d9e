"""Spectral approximate inference: ln Z of a binary pairwise model from the eigenvectors of its couplings.

Park, Yang, Yun and Shin, "Spectral Approximate Inference", ICML 2019, arXiv:1905.05348. No official code was found.
Formulas: ``spectral``. Deviations: see the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy
from pydantic import Field

from runner.errors import UserError
from runner.methods.optimization.ising import LARGEST, measure
from runner.methods.optimization.spectral import (
    choose_diagonal,
    low_rank_log_partition,
    rounding_bound,
    spectral_mean_field,
)

if TYPE_CHECKING:
    from runner.context import Context
    from runner.datasets.ising import IsingModel


@dataclass(kw_only=True)
class SpectralPartition:
    """A product of rank-1 models for any couplings, or the dynamic programme for those of low rank."""

    scheme: Literal["mean_field", "low_rank"] = "mean_field"
    diagonal: Literal["zero", "sdp", "nuclear", "smaller"] = "sdp"  # of mean_field; smaller: of zero's and sdp's ln Z
    rank: Annotated[int, Field(gt=0)] = 1  # of low_rank: eigenvectors of the largest absolute eigenvalues
    width: Annotated[float, Field(gt=0)] | None = 0.01  # that entries are rounded to; null: none, all states summed

    paper: ClassVar[str] = "arXiv:1905.05348"
    fidelity: ClassVar[str] = "reconstruction"
    claim: ClassVar[str] = (
        "A product over eigenvectors approximates partition functions better than mean field and belief propagation, "
        "most of all at low temperature."
    )
    data: ClassVar[tuple[str, ...]] = ("ising",)
    model: ClassVar[tuple[str, ...]] = ("none",)
    citation: ClassVar[str] = "Park, Yang, Yun, Shin. Spectral Approximate Inference. ICML 2019."
    deviations: ClassVar[tuple[str, ...]] = (
        "the product over eigenvectors and its semidefinite programme are inferred from the abstract",
        "degenerate eigenvalues leave the basis to the eigensolver, and with it the product",
        "marginals are not computed",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns log_partition and error (see ``ising.measure``); of low_rank bound, by which rounding can move
        log_partition, and states of the programme."""

        def estimate(model: IsingModel, generator: numpy.random.Generator) -> tuple[float, dict[str, float]]:
            if self.width is None and len(model.field) > LARGEST:
                raise UserError(f"method.width=null sums all states, of at most {LARGEST} variables: set a width")
            if self.scheme == "low_rank":
                return self._low_rank(model)
            kinds = ("zero", "sdp") if self.diagonal == "smaller" else (self.diagonal,)
            return min(
                spectral_mean_field(
                    model.coupling, model.field, choose_diagonal(model.coupling, kind, generator), self.width
                )
                for kind in kinds
            ), {}

        return measure(ctx, estimate)

    def _low_rank(self, model: IsingModel) -> tuple[float, dict[str, float]]:
        eigenvalues, vectors = numpy.linalg.eigh(model.coupling)
        kept = numpy.argsort(-numpy.abs(eigenvalues))[: self.rank]
        eigenvalues, vectors = eigenvalues[kept], vectors.T[kept]
        found, states = low_rank_log_partition(eigenvalues, vectors, model.field, self.width)
        bound = 0.0 if self.width is None else rounding_bound(eigenvalues, vectors, self.width)
        return found, {"states": float(states), "bound": bound}
