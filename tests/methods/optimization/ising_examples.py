"""Small binary models for the tests of partition functions."""

import numpy

from runner.datasets.ising import IsingModel


def random_model(seed: int, variables: int = 8, strength: float = 1.0, field: float = 0.3) -> IsingModel:
    """A complete graph."""
    generator = numpy.random.default_rng(seed)
    upper = numpy.triu(generator.uniform(-strength, strength, (variables, variables)), 1)
    return IsingModel((upper + upper.T) / 2, generator.uniform(-field, field, variables))


def tree_model() -> IsingModel:
    """0 - 1, 1 - 2, 1 - 3."""
    coupling = numpy.zeros((4, 4))
    for i, j, value in ((0, 1, 0.8), (1, 2, -0.5), (1, 3, 0.3)):
        coupling[i, j] = coupling[j, i] = value
    return IsingModel(coupling, numpy.array([0.2, -0.4, 0.1, 0.0]))
