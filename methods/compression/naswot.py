"""NASWOT: the best of a sample of architectures, told by the untrained networks' ReLU states on one batch.

Mellor, Turner, Storkey, Crowley, "Neural Architecture Search without Training", ICML 2021, arXiv:2006.04647, section 3
and algorithm 1. Official code: BayesWatch/nas-without-training. The scores stand in ``zero_cost``; the table of trained
architectures that a search looks up is a user's file, or the cell cell_benchmark. Deviations: see the class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy
import torch
from pydantic import Field

from runner import randomness
from runner.methods.compression.architecture_table import TEST, ArchitectureTable
from runner.methods.compression.cell_benchmark import FILE, architecture_table, candidate
from runner.methods.compression.evolution import EvolutionSettings, evolve, most_accurate
from runner.methods.compression.zero_cost import SCORES, parameters
from runner.models.cell_network import ARCHITECTURES

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context

LEVEL = 0.9  # of the intervals of rank correlations


@dataclass(kw_only=True)
class NASWOT:
    """Architecture search without training."""

    score: Literal["relu_codes", "jacobian", "parameters", "units", "gradient_norm", "synflow", "random"] = "relu_codes"
    search: Literal["sample", "evolution"] = "sample"  # evolution: AREA, which starts from the best of a sample
    samples: Annotated[int, Field(ge=1)] = 100  # N, architectures drawn in a run, with replacement
    runs: Annotated[int, Field(ge=1)] = 500  # searches, and resamples of the rank correlations' intervals
    batch_size: Annotated[int, Field(ge=2)] = 128
    batches: Annotated[int, Field(ge=1)] = 1  # whose scores are averaged
    images: Literal["data", "noise"] = "data"  # noise: standard normal numbers
    benchmark: str | None = None  # CSV file with trained architectures; null: a cell trains some
    architectures: Annotated[int, Field(ge=2, le=ARCHITECTURES)] = ARCHITECTURES  # that such a cell trains
    oversampling: Annotated[int, Field(ge=1)] = 20  # of AREA: drawn, of which the best by score are the population
    evolution: EvolutionSettings = field(default_factory=EvolutionSettings)  # of AREA

    paper: ClassVar[str] = "arXiv:2006.04647"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "Untrained networks that code different images differently do better once they are trained."
    citation: ClassVar[str] = (
        "Mellor, Turner, Storkey, Crowley. Neural Architecture Search without Training. ICML 2021."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("architecture",)
    soft_labels: ClassVar[bool] = True  # nothing is trained here but the table
    distributed: ClassVar[bool] = False  # one batch
    deviations: ClassVar[tuple[str, ...]] = (
        "every architecture of the table is scored once a seed, and all runs of a seed draw from these scores; the "
        "code scores each draw anew, with another batch and other weights in every run",
        "a ReLU counts once, as in the paper; the code counts the input of a block of ReLU, convolution and "
        "normalisation a second time, because the block's class has ReLU in its name",
        "a network that no score can be computed of is never chosen",
        "batches > 1 has a kernel for each batch; the code goes on adding to one",
        "score jacobian is of different images, as the first version's code has it, and not augmented",
        "AREA counts the training of each architecture, and no time for the scores",
    )

    def __post_init__(self) -> None:
        if self.search == "evolution" and self.oversampling < self.evolution.population:
            raise ValueError("oversampling must not be below evolution.population")

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy (0..1, test, mean over runs) of the chosen architectures and accuracy_NAME of the table's
        other columns, each with NAME_deviation over runs; accuracy_random and accuracy_optimal, of the table's mean and
        of the most accurate of the same samples; kendall_tau of score and validation accuracy, kendall_tau_test,
        each with _low and _high (90% bootstrap interval), and kendall_tau_parameters (of the number of parameters)."""
        table = architecture_table(ctx, self.benchmark, self.architectures)
        found: dict[str, list[float]] = {"score": [], "parameters": []}
        ctx.track(found=found)
        batches = self.score_batches(ctx)
        for place in ctx.loop("score", len(table)):
            network = candidate(ctx, table.architectures[place])
            with randomness.stream(ctx.seed, "score", place):
                scores = [SCORES[self.score](network, *batch) for batch in batches]
            found["score"].append(sum(scores) / len(scores))
            found["parameters"].append(parameters(network, *batches[0]))
            ctx.log(**{name: values[-1] for name, values in found.items() if math.isfinite(values[-1])})
        scores = numpy.array(found["score"])
        # what a smoke run has not scored is not there
        table = ArchitectureTable(
            table.architectures[: len(scores)], {name: values[: len(scores)] for name, values in table.columns.items()}
        )
        ArchitectureTable(
            table.architectures, {**table.columns, **{name: numpy.array(values) for name, values in found.items()}}
        ).write(ctx.artifact(FILE))
        metrics = ctx.once("search", lambda: self.searched(ctx, table, scores))
        metrics |= ctx.once("rank", lambda: self.ranked(ctx, table, scores, numpy.array(found["parameters"])))
        ctx.log(**metrics)
        return metrics

    def score_batches(self, ctx: Context) -> list[tuple[Tensor, Tensor]]:
        """(images, labels) of the training split, not augmented; the same for all architectures."""
        seed = randomness.stream_seed(ctx.durable.seeds.order, "score")
        drawn = ctx.batches("train", self.batch_size, augment=False, drop_last=True).iterate(seed)
        batches = [(images, labels) for _, (images, labels, _) in zip(range(self.batches), drawn, strict=False)]
        if self.images == "noise":
            with randomness.stream(ctx.durable.seeds.order, "score noise"):
                batches = [(torch.randn_like(images), labels) for images, labels in batches]
        return batches

    def searched(self, ctx: Context, table: ArchitectureTable, scores: numpy.ndarray) -> dict[str, float]:
        """All runs of the search, and what they found."""
        random = numpy.random.default_rng(randomness.stream_seed(ctx.seed, "search"))
        usable = numpy.where(numpy.isnan(scores), -numpy.inf, scores)
        metrics: dict[str, float] = {}
        if self.search == "sample":
            samples = random.integers(len(table), size=(self.runs, self.samples))
            chosen = best_of(samples, usable)
            metrics["accuracy_optimal"] = table.columns[TEST][best_of(samples, table.validation)].mean()
        else:
            runs = [self.assisted_evolution(table, usable, random) for _ in range(self.runs)]
            chosen = numpy.array([most_accurate(table, trained) for trained in runs])
            metrics["trained"] = sum(len(trained) for trained in runs) / len(runs)
        return {
            **chosen_accuracies(table, chosen),
            "accuracy_random": table.columns[TEST].mean(),
            **metrics,
        }

    def assisted_evolution(
        self, table: ArchitectureTable, scores: numpy.ndarray, random: numpy.random.Generator
    ) -> list[int]:
        """AREA: an evolution whose first population is the best of a sample, by score (section 5)."""
        drawn = random.integers(len(table), size=self.oversampling)
        first = drawn[numpy.argsort(-scores[drawn], kind="stable")][: self.evolution.population]
        return evolve(table, first.tolist(), self.evolution, random)

    def ranked(
        self, ctx: Context, table: ArchitectureTable, scores: numpy.ndarray, sizes: numpy.ndarray
    ) -> dict[str, float]:
        """Rank correlations of the score, and of the number of parameters, with accuracy."""
        random = numpy.random.default_rng(randomness.stream_seed(ctx.seed, "resamples"))
        resamples = random.integers(len(table), size=(self.runs, len(table)))
        metrics = {"kendall_tau_parameters": rank_correlation(sizes, table.columns[TEST])}
        for name, accuracy in {"kendall_tau": table.validation, "kendall_tau_test": table.columns[TEST]}.items():
            metrics[name] = rank_correlation(scores, accuracy)
            taus = [rank_correlation(scores[rows], accuracy[rows]) for rows in resamples]
            low, high = numpy.quantile(taus, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            metrics |= {f"{name}_low": float(low), f"{name}_high": float(high)}
        return metrics


def best_of(samples: numpy.ndarray, values: numpy.ndarray) -> numpy.ndarray:
    """(runs,) the architecture of the highest value in each row of samples (runs, N); the first of equal ones."""
    return samples[numpy.arange(len(samples)), values[samples].argmax(1)]


def chosen_accuracies(table: ArchitectureTable, chosen: numpy.ndarray) -> dict[str, float]:
    """Mean and standard deviation over runs of every accuracy of the chosen architectures."""
    metrics: dict[str, Any] = {}
    for name, values in table.accuracies().items():
        metrics[name] = values[chosen].mean()
        metrics[f"{name}_deviation"] = values[chosen].std()
    return {name: float(value) for name, value in metrics.items()}


def rank_correlation(scores: numpy.ndarray, accuracy: numpy.ndarray) -> float:
    """Kendall's tau (b) over the architectures that have a score; 0 where one of the two does not vary."""
    from scipy.stats import kendalltau

    known = ~numpy.isnan(scores)
    tau = kendalltau(scores[known], accuracy[known]).statistic if known.sum() > 1 else math.nan
    return 0.0 if math.isnan(tau) else float(tau)
