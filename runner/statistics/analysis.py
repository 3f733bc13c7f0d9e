"""The analysis of a table of scores: comparisons under two protocols, and the reliability of each system."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runner.errors import UserError, did_you_mean
from runner.statistics.comparison import Comparison, coded, compare
from runner.statistics.reliability import Reliability, decompose

if TYPE_CHECKING:
    import pandas

ALL, BEST = "all runs", "best configurations"


@dataclass(frozen=True)
class Finding:
    """One comparison: of the systems (``within`` None), or of the values of a meta-parameter within one system."""

    protocol: str  # "all runs" | "best configurations"
    within: str | None
    comparison: Comparison


@dataclass(frozen=True)
class Analysis:
    """What ``analyse`` found; ``to_dict`` is plain, ``to_markdown`` for people."""

    score: str
    systems: dict[str, int]  # runs of each
    examples: int
    observations: int
    alpha: float
    findings: list[Finding]
    reliability: list[Reliability]
    selected: dict[str, str] = field(default_factory=dict)  # system -> its best configuration
    selected_by: str | None = None
    notes: list[str] = field(default_factory=list)

    def finding(self, protocol: str = ALL, *, within: str | None = None, factor: str | None = None) -> Comparison:
        """The comparison without a property under a protocol. Raises KeyError."""
        for item in self.findings:
            fits = item.protocol == protocol and item.within == within and item.comparison.property is None
            if fits and factor in (None, item.comparison.factor):
                return item.comparison
        raise KeyError((protocol, within, factor))

    def to_dict(self) -> dict[str, Any]:
        """Numbers, texts, lists and mappings only."""
        return dataclasses.asdict(self)

    def to_markdown(self) -> str:
        """Tables with chi-squared, degrees of freedom, p and effect size always together."""
        from runner.statistics.markdown import markdown

        return markdown(self)


def analyse(
    frame: pandas.DataFrame,
    *,
    score: str = "score",
    system: str = "system",
    seed: str = "seed",
    example: str = "example",
    meta_parameters: Sequence[str] = (),
    properties: Sequence[str] = (),
    selection: str | None = None,
    where: str | None = None,
    alpha: float = 0.05,
    distribution: str = "gaussian",
    engine: str = "auto",
    scale_properties: bool = False,
) -> Analysis:
    """Inferential reproducibility of the scores in a long table, one row a system, run and test example.

    The systems are compared over all runs and, where meta-parameters vary, over the runs of each system's best
    configuration; then the values of each meta-parameter within each system; each time once more for every property
    of the examples, whether the difference depends on it. Each system's variance is taken apart into examples, seeds,
    meta-parameters and residual.

    Args:
        meta_parameters: columns that make configurations; a system in which one does not vary leaves it out.
        properties: columns that describe examples; numbers make slopes, any other cells.
        selection: column by whose mean the best configuration is chosen (such as a validation accuracy); without it
            the score itself chooses, and the analysis says so.
        where: rows to keep, an expression of ``DataFrame.query``.
        alpha: level of the tests, 0..1.
        distribution: ``gaussian``, or ``binomial`` for scores of 0 and 1: the comparisons are then logit models.
        engine: ``auto`` (closed form for balanced tables, else the profile likelihood) or ``statsmodels``.
        scale_properties: slopes of numbers are by their standard deviation, not by their unit.

    Raises:
        UserError: a column is missing, or there is nothing to compare or to take apart.
    """
    named = [system, seed, example, score, *meta_parameters, *properties, *([selection] if selection else [])]
    for name in named:
        if name not in frame:
            raise UserError(f"the table of scores has no column '{name}'; {did_you_mean(name, map(str, frame))}")
    notes = []
    rows = _filtered(frame, where)
    complete = rows.dropna(subset=[system, seed, example, score, *properties])
    if len(complete) < len(rows):
        notes.append(f"{len(rows) - len(complete)} rows with missing values were dropped")
    if complete.empty:
        raise UserError(f"the table of scores has no complete rows{f' where {where}' if where else ''}")
    if distribution == "binomial":
        notes.append(
            "comparisons are logit models (means are log-odds); the variance components take 0 and 1 as numbers"
        )
    elif complete[score].nunique() == 2:
        notes.append("the score has two values: the models take it as a number (distribution=binomial: a logit model)")
    for item in meta_parameters:  # a setting that is null in some runs is one of its values, not a missing one
        if complete[item].isna().any():
            known = complete[item].notna()
            complete = complete.assign(**{item: complete[item].astype(object).where(known, "null")})
    systems = coded(complete[system])[0]
    own = {name: complete[_as_text(complete[system]) == name] for name in systems}
    varied = {name: [item for item in meta_parameters if part[item].nunique() > 1] for name, part in own.items()}
    runs = {name: len(part[[seed, *varied[name]]].drop_duplicates()) for name, part in own.items()}
    options = {
        "score": score,
        "example": example,
        "alpha": alpha,
        "distribution": distribution,
        "engine": engine,
        "scale_property": scale_properties,
    }
    findings: list[Finding] = []

    def add(protocol: str, within: str | None, rows: pandas.DataFrame, factor: str) -> None:
        for item in (None, *properties):
            try:
                findings.append(Finding(protocol, within, compare(rows, factor=factor, property=item, **options)))
            except UserError as error:
                notes.append(f"{protocol}, {factor}{f' x {item}' if item else ''}{_inside(within)}: {error}")

    selected: dict[str, str] = {}
    if len(systems) > 1:
        if any(varied.values()):
            best = [_best(part, varied[name], selection or score) for name, part in own.items()]
            selected = {name: text for name, (text, _) in zip(own, best, strict=True)}
            import pandas

            add(BEST, None, pandas.concat([part for _, part in best]), system)
        add(ALL, None, complete, system)
    reliability = []
    for name, part in own.items():
        for item in varied[name]:
            add(ALL, name, part, item)
        facets = list(_distinct(part, [seed, *varied[name]], notes, name))
        try:
            reliability.append(decompose(part, score=score, example=example, facets=facets, system=name, engine=engine))
        except UserError as error:
            notes.append(str(error))
    if not findings and not reliability:
        raise UserError(f"nothing can be analysed: {'; '.join(notes) or 'one system, one run'}")
    return Analysis(
        score=score,
        systems=runs,
        examples=int(complete[example].nunique()),
        observations=len(complete),
        alpha=alpha,
        findings=findings,
        reliability=reliability,
        selected=selected,
        selected_by=(selection or f"{score} itself, on the examples that are then tested") if selected else None,
        notes=notes,
    )


def _filtered(frame: pandas.DataFrame, where: str | None) -> pandas.DataFrame:
    if not where:
        return frame
    try:
        return frame.query(where)
    except Exception as error:  # whatever the expression raises: names, types, syntax
        columns = ", ".join(map(str, frame))
        raise UserError(
            f"where={where}: {error}; the table's columns are {columns} (dotted ones in backticks)"
        ) from None


def _as_text(column: pandas.Series) -> pandas.Series:
    levels, codes = coded(column)
    return column.__class__([levels[code] for code in codes], index=column.index)


def _best(part: pandas.DataFrame, varied: Sequence[str], by: str) -> tuple[str, pandas.DataFrame]:
    """(in words, rows) of the configuration with the highest mean; the first of equal ones."""
    if not varied:
        return "its only one", part
    means = part.groupby(list(varied))[by].mean()
    choice = means.idxmax() if len(varied) > 1 else (means.idxmax(),)
    chosen = part
    for name, value in zip(varied, choice, strict=True):
        chosen = chosen[chosen[name] == value]
    return ", ".join(f"{name}={value}" for name, value in zip(varied, choice, strict=True)), chosen


def _distinct(part: pandas.DataFrame, facets: Sequence[str], notes: list[str], system: str) -> Iterator[str]:
    """The facets that vary, without those that split the rows as one before does: their shares cannot be told."""
    seen: dict[tuple, str] = {}
    for name in facets:
        levels, codes = coded(part[name])
        if len(levels) < 2:
            continue
        order: dict[int, int] = {}
        split = tuple(order.setdefault(code, len(order)) for code in codes.tolist())
        if split in seen:
            notes.append(f"{system}: {name} varies only together with {seen[split]}, which stands for both")
        else:
            seen[split] = name
            yield name


def _inside(within: str | None) -> str:
    return f" within {within}" if within else ""
