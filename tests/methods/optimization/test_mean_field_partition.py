"""Mean field is a lower bound, exact without couplings."""

import numpy
import pytest
from ising_examples import random_model

from runner.datasets.ising import IsingModel
from runner.methods.optimization.ising import exact_log_partition
from runner.methods.optimization.mean_field_partition import MeanFieldPartition, lower_bound


@pytest.mark.parametrize("strength", [0.3, 2.0])
def test_it_is_a_lower_bound(strength):
    for seed in range(4):
        model = random_model(seed, strength=strength)
        found, _ = MeanFieldPartition().estimate(model, numpy.random.default_rng(seed))
        assert found <= exact_log_partition(model)


def test_independent_variables_are_exact_whatever_stands_on_the_diagonal():
    model = IsingModel(numpy.diag([0.5, -0.2]), numpy.array([0.3, -1.0]))
    found, _ = MeanFieldPartition().estimate(model, numpy.random.default_rng(0))
    assert found == pytest.approx(exact_log_partition(model), rel=1e-12)


def test_it_ends_where_the_bound_is_stationary():
    model = random_model(1, strength=1.0)
    means = numpy.random.default_rng(0).uniform(-1, 1, 8)
    for _ in range(2000):
        for i, row in enumerate(model.coupling):
            means[i] = numpy.tanh(model.field[i] + 2 * row @ means)
    best = lower_bound(model.coupling, model.field, means)
    for i in range(8):
        for step in (-1e-3, 1e-3):
            moved = means.copy()
            moved[i] = numpy.clip(moved[i] + step, -1, 1)
            assert lower_bound(model.coupling, model.field, moved) <= best + 1e-12
