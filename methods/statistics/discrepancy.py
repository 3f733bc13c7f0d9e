"""Maximum mean discrepancies of many features at once, from pairs of examples that all features share.

    h(i, j) = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i),   k(a, b) = exp(-|a - b|^2 / (factor median^2))

Samples are (d, n, p): d features or candidates, n examples, p numbers each; the second may be (1, n, p) for all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy

TINY = 1e-100  # of squared medians and variances: those of features that hardly vary
MEDIAN_POINTS = 100  # of the pooled sample, whose distances give the bandwidth


class Statistics(NamedTuple):
    """values (d,): sqrt(count) times the discrepancies; covariance (d, d) of them."""

    values: numpy.ndarray
    covariance: numpy.ndarray


def squared_medians(first: numpy.ndarray, second: numpy.ndarray, pooled: bool) -> numpy.ndarray:
    """(d,): the squared median distance within the two samples together, of each feature or (``pooled``) of whole
    examples for all. The first fifty examples of each speak for all; where most of them are equal, the median of 0
    counts as the smallest number, so that the kernel is its limit: 1 for equal values, else 0."""
    half = MEDIAN_POINTS // 2
    second = numpy.broadcast_to(second, first.shape)
    points = numpy.concatenate([first[:, :half], second[:, :half]], 1)
    one, other = numpy.triu_indices(points.shape[1], 1)
    distances = ((points[:, one] - points[:, other]) ** 2).sum(2)  # (d, pairs)
    if pooled:
        return numpy.full(len(first), max(numpy.median(distances.sum(0)), TINY))
    return numpy.maximum(numpy.median(distances, 1), TINY)


def random_pairs(count: int, samples: int, generator: numpy.random.Generator) -> tuple[numpy.ndarray, numpy.ndarray]:
    """i and j, (count,) each: uniform over the ordered pairs with i != j, with replacement."""
    first = generator.integers(0, samples, count)
    second = generator.integers(0, samples - 1, count)
    return first, second + (second >= first)


def units(
    first: numpy.ndarray, second: numpy.ndarray, pairs: tuple[numpy.ndarray, numpy.ndarray], scales: numpy.ndarray
) -> numpy.ndarray:
    """(d, pairs): h of every pair, of every feature; ``scales`` (d,) are what squared distances are divided by."""
    i, j = pairs

    def kernel(a: numpy.ndarray, b: numpy.ndarray) -> numpy.ndarray:
        return numpy.exp(-((a - b) ** 2).sum(2) / scales[:, None])

    xi, xj, yi, yj = first[:, i], first[:, j], second[:, i], second[:, j]
    return kernel(xi, xj) + kernel(yi, yj) - kernel(xi, yj) - kernel(xj, yi)


def linear_pairs(samples: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """(0, 1), (2, 3) ...: every example once."""
    return numpy.arange(0, samples - 1, 2), numpy.arange(1, samples, 2)


def block_pairs(samples: int, size: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """All pairs i < j within blocks of ``size`` examples, block after block; a last part of a block is left out."""
    one, other = numpy.triu_indices(size, 1)
    starts = numpy.arange(samples // size)[:, None] * size
    return (starts + one).ravel(), (starts + other).ravel()


def statistics(values: numpy.ndarray) -> Statistics:
    """Of units (d, count), taken as independent: those of random pairs, or one a block. No variance is 0."""
    count = values.shape[1]
    covariance = numpy.atleast_2d(numpy.cov(values))
    numpy.fill_diagonal(covariance, numpy.maximum(covariance.diagonal(), TINY))
    return Statistics(count**0.5 * values.mean(1), covariance)
