"""Regularised evolution over a table: mutants, the population, the budget."""

import numpy
import pytest

from runner.errors import UserError
from runner.methods.compression.architecture_table import ArchitectureTable, mutant, parts
from runner.methods.compression.evolution import EvolutionSettings, evolve, most_accurate


def table(accuracy=(0.1, 0.9, 0.5, 0.3), cost=(1.0, 2.0, 1.0, 1.0)) -> ArchitectureTable:
    names = ["|a~0|+|a~0|a~1|", "|b~0|+|a~0|a~1|", "|b~0|+|b~0|a~1|", "|b~0|+|b~0|b~1|"]
    columns = {"accuracy_test": numpy.array(accuracy), "cost": numpy.array(cost)}
    return ArchitectureTable(names, columns)


def test_a_mutant_is_one_edge_away():
    codes, random = parts(table().architectures), numpy.random.default_rng(0)
    assert {mutant(codes, 1, random) for _ in range(50)} == {0, 2}
    assert {mutant(codes, 3, random) for _ in range(50)} == {2}
    with pytest.raises(UserError, match="two architectures"):
        mutant(codes[:1], 0, random)


def test_an_evolution_spends_its_budget_and_forgets_the_oldest():
    random = numpy.random.default_rng(0)
    trained = evolve(table(), [3, 3], EvolutionSettings(population=1, sample_size=1, budget=5), random)
    assert trained[:4] == [3, 3, 2, trained[3]] and trained[3] in (1, 3)
    costs = table().columns["cost"][trained]
    assert costs.sum() >= 5 > costs[:-1].sum()
    assert most_accurate(table(), [0, 3, 2, 3]) == 2
    greedy = evolve(table(), [1, 0], EvolutionSettings(population=2, sample_size=50, budget=4), random)
    assert greedy[:2] == [1, 0] and greedy[2] in (0, 2)  # a mutant of 1, the better one


def test_an_evolution_needs_costs():
    random = numpy.random.default_rng(0)
    without = ArchitectureTable(table().architectures, {"accuracy_test": numpy.ones(4)})
    with pytest.raises(UserError, match="no column 'cost'"):
        evolve(without, [0], EvolutionSettings(), random)
    with pytest.raises(UserError, match="above 0"):
        evolve(table(cost=(0.0, 0.0, 0.0, 0.0)), [0], EvolutionSettings(), random)
