"""The partition function of pairwise binary models by enumeration, and how estimates of it are measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy
from scipy.special import logsumexp

if TYPE_CHECKING:
    from runner.context import Context
    from runner.datasets.ising import IsingModel

LARGEST = 18  # variables that are enumerated
Estimate = Callable[["IsingModel", numpy.random.Generator], tuple[float, dict[str, float]]]


def all_states(variables: int) -> numpy.ndarray:
    """(2^n, n) of -1 and 1."""
    return 2.0 * ((numpy.arange(2**variables)[:, None] >> numpy.arange(variables)) & 1) - 1


def exact_log_partition(model: IsingModel) -> float:
    """ln of the sum over x of exp(theta'x + x'Ax)."""
    states = all_states(len(model.field))
    return float(logsumexp(states @ model.field + ((states @ model.coupling) * states).sum(1)))


def measure(ctx: Context, estimate: Estimate) -> dict[str, float]:
    """log_partition and, up to 18 variables, error (absolute, nats), means over the models; both once more for each
    strength, with the ending _at_STRENGTH; and the mean of everything else that ``estimate`` returns.

    Args:
        estimate: of a model and a source of random numbers, its log Z and other numbers.
    """
    todo = [(strength, model) for strength, models in ctx.data.groups.items() for model in models]
    rows: list[dict[str, float]] = []
    ctx.track(rows=rows)
    for number in ctx.loop("models", len(todo)):
        _, model = todo[number]
        generator = numpy.random.default_rng(numpy.random.randint(2**31))
        found, others = estimate(model, generator)
        row = {"log_partition": float(found), **others}
        if len(model.field) <= LARGEST:
            row["error"] = abs(float(found) - exact_log_partition(model))
        rows.append(row)
        ctx.log(**row)
    ctx.track(rows=None)
    metrics = {name: _mean(row[name] for row in rows) for name in rows[0]}
    for strength in ctx.data.groups:
        group = [row for row, (own, _) in zip(rows, todo, strict=False) if own == strength]
        if group and strength:
            metrics |= {f"{name}_at_{strength}": _mean(row[name] for row in group) for name in rows[0]}
    ctx.log(**metrics)
    return metrics


def _mean(values) -> float:
    return float(numpy.mean(list(values)))
