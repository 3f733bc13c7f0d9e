"""Inference over replicated runs: mixed-effects models, likelihood-ratio tests, variance components, reliability.

Hagmann, Meier, Riezler, "Towards Inferential Reproducibility of Machine Learning Research", ICLR 2023,
arXiv:2302.04054. Official code: StatNLP/empirical_methods (lme4 through pymer4). The formulas stand in
``runner.statistics``; deviations: see the class.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from runner.errors import UserError
from runner.folder import RunFolder
from runner.records import Record
from runner.statistics.analysis import ALL, BEST, Analysis, analyse
from runner.statistics.stored import score_table, stored_runs
from runner.storage import write_atomic, write_json

if TYPE_CHECKING:
    from runner.context import Context

ENDINGS = {ALL: "", BEST: "_best_configurations"}  # of the names of metrics
Rate = Annotated[float, Field(gt=0)]


@dataclass(kw_only=True)
class Grid:
    """Without ``runs``: plain training against training with noise on the inputs, every setting with every seed."""

    seeds: Annotated[int, Field(ge=2)] = 5  # seed, seed + 1, ...
    learning_rates: list[Rate] = field(default_factory=lambda: [0.05, 0.2])  # of both systems
    deviations: list[Rate] = field(default_factory=lambda: [0.1, 0.5, 2.0])  # of the noise

    def __post_init__(self) -> None:
        if not (self.learning_rates and self.deviations):
            raise ValueError("learning_rates and deviations need a value each")


@dataclass(kw_only=True)
class InferentialReproducibility:
    """Which system is better once seeds and meta-parameters are part of the inference, and how reliable scores are."""

    runs: list[str] = field(default_factory=list)  # folders with finished runs, wildcards allowed; []: the grid
    system: list[str] = field(default_factory=lambda: ["method.name"])  # settings that tell the systems apart
    response: str = "log_likelihood"  # of an example, in nats | score: 1 right, 0 wrong
    meta_parameters: list[str] | None = None  # null: every setting that varies within a system
    properties: list[str] = field(default_factory=lambda: ["label"])  # of the examples: label, columns of the file
    example_properties: str | None = None  # CSV file: index of the test example, and columns of properties
    where: str | None = None  # rows that count, such as "example < 500"
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05  # level of the tests
    distribution: Literal["gaussian", "binomial"] = "gaussian"  # binomial: response score, comparisons by logit models
    engine: Literal["auto", "statsmodels"] = "auto"  # auto: closed form where balanced, else profile likelihood
    grid: Grid = field(default_factory=Grid)

    paper: ClassVar[str] = "arXiv:2302.04054"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = (
        "A fine-tuning method that beats its baseline with its best configuration loses once the variation over its "
        "meta-parameters is part of the inference."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    citation: ClassVar[str] = (
        "Hagmann, Meier, Riezler. Towards Inferential Reproducibility of Machine Learning Research. ICLR 2023."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "intervals and contrasts by t with the degrees of freedom of the balanced design, where the code has "
        "Satterthwaite's; large tables do not differ",
        "distribution=binomial is for the comparisons; the variance components of right and wrong are those of 0 and 1 "
        "as numbers, where the code has the logit model's",
        "the grid trains perceptrons on digits; the paper's case study is BART on CNN/DailyMail",
    )

    def __post_init__(self) -> None:
        if self.distribution == "binomial" and (self.response != "score" or self.engine != "auto"):
            raise ValueError("distribution=binomial needs response=score (1 right, 0 wrong) and engine=auto")

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns chi_squared, p_value and effect_size (the contrast that is largest in size, first minus second
        system over the residual standard deviation) over all runs and, with the ending _best_configurations, over
        those of the best configurations; and reliability_SYSTEM (0..1)."""
        records = self._chosen(ctx)
        found = ctx.once("analyse", lambda: _stored(self._analyse(records)))
        write_json(ctx.artifact("analysis.json"), found["analysis"])
        write_atomic(ctx.artifact("analysis.md"), found["markdown"])
        for line in found["lines"]:
            ctx.say(line)
        ctx.log(**found["metrics"])
        return found["metrics"]

    def _chosen(self, ctx: Context) -> list[Record]:
        if self.runs:
            return stored_runs(self.runs)
        records = []
        for method, fields, rate in self._configurations():
            recipe = copy.deepcopy(ctx.config["recipe"])
            recipe["optimizer"]["learning_rate"] = rate
            settings = " ".join(f"{name} {value:g}" for name, value in {"learning_rate": rate, **fields}.items())
            for seed in range(ctx.seed, ctx.seed + self.grid.seeds):
                role = f"{method} {settings} seed {seed}"
                cell = ctx.cell(method, fields, recipe=recipe, seed=seed, role=role)
                records.append(Record(RunFolder(cell.folder)))
        return records

    def _configurations(self) -> Iterator[tuple[str, dict[str, float], float]]:
        for rate in self.grid.learning_rates:
            yield "supervised", {}, rate
            for deviation in self.grid.deviations:
                yield "input_noise", {"deviation": deviation}, rate

    def _analyse(self, records: list[Record]) -> Analysis:
        file = Path(self.example_properties).expanduser() if self.example_properties else None
        table, varying = score_table(records, self.response, self.system, file)
        unknown = [name for name in self.meta_parameters or () if name not in varying]
        if unknown:
            raise UserError(
                f"method.meta_parameters: {unknown[0]} varies within no system; {', '.join(varying) or 'nothing'} does"
            )
        return analyse(
            table,
            score=self.response,
            meta_parameters=varying if self.meta_parameters is None else self.meta_parameters,
            properties=self.properties,
            selection="validation_accuracy" if "validation_accuracy" in table else None,
            where=self.where,
            alpha=self.alpha,
            distribution=self.distribution,
            engine=self.engine,
        )


def _stored(analysis: Analysis) -> dict[str, Any]:
    """Plain, as a phase stores it."""
    metrics: dict[str, float] = {}
    lines = []
    for item in analysis.findings:
        found = item.comparison
        if item.within is not None or found.property is not None:
            continue
        largest = max(found.contrasts, key=lambda contrast: abs(contrast.effect_size))
        ending = ENDINGS[item.protocol]
        metrics[f"chi_squared{ending}"] = found.test.chi_squared
        metrics[f"p_value{ending}"] = found.test.p_value
        metrics[f"effect_size{ending}"] = largest.effect_size
        lines.append(
            f"{item.protocol}: chi-squared {found.test.chi_squared:.4g}, df {found.test.degrees_of_freedom}, "
            f"p {found.test.p_value:.4g}; {largest.first} - {largest.second}: {largest.difference:+.4g}, "
            f"g {largest.effect_size:+.3f}"
        )
    if not analysis.selected:  # a single configuration is its system's best
        metrics |= {f"{name}{ENDINGS[BEST]}": value for name, value in metrics.items()}
    for item in analysis.reliability:
        metrics[f"reliability_{item.system}"] = item.coefficient
        shares = ", ".join(f"{part.name} {part.percent:.1f}%" for part in item.components)
        lines.append(f"{item.system}: reliability {100 * item.coefficient:.1f}% ({item.band}); variance: {shares}")
    return {"analysis": analysis.to_dict(), "markdown": analysis.to_markdown(), "metrics": metrics, "lines": lines}
