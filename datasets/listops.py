"""Generated ListOps of bounded length: nested operations on digits, whose value is the class. No download.

Nangia and Bowman 2018, arXiv:1804.06028, with the grammar of the Long Range Arena (arXiv:2011.04006): minimum, maximum,
median (rounded down) and sum modulo 10.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from runner.datasets.sequences import KIND as KIND
from runner.datasets.sequences import SequenceSettings, examples, split
from runner.errors import UserError
from runner.schema import Positive, Seed

if TYPE_CHECKING:
    from runner.datasets.examples import ExampleData
    from runner.datasets.images import Limits

OPERATIONS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(statistics.median(values)),
    "[SM": lambda values: sum(values) % 10,
}
TOKENS = {token: number for number, token in enumerate((*map(str, range(10)), *OPERATIONS, "]"), start=1)}
NESTED = 0.25  # share of arguments that are operations themselves


@dataclass(kw_only=True)
class Settings(SequenceSettings):
    """Of the generator."""

    examples: Positive = 5000  # of the training split, validation included
    test_examples: Positive = 1000
    depth: Annotated[int, Field(ge=2)] = 6  # operations inside each other
    arguments: Annotated[int, Field(ge=2)] = 6  # most of an operation; it has two or more
    shortest: Positive = 16  # tokens
    longest: Positive = 128
    seed: Seed = 0  # of the expressions: the same whatever the run's seed is

    def __post_init__(self) -> None:
        if self.longest < max(self.shortest, 4):
            raise ValueError("longest must be 4 or more, and not below shortest")


def check(settings: Settings, data_root: Path, offline: bool) -> None:
    if settings.path is not None:
        raise UserError(f"dataset.path={settings.path}: ListOps are generated; your own: dataset=token_file")


def load(settings: Settings, limits: Limits, data_root: Path) -> ExampleData:
    parts = []
    for name, count, limit in (
        ("train", settings.examples, limits.train),
        ("test", settings.test_examples, limits.test),
    ):
        draws = random.Random(f"listops {settings.seed} {name}")
        found = [draw(settings, draws) for _ in range(count if limit is None else min(count, limit))]
        sequences = [[TOKENS[token] for token in expression] for expression, _ in found]
        parts.append(examples(sequences, [value for _, value in found], settings.longest))
    return split(settings, limits, "ListOps", *parts, [str(digit) for digit in range(10)], len(TOKENS) + 1)


def draw(settings: Settings, draws: random.Random) -> tuple[list[str], int]:
    """The tokens of an expression and its value, 0..9; those of another length are drawn again."""
    for _ in range(10_000):
        expression = _operation(settings, draws, settings.depth)
        if settings.shortest <= len(expression) <= settings.longest:
            return expression, value_of(expression)
    raise UserError(
        f"dataset: expressions of {settings.shortest} to {settings.longest} tokens are too rare with depth "
        f"{settings.depth} and {settings.arguments} arguments; change dataset.shortest, dataset.longest or these two"
    )


def _operation(settings: Settings, draws: random.Random, depth: int) -> list[str]:
    tokens = [draws.choice(list(OPERATIONS))]
    for _ in range(draws.randint(2, settings.arguments)):
        if depth > 1 and draws.random() < NESTED:
            tokens += _operation(settings, draws, depth - 1)
        else:
            tokens.append(str(draws.randrange(10)))
    return [*tokens, "]"]


def value_of(expression: list[str]) -> int:
    """The value of an expression's tokens."""
    stack: list[list] = [[]]
    for token in expression:
        if token in OPERATIONS:
            stack.append([OPERATIONS[token]])
        elif token == "]":
            operation, *values = stack.pop()
            stack[-1].append(operation(values))
        else:
            stack[-1].append(int(token))
    return stack[0][0]
