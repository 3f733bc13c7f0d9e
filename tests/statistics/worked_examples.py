"""The small tables of the card inferential_reproducibility, whose results are known to the digit."""

from __future__ import annotations

import numpy
import pandas

A = [[0.50, 0.54], [0.62, 0.58], [0.71, 0.73], [0.80, 0.84]]
B = [[0.55, 0.57], [0.64, 0.66], [0.77, 0.75], [0.83, 0.89]]
SEEDS = [[0.50, 0.54, 0.46], [0.62, 0.60, 0.58], [0.71, 0.77, 0.68], [0.80, 0.83, 0.77]]


def two_systems() -> pandas.DataFrame:
    """Four examples, two systems, two seeds."""
    return pandas.DataFrame(
        {"system": system, "seed": seed, "example": example, "score": row[seed]}
        for system, table in (("A", A), ("B", B))
        for example, row in enumerate(table)
        for seed in range(2)
    )


def one_system() -> pandas.DataFrame:
    """Four examples, three seeds."""
    return pandas.DataFrame(
        {"system": "A", "seed": seed, "example": example, "score": value}
        for example, row in enumerate(SEEDS)
        for seed, value in enumerate(row)
    )


def simulated(seed: int, examples: int, seeds: int, *, effect: float = 0.0, tau: float = 0.1, sigma: float = 0.05):
    """Two systems whose means differ by ``effect``; a random intercept of standard deviation ``tau`` an example."""
    draw = numpy.random.default_rng(seed)
    rows = [(s, r, i) for s in "AB" for r in range(seeds) for i in range(examples)]
    frame = pandas.DataFrame(rows, columns=["system", "seed", "example"])
    intercept = draw.normal(0, tau, examples)[frame["example"]]
    frame["score"] = intercept + effect * (frame["system"] == "B") + draw.normal(0, sigma, len(frame))
    return frame
