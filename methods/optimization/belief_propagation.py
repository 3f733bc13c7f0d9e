"""Loopy belief propagation and its tree-reweighted form: ln Z by the free energy at the messages' fixed point.

Pearl 1988, Yedidia, Freeman and Weiss 2000 (Bethe); Wainwright, Jaakkola and Willsky, IEEE Transactions on Information
Theory 2005 (tree-reweighted, an upper bound). Baselines of Park et al., arXiv:1905.05348. With J = 2A, edges' weights
rho (1: belief propagation), and messages as half log-odds nu_ij from i to j:

    h_ij = theta_i + sum over k of rho_ki nu_ki - nu_ji,   nu_ij = artanh(tanh(J_ij / rho_ij) tanh(h_ij))
"""

from __future__ import annotations

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
class BeliefPropagation:
    """All messages at once, damped."""

    tree_reweighted: bool = False  # each edge by its probability in a uniform spanning tree
    damping: Annotated[float, Field(ge=0, lt=1)] = 0.5  # share of the old message
    iterations: Annotated[int, Field(gt=0)] = 1000  # at most
    tolerance: Annotated[float, Field(gt=0)] = 1e-8  # change of a message at which it ends

    paper: ClassVar[str] = "none"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "Messages between neighbours are exact on trees; weighted by trees they bound from above."
    data: ClassVar[tuple[str, ...]] = ("ising",)
    model: ClassVar[tuple[str, ...]] = ("none",)
    citation: ClassVar[str] = (
        "Yedidia, Freeman, Weiss. Generalized Belief Propagation. NIPS 2000. Wainwright, Jaakkola, Willsky. A New "
        "Class of Upper Bounds on the Log Partition Function. IEEE Transactions on Information Theory, 2005."
    )
    deviations: ClassVar[tuple[str, ...]] = ("edges' weights are those of uniform spanning trees, not optimised",)

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns log_partition and error (see ``ising.measure``), and converged, the share of models (0..1)."""
        return measure(ctx, self.estimate)

    def estimate(self, model: IsingModel, generator: numpy.random.Generator) -> tuple[float, dict[str, float]]:
        """The free energy where the messages ended, whether or not they settled."""
        edges = (model.coupling != 0) & ~numpy.eye(len(model.field), dtype=bool)
        weights = spanning_tree_weights(edges) if self.tree_reweighted else edges.astype(float)
        coupling = numpy.where(edges, 2 * model.coupling, 0.0)
        scaled = coupling / numpy.where(edges, weights, 1.0)
        messages = numpy.zeros_like(coupling)
        converged = False
        for _ in range(self.iterations):
            fresh = numpy.where(edges, combined(scaled, cavity(model.field, weights, messages)), 0.0)
            change = numpy.abs(fresh - messages).max(initial=0.0)
            messages = self.damping * messages + (1 - self.damping) * fresh
            if change < self.tolerance:
                converged = True
                break
        found = free_energy(coupling, scaled, model.field, weights, messages) + numpy.diagonal(model.coupling).sum()
        return float(found), {"converged": float(converged)}


def cavity(field: numpy.ndarray, weights: numpy.ndarray, messages: numpy.ndarray) -> numpy.ndarray:
    """h (n, n): of i, without what j said; messages (n, n) from row to column."""
    return (field + (weights * messages).sum(0))[:, None] - messages.T


def combined(strength: numpy.ndarray, field: numpy.ndarray) -> numpy.ndarray:
    """artanh(tanh a tanh b), also where a tanh is 1."""
    plus, minus = strength + field, strength - field
    return (numpy.logaddexp(plus, -plus) - numpy.logaddexp(minus, -minus)) / 2


def free_energy(
    coupling: numpy.ndarray,
    scaled: numpy.ndarray,
    field: numpy.ndarray,
    weights: numpy.ndarray,
    messages: numpy.ndarray,
) -> float:
    """Energy and entropies of the beliefs: sum of H_i - sum over edges of rho_ij times their mutual information."""
    total = field + (weights * messages).sum(0)
    means = numpy.tanh(total)
    value = field @ means + (entr((1 + means) / 2) + entr((1 - means) / 2)).sum()
    fields = cavity(field, weights, messages)
    signs = numpy.array([-1.0, 1.0])
    for i, j in zip(*numpy.nonzero(numpy.triu(weights)), strict=True):
        logits = scaled[i, j] * numpy.outer(signs, signs) + fields[i, j] * signs[:, None] + fields[j, i] * signs
        pair = numpy.exp(logits - logits.max())
        pair /= pair.sum()
        information = entr(pair.sum(0)).sum() + entr(pair.sum(1)).sum() - entr(pair).sum()
        value += coupling[i, j] * (pair * numpy.outer(signs, signs)).sum() - weights[i, j] * information
    return float(value)


def spanning_tree_weights(edges: numpy.ndarray) -> numpy.ndarray:
    """(n, n): the probability that an edge is in a uniformly drawn spanning tree (of its component), its effective
    resistance; 0 where there is no edge."""
    laplacian = numpy.diag(edges.sum(1).astype(float)) - edges
    inverse = numpy.linalg.pinv(laplacian, hermitian=True)
    own = numpy.diagonal(inverse)
    return numpy.where(edges, own[:, None] + own - 2 * inverse, 0.0)
