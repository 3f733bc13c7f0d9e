"""mmdInf: which features of two samples differ, tested after the most different ones were selected.

Yamada, Wu, Tsai, Ohta, Salakhutdinov, Takeuchi and Fukumizu, "Post Selection Inference with Incomplete Maximum Mean
Discrepancy Estimator", ICLR 2019, arXiv:1802.06226. No official code; jenninglim/multiscale-features by an author of a
follow-up has the pipeline. Formulas: ``discrepancy``, ``selective_inference``. Deviations: see the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy
from pydantic import Field
from scipy.special import ndtr

from runner.errors import UserError
from runner.methods.statistics.discrepancy import (
    Statistics,
    block_pairs,
    linear_pairs,
    random_pairs,
    squared_medians,
    statistics,
    units,
)
from runner.methods.statistics.selective_inference import truncated_tail, truncation
from runner.storage import write_atomic

if TYPE_CHECKING:
    from runner.context import Context

Size = Annotated[int, Field(gt=0)]
WAYS = ("", "naive_", "splitting_", "bonferroni_")  # of testing; the first is the method's


@dataclass(kw_only=True)
class PSIMMD:
    """Discrepancies from random pairs are jointly normal; p-values are those of a normal cut off by the selection."""

    selected: Size = 30  # features, those that differ most
    select: Literal["largest", "smallest"] = "largest"  # smallest: candidates nearest to the real sample
    estimator: Literal["incomplete", "linear", "block"] = "incomplete"
    pairs_per_sample: Annotated[float, Field(gt=0)] = 1.0  # r: incomplete draws r n pairs
    block_size: Annotated[int, Field(ge=2)] = 5
    bandwidth: Literal["feature", "pooled"] = "feature"  # medians of every feature, or one of whole examples
    kernel_factor: Annotated[float, Field(gt=0)] = 2.0  # of the squared median; the released kernel has 1
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05  # level of every test
    trials: Size = 100  # of generated samples; a file is tested once

    paper: ClassVar[str] = "arXiv:1802.06226"
    fidelity: ClassVar[str] = "reconstruction"
    claim: ClassVar[str] = (
        "Tests after selection keep their level with incomplete estimates, and gain power with their pairs."
    )
    data: ClassVar[tuple[str, ...]] = ("two samples",)
    model: ClassVar[tuple[str, ...]] = ("none",)
    citation: ClassVar[str] = (
        "Yamada, Wu, Tsai, Ohta, Salakhutdinov, Takeuchi, Fukumizu. Post Selection Inference with Incomplete Maximum "
        "Mean Discrepancy Estimator. ICLR 2019."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "from the abstract and a follow-up's code; pairs are drawn uniformly, there some never occur",
        "medians are those of 100 examples, of every feature by default; the follow-up has one for all and no factor 2",
        "of candidates the test after selection asks for a discrepancy above 0, as for features (the text leaves it)",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns of generated samples true_positive_rate (rejected among the selected that differ) and
        false_positive_rate (among those that do not), 0..1, and the same after naive_ tests (as if nothing had been
        selected), splitting_ (selected on one half, tested on the other) and bonferroni_ (naive at alpha / d); rates
        without a case are left out. Of a file selected, rejected and naive_rejected, and artifacts/features.csv."""
        data = ctx.data
        trials = 1 if data.fixed else self.trials
        counts = {way + kind: 0 for way in WAYS for kind in ("true", "false", "true_rejected", "false_rejected")}
        ctx.track(counts=counts)
        rejected = {"selected": 0.0, "rejected": 0.0, "naive_rejected": 0.0}
        ctx.track(rejected=rejected)
        for _ in ctx.loop("trials", trials):
            generator = numpy.random.default_rng(numpy.random.randint(2**31))
            first, second = data.draw(generator)
            if self.selected > len(first):
                raise UserError(f"method.selected={self.selected}: there are {len(first)} features")
            found = self.measure(first, second, generator)
            chosen = self.choose(found.values)
            p, naive = self.p_values(found, chosen), tails(found)[chosen]
            if data.different is None:
                self._write(ctx, found, chosen, p, naive)
                rejected.update(selected=len(chosen), rejected=int((p < self.alpha).sum()))
                rejected["naive_rejected"] = int((naive < self.alpha).sum())
                ctx.log(rejected=rejected["rejected"])
                continue
            half = first.shape[1] // 2
            picked = self.choose(self.measure(first[:, :half], second[:, :half], generator).values)
            held = tails(self.measure(first[:, half:], second[:, half:], generator))[picked]
            for way, places, values, level in (
                ("", chosen, p, self.alpha),
                ("naive_", chosen, naive, self.alpha),
                ("splitting_", picked, held, self.alpha),
                ("bonferroni_", chosen, naive, self.alpha / len(first)),
            ):
                truth = data.different[places]
                for kind, cases in (("true", truth), ("false", ~truth)):
                    counts[way + kind] += int(cases.sum())
                    counts[f"{way}{kind}_rejected"] += int((cases & (values < level)).sum())
            ctx.log(rejected=float((p < self.alpha).mean()))
        ctx.track(counts=None, rejected=None)
        metrics = {name: float(value) for name, value in rejected.items()} if data.different is None else rates(counts)
        ctx.log(**metrics)
        return metrics

    def measure(self, first: numpy.ndarray, second: numpy.ndarray, generator: numpy.random.Generator) -> Statistics:
        """The estimates of all d features of samples (d, n, p), from the same pairs."""
        samples = first.shape[1]
        scales = self.kernel_factor * squared_medians(first, second, self.bandwidth == "pooled")
        if self.estimator == "incomplete":
            pairs = random_pairs(max(2, int(self.pairs_per_sample * samples)), samples, generator)
            return statistics(units(first, second, pairs, scales))
        if self.estimator == "linear":
            return statistics(units(first, second, linear_pairs(samples), scales))
        blocks = samples // self.block_size
        if blocks < 2:
            raise UserError(f"method.block_size={self.block_size}: {samples} examples make fewer than two blocks")
        values = units(first, second, block_pairs(samples, self.block_size), scales)
        return statistics(values.reshape(len(first), blocks, -1).mean(2))

    def choose(self, values: numpy.ndarray) -> numpy.ndarray:
        """(selected,): indices of the largest (smallest) values, first of all the most extreme."""
        order = numpy.argsort(-values if self.select == "largest" else values, kind="stable")
        return order[: self.selected]

    def p_values(self, found: Statistics, chosen: numpy.ndarray) -> numpy.ndarray:
        """(selected,): of discrepancy 0 against a larger one, given that these were chosen."""
        p = []
        for feature in chosen:
            bounds = truncation(found.values, found.covariance, chosen, feature, self.select == "largest")
            deviation = found.covariance[feature, feature] ** 0.5
            p.append(truncated_tail(*(float(point) / deviation for point in (found.values[feature], *bounds))))
        return numpy.array(p)

    def _write(self, ctx: Context, found: Statistics, chosen: numpy.ndarray, p: numpy.ndarray, naive: numpy.ndarray):
        lines = ["feature,statistic,standard deviation,p,naive p"]
        for feature, value, plain in zip(chosen, p, naive, strict=True):
            deviation = found.covariance[feature, feature] ** 0.5
            lines.append(f"{feature},{found.values[feature]:.8g},{deviation:.8g},{value:.8g},{plain:.8g}")
        write_atomic(ctx.artifact("features.csv"), "\n".join(lines) + "\n")


def tails(found: Statistics) -> numpy.ndarray:
    """(d,): p-values of every feature as if none had been selected."""
    return ndtr(-found.values / numpy.diagonal(found.covariance) ** 0.5)


def rates(counts: dict[str, int]) -> dict[str, float]:
    """Rejected over cases, by way of testing."""
    found = {}
    for way in WAYS:
        for kind, name in (("true", "true_positive_rate"), ("false", "false_positive_rate")):
            if counts[way + kind]:
                found[way + name] = counts[f"{way}{kind}_rejected"] / counts[way + kind]
    return found
