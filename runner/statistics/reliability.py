"""Variance components of one system's scores and the reliability of its evaluation.

Hagmann, Meier, Riezler, ICLR 2023, arXiv:2302.04054: score ~ 1 + (1 | example) + (1 | facet 1) + ..., by restricted
likelihood. The reliability coefficient is the share of the variance between examples; bands: Koo and Li 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy

from runner.errors import UserError
from runner.statistics.comparison import coded
from runner.statistics.mixed_model import fit

if TYPE_CHECKING:
    import pandas

BANDS = ((0.9, "excellent"), (0.75, "good"), (0.5, "moderate"), (0.0, "poor"))


@dataclass(frozen=True)
class Component:
    """One source of variance; ``percent`` of the sum of all is its intraclass correlation."""

    name: str
    levels: int | None  # None: the residual
    variance: float
    percent: float  # 0..100


@dataclass(frozen=True)
class Reliability:
    """The variance of one system's scores, taken apart."""

    system: str
    components: list[Component]  # the examples, the facets, the residual
    coefficient: float  # 0..1
    band: str
    observations: int
    estimation: str
    singular: list[str]  # facets whose variance is estimated as zero


def band(coefficient: float) -> str:
    """poor < 0.5 <= moderate < 0.75 <= good < 0.9 <= excellent."""
    return next(name for lowest, name in BANDS if coefficient >= lowest)


def decompose(
    frame: pandas.DataFrame, *, score: str, example: str, facets: Sequence[str], system: str, engine: str = "auto"
) -> Reliability:
    """The variance components of one system's rows; facets count as categories, numbers too.

    Raises:
        UserError: no facet has two levels, or the scores do not vary.
    """
    codes = {name: coded(frame[name])[1] for name in (example, *facets)}
    if not facets or any(item.max() == 0 for item in codes.values()):
        single = [name for name, item in codes.items() if item.max() == 0]
        raise UserError(
            f"{system}: {', '.join(single) or 'the runs'} must vary for a variance decomposition: add seeds"
        )
    scores = frame[score].to_numpy(float)
    fitted = fit(scores, numpy.ones((len(frame), 1)), codes, restricted=True, engine=engine)
    total = sum(fitted.variances.values()) + fitted.residual
    components = [
        Component(name, fitted.levels[name], variance, 100 * variance / total)
        for name, variance in fitted.variances.items()
    ]
    components.append(Component("residual", None, fitted.residual, 100 * fitted.residual / total))
    coefficient = components[0].percent / 100
    return Reliability(
        system=system,
        components=components,
        coefficient=coefficient,
        band=band(coefficient),
        observations=fitted.observations,
        estimation=fitted.estimation,
        singular=list(fitted.singular),
    )
