"""Comparing systems by nested mixed models: likelihood-ratio test, means, contrasts, effect sizes.

Hagmann, Meier, Riezler, ICLR 2023, arXiv:2302.04054. Every model has a random intercept per test example; models whose
fixed effects differ are compared by maximum likelihood, never by restricted likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy
from numpy import ndarray

from runner.errors import UserError
from runner.statistics.binomial_model import fit_binomial
from runner.statistics.mixed_model import MixedFit, fit

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class LikelihoodRatio:
    """A generalised likelihood-ratio test of nested models."""

    chi_squared: float  # >= 0
    degrees_of_freedom: int
    p_value: float
    log_likelihood_null: float
    log_likelihood: float


@dataclass(frozen=True)
class Estimate:
    """An estimated marginal mean of a level, or a slope; a t interval with examples - 1 degrees of freedom."""

    level: str
    at: str | None  # the value of a categorical property, 'slope' of a numeric one, None without a property
    value: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True)
class Contrast:
    """First minus second, by t with the degrees of freedom within examples; Tukey's over three or more levels."""

    first: str
    second: str
    at: str | None
    difference: float
    standard_error: float
    low: float
    high: float
    p_value: float
    effect_size: float  # difference over the residual standard deviation, an analogue of Hedges' g


@dataclass(frozen=True)
class Comparison:
    """Whether the levels of a factor differ; with ``property``, whether their difference depends on it."""

    factor: str
    property: str | None
    levels: list[str]
    test: LikelihoodRatio
    estimates: list[Estimate]
    contrasts: list[Contrast]
    residual_deviation: float
    example_deviation: float
    examples: int
    observations: int
    estimation: str  # how the models were fitted: closed form, profile likelihood, adaptive quadrature, statsmodels
    singular: bool  # the variance of the examples is estimated as zero


def likelihood_ratio(null: MixedFit, alternative: MixedFit) -> LikelihoodRatio:
    """2 (ll1 - ll0) against chi-squared with as many degrees of freedom as ``alternative`` has more coefficients."""
    from scipy.stats import chi2

    if null.restricted or alternative.restricted:
        raise ValueError("restricted likelihoods of models with different fixed effects are not comparable")
    statistic = max(0.0, 2 * (alternative.log_likelihood - null.log_likelihood))
    freedom = len(alternative.coefficients) - len(null.coefficients)
    return LikelihoodRatio(
        chi_squared=float(statistic),
        degrees_of_freedom=freedom,
        p_value=float(chi2.sf(statistic, freedom)),
        log_likelihood_null=float(null.log_likelihood),
        log_likelihood=float(alternative.log_likelihood),
    )


def compare(
    frame: pandas.DataFrame,
    *,
    score: str,
    factor: str,
    example: str,
    property: str | None = None,
    alpha: float = 0.05,
    distribution: str = "gaussian",
    engine: str = "auto",
    scale_property: bool = False,
) -> Comparison:
    """Tests score ~ factor + (1 | example) against score ~ (1 | example).

    With ``property`` x: score ~ factor * x + (1 | example) against score ~ factor + x + (1 | example). A column of
    numbers makes slopes, any other makes cells.

    Args:
        frame: one row an observation, without missing values in the columns named.
        alpha: 1 - alpha is the level of the intervals.
        distribution: ``binomial`` takes scores 0 and 1 as wrong and right, in a logit model: means are then log-odds,
            and effect sizes are over the standard deviation of the logistic distribution.
        scale_property: slopes are those by the standard deviation of a column of numbers (that of a sample, over all
            rows), not by its unit; the test is the same.

    Raises:
        UserError: one level only, no variation, or cells without observations.
    """
    levels, codes = coded(frame[factor])
    if len(levels) < 2:
        raise UserError(f"{factor} has one value only ({levels[0]}): there is nothing to compare")
    _, groups = coded(frame[example])
    scores = frame[score].to_numpy(float)
    intercept = numpy.ones((len(frame), 1))
    main = indicators(codes, len(levels))
    if property is None:
        smaller, larger = intercept, numpy.hstack([intercept, main])
        places: list[tuple[str | None, ndarray]] = [(None, numpy.ones(1))]
    else:
        values, places = _property(frame[property], scale_property)
        products = (main[:, :, None] * values[:, None, :]).reshape(len(frame), -1)
        smaller = numpy.hstack([intercept, main, values])
        larger = numpy.hstack([smaller, products])
    if distribution == "binomial":
        if not set(numpy.unique(scores)) <= {0.0, 1.0}:
            raise UserError(f"distribution=binomial needs scores of 0 and 1, and {score} has others")
        null, full = (fit_binomial(scores, design, example, groups) for design in (smaller, larger))
    else:
        null, full = (
            fit(scores, design, {example: groups}, restricted=False, engine=engine) for design in (smaller, larger)
        )
    rows = {}  # (place, level) -> the combination of coefficients that is its mean or slope
    for at, weights in places:
        for number, level in enumerate(levels):
            own = indicators(numpy.array([number]), len(levels))[0]
            if property is None:
                rows[at, level] = numpy.concatenate([[1.0], own])
            else:
                constant = 0.0 if at == "slope" else 1.0
                inner = weights if at == "slope" else indicators(weights, len(places))[0]
                rows[at, level] = numpy.concatenate([[constant], constant * own, inner, (own[:, None] * inner).ravel()])
    deviation, examples = float(numpy.sqrt(full.residual)), full.levels[example]
    tukey = _Tukey(len(levels), len(scores) - examples - larger.shape[1] + 1, alpha)
    return Comparison(
        factor=factor,
        property=property,
        levels=levels,
        test=likelihood_ratio(null, full),
        estimates=[_estimate(full, level, at, row, examples, alpha) for (at, level), row in rows.items()],
        contrasts=[
            tukey.contrast(full, (first, second), at, rows[at, first] - rows[at, second], deviation)
            for at, _ in places
            for first, second in combinations(levels, 2)
        ],
        residual_deviation=deviation,
        example_deviation=float(numpy.sqrt(full.variances[example])),
        examples=examples,
        observations=full.observations,
        estimation=full.estimation if full.estimation == null.estimation else "profile likelihood",
        singular=bool(full.singular),
    )


def coded(column: pandas.Series) -> tuple[list[str], ndarray]:
    """(levels as text, level of each row as a number); numbers in their order, categories in theirs, else by text."""
    import pandas

    values = column.astype("category") if not isinstance(column.dtype, pandas.CategoricalDtype) else column
    values = values.cat.remove_unused_categories()
    return [_text(level) for level in values.cat.categories], values.cat.codes.to_numpy().astype(int)


def indicators(codes: ndarray, levels: int) -> ndarray:
    """(N, levels - 1): treatment coding, the first level is the reference."""
    return (codes[:, None] == numpy.arange(1, levels)) * 1.0


def is_numeric(column: pandas.Series) -> bool:
    """Whether a data property makes a slope."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return is_numeric_dtype(column) and not is_bool_dtype(column)


def _text(level: Any) -> str:
    return f"{level:g}" if isinstance(level, float) else str(level)


def _property(column: pandas.Series, scaled: bool) -> tuple[ndarray, list[tuple[str | None, ndarray]]]:
    """(columns of the design, the places at which levels are compared: each category, or the slope)."""
    if is_numeric(column):
        values = column.to_numpy(float)
        spread = values.std(ddof=1) if len(values) > 1 else 0.0
        if not spread:
            raise UserError(f"the property {column.name} has one value only")
        unit = numpy.ones(1) if scaled else numpy.ones(1) / spread  # fitted standardised all the same: better condition
        return ((values - values.mean()) / spread)[:, None], [("slope", unit)]
    levels, codes = coded(column)
    if len(levels) < 2:
        raise UserError(f"the property {column.name} has one value only")
    places = [(level, numpy.array([number])) for number, level in enumerate(levels)]
    return indicators(codes, len(levels)), places


def _estimate(fitted: MixedFit, level: str, at: str | None, row: ndarray, examples: int, alpha: float) -> Estimate:
    from scipy.stats import t

    value, error = float(row @ fitted.coefficients), float(numpy.sqrt(row @ fitted.covariance @ row))
    half = float(t.isf(alpha / 2, max(examples - 1, 1))) * error
    return Estimate(level, at, value, error, value - half, value + half)


class _Tukey:
    """Two-sided p values and half widths in standard errors, for all pairs of ``levels`` levels at once."""

    def __init__(self, levels: int, freedom: int, alpha: float) -> None:
        from scipy.stats import studentized_range, t

        self.levels, self.freedom = levels, float(max(freedom, 1))
        if levels == 2:
            self._tail = lambda ratio: 2 * t.sf(ratio, self.freedom)
            self.half = float(t.isf(alpha / 2, self.freedom))
        else:
            freedom = self.freedom if freedom < 1000 else numpy.inf  # the exact integral is slow and equal by then
            self._tail = lambda ratio: studentized_range.sf(ratio * numpy.sqrt(2), levels, freedom)
            self.half = float(studentized_range.isf(alpha, levels, freedom) / numpy.sqrt(2))

    def contrast(
        self, fitted: MixedFit, pair: tuple[str, str], at: str | None, row: ndarray, deviation: float
    ) -> Contrast:
        value, error = float(row @ fitted.coefficients), float(numpy.sqrt(row @ fitted.covariance @ row))
        return Contrast(
            first=pair[0],
            second=pair[1],
            at=at,
            difference=value,
            standard_error=error,
            low=value - self.half * error,
            high=value + self.half * error,
            p_value=float(numpy.clip(self._tail(abs(value) / error), 0.0, 1.0)),
            effect_size=value / deviation,
        )
