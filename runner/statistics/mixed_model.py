"""Linear mixed models with crossed random intercepts, by maximum likelihood (ML) or restricted likelihood (REML).

    y = X beta + sum_k Z_k b_k + e,   b_k ~ N(0, v_k I),   e ~ N(0, s I)

The residual variance and beta are profiled out (Bates et al. 2015, arXiv:1406.5823, section 3), which leaves the
relative standard deviations t_k = sqrt(v_k / s). The factor with the most levels (the test examples) is eliminated
analytically, so one evaluation costs its levels times the square of all other levels: tables of 10,000 examples by
tens of runs take a second. Balanced tables need no search at all: their variances have a closed form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy
from numpy import ndarray

from runner.errors import UserError

TOLERANCE = 1e-9


@dataclass(frozen=True)
class MixedFit:
    """A fitted model; ``covariance`` is that of the coefficients."""

    coefficients: ndarray  # (p,)
    covariance: ndarray  # (p, p)
    variances: dict[str, float]  # of the random intercepts, by factor, >= 0
    residual: float  # variance, > 0
    log_likelihood: float  # restricted where ``restricted``
    restricted: bool
    observations: int
    levels: dict[str, int]
    estimation: str  # "closed form" | "profile likelihood" | "statsmodels"

    @property
    def singular(self) -> tuple[str, ...]:
        """Factors whose variance lies at the boundary, zero."""
        return tuple(name for name, variance in self.variances.items() if variance == 0)


def fit(
    scores: ndarray, design: ndarray, factors: Mapping[str, ndarray], *, restricted: bool, engine: str = "auto"
) -> MixedFit:
    """The (restricted) maximum likelihood estimate, in closed form where the table is balanced.

    Args:
        scores: (N,), finite.
        design: (N, p) of full rank, the intercept among its columns.
        factors: for each random intercept the group of each row as numbers 0..levels-1, (N,).
        engine: ``auto``; ``search`` never uses the closed form; ``statsmodels`` asks that library instead.

    Raises:
        UserError: nothing varies, or columns of the design say the same.
    """
    if engine == "statsmodels":
        from runner.statistics.with_statsmodels import fit_with_statsmodels

        return fit_with_statsmodels(scores, design, factors, restricted=restricted)
    profile = _Profile(scores, design, factors)
    if profile.left_over <= TOLERANCE**2 * max(float(scores @ scores), 1e-300):
        raise UserError("the scores do not vary beyond what the compared groups explain: there is nothing to test")
    variances = None
    if engine == "auto":
        variances = balanced_variances(profile.residuals, design, profile.factors, restricted=restricted)
    if variances is not None:
        residual = variances.pop("residual")
        ratios = numpy.sqrt([variances[name] / residual for name in profile.factors])
        return profile.at(ratios, restricted, "closed form")
    return profile.at(_search(profile, restricted), restricted, "profile likelihood")


def balanced_variances(
    residuals: ndarray, design: ndarray, factors: Mapping[str, ndarray], *, restricted: bool
) -> dict[str, float] | None:
    """The variances (by factor, and ``residual``) of a balanced table from its mean squares; None if it is not one.

    Balanced: each factor has groups of equal size, two factors meet equally often at each pair of levels, and the
    averages of the design over each factor are combinations of its columns, so that generalised and ordinary least
    squares agree (Zyskind 1967). Then the likelihood is a product over the strata of the analysis of variance. A
    stratum whose mean square lies below the residual's is pooled with it, the smallest first, which is the maximum on
    the boundary (Thompson 1962 for the restricted likelihood). ML has this form with one factor only.

    Args:
        residuals: (N,) of ordinary least squares on ``design``.
    """
    count, columns = design.shape
    if not factors or not (restricted or len(factors) == 1) or not _in_span(numpy.ones((count, 1)), design):
        return None
    names = list(factors)
    for place, name in enumerate(names):
        for other in [None, *names[:place]]:
            codes = factors[name]
            if other is not None:
                codes = codes * (factors[other].max() + 1) + factors[other]
            expected = (factors[name].max() + 1) * (1 if other is None else factors[other].max() + 1)
            sizes = numpy.bincount(codes, minlength=expected)
            if sizes.min() != sizes.max():
                return None
    strata: dict[str, tuple[float, int, float]] = {}  # sum of squares, degrees of freedom, group size
    for name, codes in factors.items():
        levels = int(codes.max()) + 1
        size = count / levels
        averages = _group_sums(codes, design) / size
        if not _in_span(averages[codes], design):
            return None
        between = numpy.linalg.matrix_rank(averages - averages.mean(0), tol=1e-8 * max(1.0, abs(averages).max()))
        freedom = levels - 1 - int(between) if restricted else levels
        sums = numpy.bincount(codes, residuals)
        strata[name] = (float(sums @ sums) / size, freedom, size)
    total = count - columns if restricted else count
    freedom = total - sum(item[1] for item in strata.values())
    squares = float(residuals @ residuals) - sum(item[0] for item in strata.values())
    if freedom <= 0 or any(item[1] <= 0 for item in strata.values()):
        return None
    if squares <= TOLERANCE**2 * float(residuals @ residuals):
        return None  # no residual variance: the search approaches it, or says so
    found = {}
    for name, (stratum, degrees, size) in sorted(strata.items(), key=lambda item: item[1][0] / item[1][1]):
        if stratum / degrees <= squares / freedom:
            squares, freedom = squares + stratum, freedom + degrees
            found[name] = 0.0
        else:
            found[name] = (stratum / degrees - squares / freedom) / size
    return {**{name: found[name] for name in factors}, "residual": squares / freedom}


class _Profile:
    """The cross-products of one table, from which the profiled likelihood follows for any relative deviations."""

    def __init__(self, scores: ndarray, design: ndarray, factors: Mapping[str, ndarray]) -> None:
        from scipy import sparse

        self.count, self.columns = design.shape
        self.ordinary, _, rank, _ = numpy.linalg.lstsq(design, scores, rcond=None)
        if rank < self.columns:
            raise UserError("two of the compared properties say the same on these rows: their effects cannot be told")
        self.residuals = scores - design @ self.ordinary  # the search runs on them: nothing cancels
        self.left_over = float(self.residuals @ self.residuals)
        self.levels = {name: int(codes.max()) + 1 for name, codes in factors.items()}
        ordered = sorted(factors, key=lambda name: -self.levels[name])
        self.factors = {name: numpy.asarray(factors[name]) for name in ordered}
        indicators = [
            sparse.csr_matrix((numpy.ones(self.count), (numpy.arange(self.count), codes)))
            for codes in self.factors.values()
        ]
        dense = sparse.csr_matrix(numpy.column_stack([design, self.residuals]))
        columns = sparse.hstack([*indicators[1:], dense]).tocsr()
        self.products = (columns.T @ columns).toarray()
        self.inner = columns.shape[1] - self.columns - 1  # levels of all factors but the first
        self.sums = (indicators[0].T @ columns).toarray() if indicators else numpy.zeros((0, columns.shape[1]))
        self.sizes = numpy.asarray(indicators[0].sum(0)).ravel() if indicators else numpy.zeros(0)

    def solve(self, ratios: ndarray, restricted: bool) -> tuple[float, ndarray, ndarray, float]:
        """(-2 log likelihood, coefficients of the residuals, inverse information times s, s) at relative deviations."""
        from scipy.linalg import solve_triangular

        first = float(ratios[0]) ** 2 if len(ratios) else 0.0
        weights = first / (1 + first * self.sizes)
        products = self.products - self.sums.T @ (weights[:, None] * self.sums)
        determinant = float(numpy.log1p(first * self.sizes).sum())
        inner = self.inner
        scale = numpy.repeat(ratios[1:], [self.levels[name] for name in list(self.factors)[1:]])
        triangle = numpy.linalg.cholesky(numpy.eye(inner) + scale[:, None] * products[:inner, :inner] * scale)
        determinant += 2 * float(numpy.log(numpy.diag(triangle)).sum())
        half = solve_triangular(triangle, scale[:, None] * products[:inner, inner:], lower=True)
        rest = products[inner:, inner:] - half.T @ half
        information, moment = rest[:-1, :-1], rest[:-1, -1]
        coefficients = numpy.linalg.solve(information, moment)
        squares = float(rest[-1, -1] - moment @ coefficients)
        freedom = self.count - (self.columns if restricted else 0)
        variance = max(squares, 1e-300) / freedom
        if restricted:
            determinant += float(numpy.linalg.slogdet(information)[1])
        deviance = freedom * (numpy.log(2 * numpy.pi * variance) + 1) + determinant
        return deviance, coefficients, numpy.linalg.inv(information), variance

    def at(self, ratios: ndarray, restricted: bool, estimation: str) -> MixedFit:
        deviance, coefficients, inverse, variance = self.solve(ratios, restricted)
        found = dict(zip(self.factors, (float(ratio) ** 2 * variance for ratio in ratios), strict=True))
        return MixedFit(
            coefficients=self.ordinary + coefficients,
            covariance=variance * inverse,
            variances={name: found[name] for name in self.levels},
            residual=variance,
            log_likelihood=-deviance / 2,
            restricted=restricted,
            observations=self.count,
            levels=self.levels,
            estimation=estimation,
        )


def _search(profile: _Profile, restricted: bool) -> ndarray:
    """The relative deviations (>= 0) of the highest likelihood; those that may as well be zero are zero."""
    from scipy.optimize import minimize

    def deviance(ratios: ndarray) -> float:
        return profile.solve(ratios, restricted)[0]

    best, lowest = numpy.ones(len(profile.factors)), numpy.inf
    for _ in range(10):  # the simplex is spread out again until it stays where it is
        options = {"xatol": 1e-7, "fatol": TOLERANCE, "maxiter": 2000, "maxfev": 4000}
        found = minimize(deviance, best, method="Nelder-Mead", bounds=[(0, 1e4)] * len(best), options=options)
        settled = lowest - found.fun < 1e-7
        best, lowest = found.x, min(found.fun, lowest)
        if settled:
            break
    for place in range(len(best)):
        without = best.copy()
        without[place] = 0.0
        if deviance(without) <= lowest + 1e-7:
            best = without
    return best


def _group_sums(codes: ndarray, columns: ndarray) -> ndarray:
    return numpy.stack([numpy.bincount(codes, column) for column in columns.T], axis=1)


def _in_span(columns: ndarray, design: ndarray) -> bool:
    """Whether every column is a combination of the design's."""
    solution = numpy.linalg.lstsq(design, columns, rcond=None)[0]
    return bool(numpy.allclose(design @ solution, columns, rtol=0, atol=1e-8 * max(1.0, float(abs(columns).max()))))
