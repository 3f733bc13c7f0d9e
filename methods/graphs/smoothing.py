"""Features of a graph's nodes smoothed over hops, each node weighting its own; Zhang et al., arXiv:2206.08583.

S = D^(r-1) (A + I) D^(-r),   X_k = S X_(k-1),   w_ik = softmax over k of cos(x_i, X_k[i]),   H = sum over k of w_k X_k
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy
from scipy import sparse

Weighting = Literal["adaptive", "uniform", "last"]
Ensemble = Literal["mean", "max", "concat"]
GUARD = 1e-10  # added to norms, as in the released code: nodes without features


def adjacency(edges: numpy.ndarray, nodes: int) -> sparse.csr_array:
    """A, (nodes, nodes) of 0 and 1, symmetric; an edge of a node with itself stands on the diagonal.

    Args:
        edges: (E, 2), each pair once or in both directions.
    """
    first, second = numpy.concatenate([edges, edges[:, ::-1]]).T
    matrix = sparse.csr_array((numpy.ones(len(first)), (first, second)), shape=(nodes, nodes))
    matrix.data[:] = 1
    return matrix


def propagation(matrix: sparse.csr_array, exponent: float) -> sparse.csr_array:
    """S of an adjacency matrix: rows sum to 1 at r = 0, symmetric at r = 0.5, columns sum to 1 at r = 1."""
    with_self = matrix + sparse.eye_array(matrix.shape[0])
    degrees = with_self.sum(1)
    return sparse.csr_array(
        sparse.diags_array(degrees ** (exponent - 1)) @ with_self @ sparse.diags_array(degrees**-exponent)
    )


def cosines(features: numpy.ndarray, smoothed: numpy.ndarray) -> numpy.ndarray:
    """(nodes,): of each node's raw and smoothed features (nodes, f); 0 where either is 0."""
    norms = (numpy.linalg.norm(features, axis=1) + GUARD) * (numpy.linalg.norm(smoothed, axis=1) + GUARD)
    return numpy.einsum("nf,nf->n", features, smoothed) / norms


def smooth(
    features: numpy.ndarray, matrix: sparse.csr_array, hops: Iterable[int], weighting: Weighting
) -> Iterator[tuple[int, numpy.ndarray]]:
    """(K, H) for every K of ``hops``, ascending, in one pass; H (nodes, f) has the features' type.

    adaptive: the weights above, over hops 0 to K; uniform: their mean; last: X_K alone.
    """
    wanted = set(hops)
    current = features
    total = numpy.zeros_like(features)
    weights = numpy.zeros(len(features), features.dtype)
    matrix = matrix.astype(features.dtype)
    for hop in range(max(wanted) + 1):
        if hop:
            current = matrix @ current
        if weighting != "last":
            weight = numpy.exp(cosines(features, current)) if weighting == "adaptive" else numpy.ones_like(weights)
            total += weight[:, None] * current
            weights += weight
        if hop in wanted:
            yield hop, current if weighting == "last" else total / weights[:, None]


def embed(
    features: numpy.ndarray,
    matrix: sparse.csr_array,
    hops: Iterable[int],
    exponents: Sequence[float],
    weighting: Weighting,
    ensemble: Ensemble,
) -> dict[int, numpy.ndarray]:
    """K -> the smoothed features of every exponent r together: (nodes, f), concatenated (nodes, f x exponents)."""
    found: dict[int, list[numpy.ndarray]] = {}
    for exponent in exponents:
        for hop, smoothed in smooth(features, propagation(matrix, exponent), hops, weighting):
            if hop in found and ensemble == "mean":
                found[hop][0] = found[hop][0] + smoothed
            elif hop in found and ensemble == "max":
                found[hop][0] = numpy.maximum(found[hop][0], smoothed)
            else:
                found.setdefault(hop, []).append(smoothed)
    if ensemble == "concat":
        return {hop: numpy.concatenate(parts, 1) for hop, parts in found.items()}
    share = len(exponents) if ensemble == "mean" else 1
    return {hop: parts[0] / share for hop, parts in found.items()}
