"""Partition functions from eigenvectors: a dynamic programme for few of them, and a product over all.

Park, Yang, Yun and Shin, ICML 2019, arXiv:1905.05348. Models are exp(theta'x + x'Ax), x in {-1, +1}^n; because of
x_i^2 = 1, x'Ax = x'(A + D)x - tr D for every diagonal D.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy
from scipy.special import logsumexp

from runner.methods.optimization.ising import all_states

Diagonal = Literal["zero", "sdp", "nuclear"]


class Sums(NamedTuple):
    """What sums over x of vectors' entries can be: points (m, r), and the log of each one's probability (m,)."""

    points: numpy.ndarray
    log_probability: numpy.ndarray


def quantised_sums(vectors: numpy.ndarray, field: numpy.ndarray, width: float) -> Sums:
    """Of <u_j, x>, entries rounded to multiples of ``width``, x of independent entries with odds e^(2 theta_i).

    Args:
        vectors: (r, n).
        field: (n,), theta.
    """
    steps = numpy.rint(vectors / width).astype(numpy.int64).T  # (n, r)
    states, weights = numpy.zeros((1, len(vectors)), numpy.int64), numpy.ones(1)
    for step, theta in zip(steps, field, strict=True):
        up = 1 / (1 + math.exp(-2 * theta))
        moved = numpy.concatenate([states + step, states - step])
        states, place = numpy.unique(moved, axis=0, return_inverse=True)
        weights = numpy.bincount(place.ravel(), numpy.concatenate([up * weights, (1 - up) * weights]))
    with numpy.errstate(divide="ignore"):
        return Sums(width * states, numpy.log(weights))


def exact_sums(vectors: numpy.ndarray, field: numpy.ndarray) -> Sums:
    """The same without rounding, over all 2^n states."""
    states = all_states(len(field))
    log_probability = states @ field - numpy.logaddexp(field, -field).sum()
    return Sums(states @ vectors.T, log_probability)


def sums(vectors: numpy.ndarray, field: numpy.ndarray, width: float | None) -> Sums:
    return exact_sums(vectors, field) if width is None else quantised_sums(vectors, field, width)


def low_rank_log_partition(
    eigenvalues: numpy.ndarray, vectors: numpy.ndarray, field: numpy.ndarray, width: float | None
) -> tuple[float, int]:
    """ln Z of A = sum of lam_j u_j u_j', and the number of states of the programme.

    Args:
        eigenvalues: (r,).
        vectors: (r, n), u_j.
    """
    found = sums(vectors, field, width)
    energy = (found.points**2) @ eigenvalues
    total = logsumexp(found.log_probability + energy) + numpy.logaddexp(field, -field).sum()
    return float(total), len(found.points)


def rounding_bound(eigenvalues: numpy.ndarray, vectors: numpy.ndarray, width: float) -> float:
    """By how much rounding can move ln Z: sum of |lam_j| (n c / 2) (2 |u_j|_1 + n c / 2)."""
    reach = vectors.shape[1] * width / 2
    return float((numpy.abs(eigenvalues) * reach * (2 * numpy.abs(vectors).sum(1) + reach)).sum())


def spectral_mean_field(
    coupling: numpy.ndarray, field: numpy.ndarray, diagonal: numpy.ndarray, width: float | None
) -> float:
    """ln Z of a product of rank-1 models: <u_j, x> of all eigenvectors of A + D as if independent.

    Z = e^(-tr D) 2^n prod_j mean over x of exp(lam_j <u_j, x>^2 + <u_j, theta> <u_j, x>)
    """
    eigenvalues, vectors = numpy.linalg.eigh(coupling + numpy.diag(diagonal))
    nothing = numpy.zeros(len(field))
    total = len(field) * math.log(2) - diagonal.sum()
    for eigenvalue, vector in zip(eigenvalues, vectors.T, strict=True):
        points, log_probability = sums(vector[None], nothing, width)
        y = points[:, 0]
        total += logsumexp(log_probability + eigenvalue * y**2 + (vector @ field) * y)
    return float(total)


def choose_diagonal(coupling: numpy.ndarray, kind: Diagonal, generator: numpy.random.Generator) -> numpy.ndarray:
    """D, (n,)."""
    if kind == "zero":
        return numpy.zeros(len(coupling))
    if kind == "sdp":
        return -largest_diagonal(coupling, generator)
    return nuclear_diagonal(coupling)


def largest_diagonal(coupling: numpy.ndarray, generator: numpy.random.Generator, sweeps: int = 500) -> numpy.ndarray:
    """D' (n,) of least sum with Diag(D') - A positive semidefinite, A's own diagonal aside: the dual of the bound of
    Goemans and Williamson, tr D' >= max of x'Ax. By coordinate ascent over unit vectors, made feasible at the end."""
    off = coupling - numpy.diag(numpy.diagonal(coupling))
    vectors = generator.normal(size=coupling.shape)
    vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)
    lengths = numpy.zeros(len(off))
    for _ in range(sweeps):
        before = lengths.copy()
        for i, row in enumerate(off):
            pull = row @ vectors
            lengths[i] = math.sqrt(pull @ pull)
            if lengths[i] > 0:
                vectors[i] = pull / lengths[i]
        if numpy.abs(lengths - before).max() < 1e-13 * max(1.0, lengths.max()):
            break
    short = numpy.linalg.eigvalsh(off - numpy.diag(lengths))[-1]
    return lengths + max(short, 0.0) + numpy.diagonal(coupling)


def nuclear_diagonal(coupling: numpy.ndarray, steps: int = 300) -> numpy.ndarray:
    """D (n,) with a small sum of the absolute eigenvalues of A + D, by the best of a subgradient method's steps."""
    diagonal = numpy.zeros(len(coupling))
    best, found = math.inf, diagonal
    size = numpy.abs(coupling).sum(1).max() / 4
    for step in range(steps):
        eigenvalues, vectors = numpy.linalg.eigh(coupling + numpy.diag(diagonal))
        value = numpy.abs(eigenvalues).sum()
        if value < best:
            best, found = value, diagonal
        diagonal = diagonal - size / math.sqrt(step + 1) * (vectors**2 @ numpy.sign(eigenvalues))
    return found
