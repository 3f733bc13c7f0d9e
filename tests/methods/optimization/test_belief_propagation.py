"""Belief propagation is exact on trees, its tree-reweighted form an upper bound."""

import numpy
import pytest
from ising_examples import random_model, tree_model

from runner.methods.optimization.belief_propagation import BeliefPropagation, combined, spanning_tree_weights
from runner.methods.optimization.ising import exact_log_partition

NONE = numpy.random.default_rng(0)


@pytest.mark.parametrize("tree_reweighted", [False, True])
def test_trees_are_exact(tree_reweighted):
    found, others = BeliefPropagation(tree_reweighted=tree_reweighted).estimate(tree_model(), NONE)
    assert found == pytest.approx(exact_log_partition(tree_model()), abs=1e-6) and others == {"converged": 1.0}


def test_weak_couplings_are_nearly_exact():
    model = random_model(0, strength=0.2)
    assert BeliefPropagation().estimate(model, NONE)[0] == pytest.approx(exact_log_partition(model), abs=0.01)


@pytest.mark.parametrize("strength", [0.3, 1.0, 3.0])
def test_weighted_by_trees_it_is_an_upper_bound(strength):
    for seed in range(3):
        model = random_model(seed, strength=strength)
        found, others = BeliefPropagation(tree_reweighted=True, iterations=5000).estimate(model, NONE)
        if others["converged"]:
            assert found >= exact_log_partition(model) - 1e-6


def test_weights_of_spanning_trees():
    complete = ~numpy.eye(6, dtype=bool)
    assert spanning_tree_weights(complete)[0, 1] == pytest.approx(2 / 6)
    ring = numpy.roll(numpy.eye(5, dtype=bool), 1, 0)
    weights = spanning_tree_weights(ring | ring.T)
    assert weights[0, 1] == pytest.approx(4 / 5) and weights[0, 2] == 0
    assert numpy.triu(weights).sum() == pytest.approx(4)  # a tree of five nodes has four edges


def test_messages_combine_as_hyperbolic_tangents():
    a, b = numpy.array([0.3, -2.0, 60.0]), numpy.array([1.1, 0.4, 50.0])
    assert combined(a, b)[:2] == pytest.approx(numpy.arctanh(numpy.tanh(a[:2]) * numpy.tanh(b[:2])))
    assert combined(a, b)[2] == pytest.approx(50.0, abs=1e-6)
