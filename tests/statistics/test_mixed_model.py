"""Closed form, profile likelihood, statsmodels and the density itself agree; worked numbers of the card."""

import sys

import numpy
import pytest
from scipy.stats import multivariate_normal
from worked_examples import one_system, simulated, two_systems

from runner.errors import UserError
from runner.statistics.mixed_model import balanced_variances, fit


def table(frame, *factors):
    scores = frame["score"].to_numpy()
    system = (frame["system"] == "B").to_numpy() * 1.0
    codes = {name: frame[name].to_numpy() for name in factors}
    intercept = numpy.ones((len(frame), 1))
    return scores, intercept, numpy.column_stack([intercept, system]), codes


def density(scores, design, factors, fitted):
    """The likelihood as the normal density with the fitted covariance, restricted where the fit is."""
    covariance = fitted.residual * numpy.eye(len(scores))
    for name, codes in factors.items():
        covariance += fitted.variances[name] * (codes[:, None] == codes)
    found = multivariate_normal(design @ fitted.coefficients, covariance).logpdf(scores)
    if fitted.restricted:  # Patterson and Thompson 1971, with the constant of lme4
        information = design.T @ numpy.linalg.solve(covariance, design)
        found -= (numpy.linalg.slogdet(information)[1] - design.shape[1] * numpy.log(2 * numpy.pi)) / 2
    return found


def incomplete(seed=3):
    frame = simulated(seed, 12, 4, effect=0.02)
    return frame.drop(index=[1, 5, 6, 20, 33, 50]).reset_index(drop=True)


@pytest.mark.parametrize("engine", ["auto", "search", "statsmodels"])
def test_the_worked_comparison(engine):
    scores, null, full, factors = table(two_systems(), "example")
    smaller, larger = (fit(scores, design, factors, restricted=False, engine=engine) for design in (null, full))
    assert (round(smaller.log_likelihood, 5), round(larger.log_likelihood, 5)) == (24.52116, 29.83280)
    assert round(2 * (larger.log_likelihood - smaller.log_likelihood), 5) == 10.62327
    assert larger.residual == pytest.approx(0.00042292, abs=5e-9)
    assert larger.variances["example"] == pytest.approx(0.01281146, abs=1e-6 if engine == "statsmodels" else 5e-9)
    assert larger.coefficients.sum() == pytest.approx(0.7075)
    assert larger.coefficients[0] == pytest.approx(0.665)


@pytest.mark.parametrize("engine", ["auto", "search", "statsmodels"])
def test_the_worked_variance_components(engine):
    frame = one_system()
    scores, null, _, factors = table(frame, "example", "seed")
    found = fit(scores, null, factors, restricted=True, engine=engine)
    expected = {"example": 0.01731389, "seed": 0.00089167}
    tolerance = 5e-6 if engine == "statsmodels" else 5e-9
    assert found.variances == pytest.approx(expected, abs=tolerance)
    assert found.residual == pytest.approx(0.00035833, abs=tolerance)
    total = sum(found.variances.values()) + found.residual
    shares = [100 * value / total for value in (*found.variances.values(), found.residual)]
    assert [round(share, 2) for share in shares] == [93.27, 4.80, 1.93]


@pytest.mark.parametrize("engine", ["auto", "search"])
@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("factors", [("example",), ("example", "seed")])
@pytest.mark.parametrize("make", [two_systems, incomplete])
def test_the_likelihood_is_that_of_the_density_and_a_maximum(make, factors, restricted, engine):
    scores, _, design, factors = table(make(), *factors)
    found = fit(scores, design, factors, restricted=restricted, engine=engine)
    assert found.log_likelihood == pytest.approx(density(scores, design, factors, found), abs=1e-8)
    draw = numpy.random.default_rng(0)
    for _ in range(20):
        variances = {n: v * draw.uniform(0.8, 1.25) + 1e-7 * draw.uniform() for n, v in found.variances.items()}
        moved = type(found)(
            **{**vars(found), "variances": variances, "residual": found.residual * draw.uniform(0.9, 1.1)}
        )
        assert density(scores, design, factors, moved) <= found.log_likelihood + 1e-8


@pytest.mark.parametrize("restricted", [False, True])
def test_closed_form_and_search_agree_with_fixed_effects(restricted):
    scores, _, design, factors = table(simulated(1, 40, 3, effect=0.02), "example")
    closed, searched = (fit(scores, design, factors, restricted=restricted, engine=e) for e in ("auto", "search"))
    assert (closed.estimation, searched.estimation) == ("closed form", "profile likelihood")
    assert searched.variances == pytest.approx(closed.variances, rel=1e-4)
    assert searched.log_likelihood == pytest.approx(closed.log_likelihood, abs=1e-8)
    assert searched.covariance == pytest.approx(closed.covariance, rel=1e-4)


@pytest.mark.parametrize("factors", [("example",), ("example", "seed")])
def test_incomplete_tables_agree_with_statsmodels(factors):
    scores, _, design, codes = table(incomplete(), *factors)
    ours, theirs = (fit(scores, design, codes, restricted=True, engine=e) for e in ("auto", "statsmodels"))
    assert ours.estimation == "profile likelihood"
    assert ours.residual == pytest.approx(theirs.residual, rel=1e-3)
    assert ours.variances == pytest.approx(theirs.variances, rel=1e-2, abs=1e-6)
    assert ours.coefficients == pytest.approx(theirs.coefficients, abs=1e-4)
    assert ours.log_likelihood >= theirs.log_likelihood - 1e-6


def test_a_variance_at_the_boundary_is_zero_and_the_rest_refitted():
    """Negative estimates from the mean squares: the residual takes up their strata."""
    draw = numpy.random.default_rng(2)
    frame = simulated(0, 30, 4, tau=0.0)
    frame["score"] = draw.normal(size=len(frame))
    frame["score"] -= frame.groupby("seed")["score"].transform("mean")  # no variance between seeds is left
    scores, null, _, factors = table(frame, "example", "seed")
    closed, searched = (fit(scores, null, factors, restricted=True, engine=e) for e in ("auto", "search"))
    assert "seed" in closed.singular
    assert closed.singular == searched.singular
    assert searched.residual == pytest.approx(closed.residual, rel=1e-5)
    assert searched.log_likelihood == pytest.approx(closed.log_likelihood, abs=1e-7)


def test_without_repetition_the_components_cannot_be_told():
    frame = one_system().query("seed == 0").reset_index(drop=True)
    scores, null, _, factors = table(frame, "example")
    assert balanced_variances(scores - scores.mean(), null, factors, restricted=True) is None


def test_scores_without_variation_are_refused():
    with pytest.raises(UserError, match="do not vary"):
        fit(numpy.ones(8), numpy.ones((8, 1)), {"example": numpy.arange(8) // 2}, restricted=False)


def test_a_property_that_says_the_same_twice_is_refused():
    frame = two_systems()
    scores, _, full, factors = table(frame, "example")
    with pytest.raises(UserError, match="say the same"):
        fit(scores, numpy.hstack([full, full[:, 1:]]), factors, restricted=False)


def test_without_statsmodels_its_engine_is_refused_with_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels.regression.mixed_linear_model", None)
    scores, null, _, factors = table(two_systems(), "example")
    with pytest.raises(UserError, match=r"pip install 'paper-runner\[statistics\]'"):
        fit(scores, null, factors, restricted=False, engine="statsmodels")


def test_statsmodels_is_not_asked_for_dense_matrices_of_large_tables():
    scores, null, _, factors = table(simulated(0, 400, 5), "example", "seed")
    with pytest.raises(UserError, match="4000 rows with crossed factors are too many"):
        fit(scores, null, factors, restricted=True, engine="statsmodels")
