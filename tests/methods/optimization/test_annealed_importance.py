"""Annealed chains against enumeration."""

import numpy
import pytest
from ising_examples import random_model

from runner.datasets.ising import IsingModel
from runner.methods.optimization.annealed_importance import AnnealedImportance
from runner.methods.optimization.ising import exact_log_partition


def test_independent_variables_are_exact():
    model = IsingModel(numpy.diag([0.5, -0.2]), numpy.array([0.3, -1.0]))
    found, _ = AnnealedImportance(steps=2, chains=3).estimate(model, numpy.random.default_rng(0))
    assert found == pytest.approx(exact_log_partition(model), rel=1e-12)


def test_many_short_chains_have_no_bias():
    """Weights of two steps are unbiased already: their mean over many chains is Z."""
    model = random_model(0, variables=4, strength=1.0)
    found, _ = AnnealedImportance(steps=2, chains=200_000).estimate(model, numpy.random.default_rng(0))
    assert found == pytest.approx(exact_log_partition(model), abs=0.02)


def test_long_chains_are_close():
    model = random_model(1, strength=1.0)
    found, _ = AnnealedImportance().estimate(model, numpy.random.default_rng(0))
    assert found == pytest.approx(exact_log_partition(model), abs=0.1)
