"""The logit model with a random intercept: its likelihood is the integral, its gradient the slope, its limits known."""

import numpy
import pytest
from scipy.integrate import quad
from scipy.special import expit
from worked_examples import simulated

from runner.errors import UserError
from runner.statistics import analyse
from runner.statistics.binomial_model import _Table, fit_binomial
from runner.statistics.comparison import compare


def right_and_wrong(examples, seeds, effect, tau, seed=0):
    frame = simulated(seed, examples, seeds)
    draw = numpy.random.default_rng(seed)
    odds = 0.5 + effect * (frame["system"] == "B") + draw.normal(0, tau, examples)[frame["example"]]
    frame["score"] = (draw.random(len(frame)) < expit(odds)).astype(float)
    design = numpy.column_stack([numpy.ones(len(frame)), frame["system"] == "B"]).astype(float)
    return frame, design


def integral(frame, design, fitted):
    deviation, total = numpy.sqrt(fitted.variances["example"]), 0.0
    for number in frame["example"].unique():
        rows = (frame["example"] == number).to_numpy()
        signs, fixed = 2 * frame["score"].to_numpy()[rows] - 1, design[rows] @ fitted.coefficients

        def joint(u, signs=signs, fixed=fixed):
            return expit(signs * (fixed + deviation * u)).prod() * numpy.exp(-u * u / 2) / numpy.sqrt(2 * numpy.pi)

        total += numpy.log(quad(joint, -12, 12)[0])
    return total


def test_the_likelihood_is_the_integral():
    frame, design = right_and_wrong(30, 3, 0.8, 1.2)
    fitted = fit_binomial(frame["score"].to_numpy(), design, "example", frame["example"].to_numpy())
    assert fitted.log_likelihood == pytest.approx(integral(frame, design, fitted), abs=1e-6)


def test_the_gradient_is_the_slope_and_vanishes_at_the_estimate():
    frame, design = right_and_wrong(30, 3, 0.8, 1.2)
    scores, codes = frame["score"].to_numpy(), frame["example"].to_numpy()
    table, place = _Table(scores, design, codes), numpy.array([0.3, 0.2, 0.9])
    slopes = [(table.negative(place + d)[0] - table.negative(place - d)[0]) / 2e-5 for d in 1e-5 * numpy.eye(3)]
    assert table.negative(place)[1] == pytest.approx(slopes, abs=1e-5)
    fitted = fit_binomial(scores, design, "example", codes)
    best = numpy.append(fitted.coefficients, numpy.sqrt(fitted.variances["example"]))
    assert abs(table.negative(best)[1]).max() < 1e-2


def test_without_variance_between_examples_it_is_logistic_regression():
    frame, design = right_and_wrong(40, 6, 0.8, 0.0)
    share = frame.groupby("system")["score"].mean()
    fitted = fit_binomial(frame["score"].to_numpy(), design, "example", numpy.arange(len(frame)) % len(frame))
    assert fitted.singular == ("example",)
    assert expit(fitted.coefficients.cumsum()) == pytest.approx(share.to_numpy(), abs=1e-4)
    assert fitted.covariance[0, 0] == pytest.approx(1 / (240 * share["A"] * (1 - share["A"])), rel=1e-3)


def test_a_difference_is_found_and_no_difference_is_not():
    options = {"score": "score", "factor": "system", "example": "example", "distribution": "binomial"}
    found = compare(right_and_wrong(100, 4, 1.0, 1.5)[0], **options)
    assert found.test.p_value < 1e-3
    assert found.contrasts[0].difference == pytest.approx(-1.0, abs=0.4)
    assert found.contrasts[0].effect_size == pytest.approx(found.contrasts[0].difference * numpy.sqrt(3) / numpy.pi)
    rejected = sum(compare(right_and_wrong(30, 3, 0.0, 1.0, s)[0], **options).test.p_value < 0.05 for s in range(60))
    assert rejected <= 8


def test_a_cell_without_errors_has_no_log_odds():
    frame, design = right_and_wrong(30, 3, 0.8, 1.2)
    scores = numpy.where(frame["system"] == "B", 1.0, frame["score"])
    with pytest.raises(UserError, match="all right or all wrong"):
        fit_binomial(scores, design, "example", frame["example"].to_numpy())


def test_examples_that_are_nearly_always_right():
    """Steep integrands, whose modes plain Newton steps miss: likelihood ratio and Wald test agree all the same."""
    frame, design = right_and_wrong(300, 10, 0.6, 6.0)
    scores, codes = frame["score"].to_numpy(), frame["example"].to_numpy()
    null, full = (fit_binomial(scores, columns, "example", codes) for columns in (design[:, :1], design))
    ratio = 2 * (full.log_likelihood - null.log_likelihood)
    assert ratio == pytest.approx(full.coefficients[1] ** 2 / full.covariance[1, 1], rel=0.1)
    assert full.variances["example"] == pytest.approx(36, rel=0.4)


def test_other_scores_are_refused():
    with pytest.raises(UserError, match="needs scores of 0 and 1"):
        compare(simulated(0, 10, 2), score="score", factor="system", example="example", distribution="binomial")


def test_the_analysis_says_what_it_took_the_score_for():
    frame, _ = right_and_wrong(30, 3, 0.8, 1.2)
    assert any("distribution=binomial" in note for note in analyse(frame).notes)
    found = analyse(frame, distribution="binomial")
    assert found.finding().estimation == "adaptive quadrature"
    assert any("log-odds" in note for note in found.notes)
