"""Regularised evolution over a table of architectures: Real et al. 2019, arXiv:1802.01548, algorithm 1."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import numpy
from pydantic import Field

from runner.errors import UserError
from runner.methods.compression.architecture_table import COST, ArchitectureTable, mutant, parts


@dataclass(kw_only=True)
class EvolutionSettings:
    """The sizes and the end of an evolution; those of NAS-Bench-201."""

    population: Annotated[int, Field(ge=1)] = 10
    sample_size: Annotated[int, Field(ge=1)] = 3  # of which the most accurate is mutated
    budget: Annotated[float, Field(gt=0)] = 12000.0  # of the costs of all trainings, in the table's unit (seconds)


def evolve(
    table: ArchitectureTable, first: Iterable[int], settings: EvolutionSettings, random: numpy.random.Generator
) -> list[int]:
    """The architectures trained, in order: ``first``, then mutants, until the costs reach the budget.

    A population of the last ``population`` trained; ``sample_size`` of it are drawn with replacement, and the one that
    is most accurate in them is mutated. Each training costs its price again, in a second time too.
    Raises UserError: the table has no costs.
    """
    if COST not in table.columns:
        raise UserError(f"the table of architectures has no column '{COST}', which an evolution needs")
    cost, accuracy, codes = table.columns[COST], table.searched, parts(table.architectures)
    population: deque[int] = deque(maxlen=settings.population)
    trained: list[int] = []
    spent = 0.0
    waiting = list(first)
    while spent < settings.budget:
        if waiting:
            child = waiting.pop(0)
        else:
            drawn = [population[place] for place in random.integers(len(population), size=settings.sample_size)]
            child = mutant(codes, max(drawn, key=lambda number: accuracy[number]), random)
        if cost[child] <= 0:
            raise UserError("the table's costs must be above 0: a budget of them is to end")
        spent += cost[child]
        population.append(child)
        trained.append(child)
    return trained


def most_accurate(table: ArchitectureTable, trained: list[int]) -> int:
    """The best of those trained, by the accuracy that the search saw."""
    return max(trained, key=lambda number: table.searched[number])
