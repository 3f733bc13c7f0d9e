"""A logit model of right and wrong with a random intercept per test example, by maximum likelihood.

    P(y = 1) = logistic(X beta + t u),   u ~ N(0, 1) for each example

The integral over u is taken by adaptive Gauss-Hermite quadrature (Pinheiro and Bates 1995, section 2.4); the rows of an
example with equal covariates count as one row of successes and trials, so repeated runs cost nothing.
"""

from __future__ import annotations

import numpy
from numpy import ndarray

from runner.errors import UserError
from runner.statistics.mixed_model import MixedFit

NODES = 15
SMALLEST_INFORMATION = 1e-4  # below, a standard error of log-odds is above 100
LOGISTIC_VARIANCE = numpy.pi**2 / 3  # of the latent residual


def fit_binomial(scores: ndarray, design: ndarray, name: str, codes: ndarray) -> MixedFit:
    """The maximum likelihood estimate; ``residual`` is the variance of the logistic distribution, not estimated.

    Args:
        scores: (N,), 0 or 1.
        design: (N, p) of full rank.
        codes: (N,) the example of each row, 0..examples-1; ``name`` names the factor.

    Raises:
        UserError: all scores are equal, a cell of the design has no wrong or no right ones, or columns say the same.
    """
    from scipy.optimize import minimize

    if scores.min() == scores.max():
        raise UserError("the scores do not vary: there is nothing to test")
    if numpy.linalg.matrix_rank(design) < design.shape[1]:
        raise UserError("two of the compared properties say the same on these rows: their effects cannot be told")
    table = _Table(scores, design, codes)
    limits = [(-30.0, 30.0)] * design.shape[1]  # beyond, a whole cell is right or wrong: as good as sure
    best, lowest = numpy.append(numpy.zeros(design.shape[1]), 1.0), numpy.inf
    for deviations in ((0.0, 30.0), (0.0, 0.0)):  # the boundary wins where it is as likely
        start = numpy.append(best[:-1], min(best[-1], deviations[1]))
        found = minimize(
            table.negative, start, jac=True, method="L-BFGS-B", bounds=[*limits, deviations], options={"ftol": 1e-13}
        )
        if found.fun <= lowest + 1e-7:
            best, lowest = found.x, found.fun
    return MixedFit(
        coefficients=best[:-1],
        covariance=table.covariance(best),
        variances={name: float(best[-1]) ** 2},
        residual=float(LOGISTIC_VARIANCE),
        log_likelihood=-float(lowest),
        restricted=False,
        observations=len(scores),
        levels={name: int(codes.max()) + 1},
        estimation="adaptive quadrature",
    )


class _Table:
    """Successes and trials of each example and distinct row of covariates."""

    def __init__(self, scores: ndarray, design: ndarray, codes: ndarray) -> None:
        rows = numpy.column_stack([codes, design])
        distinct, places = numpy.unique(rows, axis=0, return_inverse=True)
        places = places.ravel()
        self.codes = distinct[:, 0].astype(int)
        self.design = distinct[:, 1:]
        self.trials = numpy.bincount(places).astype(float)
        self.successes = numpy.bincount(places, scores)
        self.groups = int(codes.max()) + 1
        self.starts = numpy.searchsorted(self.codes, numpy.arange(self.groups))  # rows are sorted by example
        nodes, weights = numpy.polynomial.hermite.hermgauss(NODES)
        self.nodes, self.log_weights = nodes, numpy.log(weights) + nodes**2

    def negative(self, parameters: ndarray) -> tuple[float, ndarray]:
        """(-log likelihood, its gradient) at (beta, t)."""
        total, gradients = self._integrals(parameters)
        return -float(total.sum()), -gradients.sum(0)

    def covariance(self, parameters: ndarray) -> ndarray:
        """Of beta (p, p): the inverse of minus the second derivatives, by central differences of the gradient."""
        columns, step = len(parameters) - 1, 1e-4
        count = columns + (parameters[-1] > step)  # at the boundary t is not estimated
        moves = step * numpy.eye(columns + 1)[:count]
        rows = [self.negative(parameters + move)[1] - self.negative(parameters - move)[1] for move in moves]
        found = numpy.array(rows)[:, :count] / (2 * step)
        found = (found + found.T) / 2
        if numpy.linalg.eigvalsh(found).min() < SMALLEST_INFORMATION:
            raise UserError("a compared cell is all right or all wrong: its log-odds are not finite, or not to be told")
        return numpy.linalg.inv(found)[:columns, :columns]

    def _integrals(self, parameters: ndarray) -> tuple[ndarray, ndarray]:
        """Per example: log likelihood (G,) and its gradient (G, p + 1)."""
        beta, scale = parameters[:-1], parameters[-1]
        fixed = self.design @ beta
        mode = numpy.zeros(self.groups)
        highest = 1 + scale * self._sum(self.trials)  # beyond them the slope has one sign
        lowest = -highest
        for _ in range(100):  # the slope falls in u: Newton's step where it stays between the bounds, else halving
            chance = _logistic(fixed + scale * mode[self.codes])
            slope = scale * self._sum(self.successes - self.trials * chance) - mode
            curvature = scale**2 * self._sum(self.trials * chance * (1 - chance)) + 1
            lowest, highest = numpy.where(slope > 0, mode, lowest), numpy.where(slope > 0, highest, mode)
            moved = mode + slope / curvature
            inside = (moved > lowest) & (moved < highest)
            moved = numpy.where(inside, moved, (lowest + highest) / 2)
            moved = numpy.where(abs(slope) < 1e-9, mode, moved)
            if abs(moved - mode).max() < 1e-10:
                break
            mode = moved
        spread = numpy.sqrt(2 / curvature)
        points = mode[:, None] + spread[:, None] * self.nodes  # (G, nodes)
        predictor = fixed[:, None] + scale * points[self.codes]
        likelihood = self.successes[:, None] * predictor - self.trials[:, None] * numpy.logaddexp(0, predictor)
        joint = numpy.add.reduceat(likelihood, self.starts) + self.log_weights - points**2 / 2
        highest = joint.max(1, keepdims=True)
        shares = numpy.exp(joint - highest)
        mass = shares.sum(1, keepdims=True)
        total = (highest + numpy.log(mass)).ravel() + numpy.log(spread) - numpy.log(2 * numpy.pi) / 2
        shares /= mass
        # The derivative of a log integral is the mean derivative under the integrand.
        error = self.successes[:, None] - self.trials[:, None] * _logistic(predictor)
        weighted = shares[self.codes] * error
        by_row = weighted.sum(1)
        by_scale = (weighted * points[self.codes]).sum(1)
        gradient = numpy.column_stack([*(self._sum(by_row * column) for column in self.design.T), self._sum(by_scale)])
        return total, gradient

    def _sum(self, values: ndarray) -> ndarray:
        return numpy.bincount(self.codes, values, minlength=self.groups)


def _logistic(values: ndarray) -> ndarray:
    return 1 / (1 + numpy.exp(-numpy.clip(values, -500, 500)))
