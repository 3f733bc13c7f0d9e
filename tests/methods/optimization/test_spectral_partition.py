"""Partition functions by eigenvectors against enumeration, the card's two variables and the semidefinite bound."""

import math

import numpy
import pytest
from commands import runner
from ising_examples import random_model

from runner.datasets.ising import IsingModel
from runner.datasets.ising_models import Settings, draw_coupling
from runner.methods.optimization.ising import all_states, exact_log_partition
from runner.methods.optimization.spectral import (
    choose_diagonal,
    exact_sums,
    largest_diagonal,
    low_rank_log_partition,
    nuclear_diagonal,
    quantised_sums,
    rounding_bound,
    spectral_mean_field,
)

NONE = numpy.random.default_rng(0)


def test_enumeration_of_independent_variables():
    field = numpy.array([0.3, -1.0, 2.0])
    found = exact_log_partition(IsingModel(numpy.zeros((3, 3)), field))
    assert found == pytest.approx(numpy.log(2 * numpy.cosh(field)).sum(), rel=1e-14)


def test_two_variables():
    """Z = 4 cosh 2a; with D = 0 the product gives 2 + 2 cosh 2a, with the semidefinite diagonal it is exact."""
    coupling, field = numpy.array([[0.0, 0.5], [0.5, 0.0]]), numpy.zeros(2)
    assert math.exp(exact_log_partition(IsingModel(coupling, field))) == pytest.approx(4 * math.cosh(1), rel=1e-12)
    zero = spectral_mean_field(coupling, field, numpy.zeros(2), None)
    assert math.exp(zero) == pytest.approx(5.0862, abs=5e-5)
    diagonal = choose_diagonal(coupling, "sdp", NONE)
    assert diagonal == pytest.approx([-0.5, -0.5])
    assert math.exp(spectral_mean_field(coupling, field, diagonal, None)) == pytest.approx(6.1723, abs=5e-5)


def test_no_couplings_and_no_field_are_exact():
    assert spectral_mean_field(numpy.zeros((7, 7)), numpy.zeros(7), numpy.zeros(7), 0.01) == pytest.approx(
        7 * math.log(2), rel=1e-14
    )


def test_a_rank_1_model_with_its_field_along_its_vector_is_exact():
    vector = numpy.random.default_rng(1).normal(size=9)
    vector /= numpy.linalg.norm(vector)
    coupling, field = 1.3 * numpy.outer(vector, vector), 0.4 * vector
    exact = exact_log_partition(IsingModel(coupling, field))
    assert spectral_mean_field(coupling, field, numpy.zeros(9), None) == pytest.approx(exact, abs=1e-9)
    assert spectral_mean_field(coupling, field, numpy.zeros(9), 0.001) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("rank", [1, 2])
def test_the_programme_converges_within_its_bound(rank):
    generator = numpy.random.default_rng(2)
    vectors = numpy.linalg.qr(generator.normal(size=(8, rank)))[0].T
    eigenvalues, field = numpy.array([1.3, -0.7])[:rank], generator.uniform(-0.3, 0.3, 8)
    exact = exact_log_partition(IsingModel((vectors.T * eigenvalues) @ vectors, field))
    errors, states = [], []
    for width in (0.2, 0.05, 0.01):
        found, count = low_rank_log_partition(eigenvalues, vectors, field, width)
        assert abs(found - exact) <= rounding_bound(eigenvalues, vectors, width)
        errors.append(abs(found - exact))
        states.append(count)
    assert errors[-1] < 0.1 and states == sorted(states)
    assert low_rank_log_partition(eigenvalues, vectors, field, None)[0] == pytest.approx(exact, abs=1e-12)


def test_the_bound_of_the_card():
    """n = 14, lam = 1.3: c = .01 bounds by 1.18 where |u|_1 is about 3.2."""
    vector = numpy.full((1, 14), 14**-0.5)
    expected = 1.3 * 0.07 * (2 * 14**0.5 + 0.07)
    assert rounding_bound(numpy.array([1.3]), vector, 0.01) == pytest.approx(expected)


def test_probabilities_of_the_sums_add_to_1_and_have_the_mean_of_the_field():
    generator = numpy.random.default_rng(3)
    vectors, field = generator.normal(size=(2, 10)), generator.normal(size=10)
    for found in (quantised_sums(vectors, field, 0.1), exact_sums(vectors, field)):
        probability = numpy.exp(found.log_probability)
        assert probability.sum() == pytest.approx(1, rel=1e-12)
    rounded = 0.1 * numpy.rint(vectors / 0.1)
    quantised = quantised_sums(vectors, field, 0.1)
    assert numpy.exp(quantised.log_probability) @ quantised.points == pytest.approx(rounded @ numpy.tanh(field))


@pytest.mark.parametrize("kind", ["zero", "sdp", "nuclear"])
def test_renamed_and_flipped_variables_change_nothing(kind):
    model, generator = random_model(4), numpy.random.default_rng(4)
    order, signs = generator.permutation(8), generator.choice([-1.0, 1.0], 8)
    coupling = (model.coupling * numpy.outer(signs, signs))[numpy.ix_(order, order)]
    field = (model.field * signs)[order]
    one, other = (
        spectral_mean_field(a, theta, choose_diagonal(a, kind, NONE), None)
        for a, theta in ((model.coupling, model.field), (coupling, field))
    )
    assert other == pytest.approx(one, abs=1e-3)  # as far as the semidefinite programme is solved


@pytest.mark.parametrize("strength", [0.3, 1.0, 4.0])
def test_the_semidefinite_diagonal_is_feasible_and_bounds_the_maximum(strength):
    for seed in range(3):
        model = random_model(seed, variables=10, strength=strength)
        diagonal = largest_diagonal(model.coupling, numpy.random.default_rng(seed))
        assert numpy.linalg.eigvalsh(model.coupling - numpy.diag(diagonal))[-1] <= 1e-8
        states = all_states(10)
        best = ((states @ model.coupling) * states).sum(1).max()
        assert best <= diagonal.sum() <= 1.25 * best + 1e-9


def test_the_nuclear_diagonal_lowers_the_norm():
    model = random_model(5)
    norms = [
        numpy.abs(numpy.linalg.eigvalsh(model.coupling + numpy.diag(diagonal))).sum()
        for diagonal in (numpy.zeros(8), nuclear_diagonal(model.coupling))
    ]
    assert norms[1] < norms[0]


def test_the_diagonal_leaves_the_exact_value_and_moves_the_estimate():
    model, shift = random_model(6), numpy.full(8, 0.7)
    moved = IsingModel(model.coupling + numpy.diag(shift), model.field)
    assert exact_log_partition(moved) - shift.sum() == pytest.approx(exact_log_partition(model), rel=1e-12)
    estimates = [spectral_mean_field(model.coupling, model.field, d, None) for d in (numpy.zeros(8), shift)]
    assert abs(estimates[0] - estimates[1]) > 0.01


def test_at_low_temperature_the_semidefinite_diagonal_does_not_blow_up():
    model = random_model(7, variables=10, strength=4.0, field=0.1)
    exact = exact_log_partition(model)
    errors = {
        kind: abs(
            spectral_mean_field(model.coupling, model.field, choose_diagonal(model.coupling, kind, NONE), None) - exact
        )
        for kind in ("zero", "sdp")
    }
    assert errors["sdp"] < 4 < errors["zero"]


@pytest.mark.parametrize("graph", ["complete", "grid", "low_rank"])
def test_generated_couplings(graph):
    settings = Settings(name="", variables=9, graph=graph, rank=2)
    coupling = draw_coupling(settings, 1.5, numpy.random.default_rng(0))
    assert coupling == pytest.approx(coupling.T)
    if graph == "low_rank":
        assert numpy.linalg.eigvalsh(coupling)[-3:] == pytest.approx([0, 1.5, 1.5], abs=1e-12)
    else:
        assert (numpy.diagonal(coupling) == 0).all() and abs(coupling).max() <= 0.75
        assert (coupling != 0).sum() == (2 * 12 if graph == "grid" else 72)


def test_a_file_of_ones_own(tmp_path):
    model = random_model(0)
    numpy.savez(tmp_path / "mine.npz", A=model.coupling, theta=model.field)
    words = ("method=spectral_partition", "dataset=ising_file", "hardware=cpu", "tracking=none")
    answer = runner(*words, f"dataset.path={tmp_path / 'mine.npz'}", "method.diagonal=smaller", place=tmp_path)
    assert answer.code == 0, answer.err
    metrics = answer.result["metrics"]
    assert abs(metrics["log_partition"] - exact_log_partition(model)) == pytest.approx(metrics["error"])
    numpy.savez(tmp_path / "wrong.npz", A=numpy.ones((2, 3)), theta=numpy.ones(2))
    answer = runner(*words, f"dataset.path={tmp_path / 'wrong.npz'}", place=tmp_path)
    assert answer.code == 2 and "A (2, 3) and theta (2,) make no model" in answer.message


def test_the_programme_of_low_rank_models(tmp_path):
    answer = runner(
        "method=spectral_partition", "method.scheme=low_rank", "dataset.graph=low_rank", "scale=smoke", place=tmp_path
    )
    assert answer.code == 0, answer.err
    metrics = answer.result["metrics"]
    assert metrics["error"] <= metrics["bound"] and metrics["states"] > 1
