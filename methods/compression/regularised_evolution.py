"""Regularised evolution of architectures over a table of trained ones.

Real, Aggarwal, Huang, Le, "Regularized Evolution for Image Classifier Architecture Search", AAAI 2019,
arXiv:1802.01548, algorithm 1, as NAS-Bench-201 (arXiv:2001.00326) runs it: trainings are looked up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy
from pydantic import Field

from runner import randomness
from runner.methods.compression.architecture_table import TEST
from runner.methods.compression.cell_benchmark import architecture_table
from runner.methods.compression.evolution import EvolutionSettings, evolve, most_accurate
from runner.methods.compression.naswot import chosen_accuracies
from runner.models.cell_network import ARCHITECTURES

if TYPE_CHECKING:
    from runner.context import Context


@dataclass(kw_only=True)
class RegularisedEvolution:
    """Evolution of architectures in which the oldest dies."""

    runs: Annotated[int, Field(ge=1)] = 50
    benchmark: str | None = None  # CSV file with trained architectures; null: a cell trains some
    architectures: Annotated[int, Field(ge=2, le=ARCHITECTURES)] = ARCHITECTURES  # that such a cell trains
    evolution: EvolutionSettings = field(default_factory=EvolutionSettings)

    paper: ClassVar[str] = "arXiv:1802.01548"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "An evolution in which the oldest architecture dies finds better ones than random search."
    citation: ClassVar[str] = (
        "Real, Aggarwal, Huang, Le. Regularized Evolution for Image Classifier Architecture Search. AAAI 2019."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("architecture",)
    soft_labels: ClassVar[bool] = True
    distributed: ClassVar[bool] = False
    deviations: ClassVar[tuple[str, ...]] = (
        "over a table: a mutant is the nearest architecture that it holds, in a full table one edge away; all such are "
        "equally likely, while NAS-Bench-201's code draws a node and then one of its edges",
        "population and sample are those of NAS-Bench-201's experiments; the paper's are 100 and 25",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy (0..1, test, mean over runs) of the most accurate architecture trained, accuracy_NAME of the
        table's other columns, each with NAME_deviation over runs; accuracy_random; trained (architectures in a run)."""
        table = architecture_table(ctx, self.benchmark, self.architectures)

        def search() -> dict[str, float]:
            random = numpy.random.default_rng(randomness.stream_seed(ctx.seed, "search"))
            starts = random.integers(len(table), size=(self.runs, self.evolution.population)).tolist()
            runs = [evolve(table, first, self.evolution, random) for first in starts]
            chosen = numpy.array([most_accurate(table, trained) for trained in runs])
            return {
                **chosen_accuracies(table, chosen),
                "accuracy_random": float(table.columns[TEST].mean()),
                "trained": sum(len(trained) for trained in runs) / len(runs),
            }

        metrics = ctx.once("search", search)
        ctx.log(**metrics)
        return metrics
