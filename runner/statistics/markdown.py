"""An analysis as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.statistics.analysis import Analysis, Finding
    from runner.statistics.reliability import Reliability


def markdown(analysis: Analysis) -> str:
    """The whole analysis; every p value beside its effect size, every variance beside its number of levels."""
    runs = ", ".join(f"{name} ({count})" for name, count in analysis.systems.items())
    parts = [
        f"Response: {analysis.score}. {analysis.examples:,} test examples, {analysis.observations:,} observations. "
        f"Systems (runs): {runs}. Tests at the {100 * analysis.alpha:g}% level.",
    ]
    if analysis.selected:
        chosen = "; ".join(f"{name}: {text}" for name, text in analysis.selected.items())
        parts.append(f"Best configurations, chosen by {analysis.selected_by}: {chosen}.")
    if analysis.findings:
        head = ("comparison", "rows", "chi-squared", "df", "p", "largest effect size g", "verdict")
        parts.append("### Likelihood-ratio tests")
        parts.append(_table(head, [_test(item, analysis.alpha) for item in analysis.findings]))
    for item in analysis.findings:
        if item.comparison.property is None:
            parts.append(f"### {_name(item)}, {item.protocol}")
            parts += _details(item)
    conditional = [item for item in analysis.findings if item.comparison.property is not None]
    for item in conditional:
        if item.comparison.test.p_value <= analysis.alpha:
            parts.append(f"### {_name(item)}, {item.protocol}")
            parts += _details(item)
    for item in analysis.reliability:
        parts.append(f"### Variance of {item.system}: reliability {100 * item.coefficient:.1f}% ({item.band})")
        parts += _variance(item)
    if analysis.notes:
        parts.append("\n".join(f"- {note}" for note in analysis.notes))
    return "\n\n".join(parts) + "\n"


def _name(item: Finding) -> str:
    comparison = item.comparison
    text = f"{comparison.factor} x {comparison.property}" if comparison.property else comparison.factor
    return f"{text} within {item.within}" if item.within else text


def _test(item: Finding, alpha: float) -> tuple[str, ...]:
    test, contrasts = item.comparison.test, item.comparison.contrasts
    largest = max((contrast.effect_size for contrast in contrasts), key=abs)
    return (
        _name(item),
        item.protocol,
        f"{test.chi_squared:.4g}",
        str(test.degrees_of_freedom),
        _p(test.p_value),
        f"{largest:+.3f}",
        "differ" if test.p_value <= alpha else "not distinguishable",
    )


def _details(item: Finding) -> list[str]:
    comparison = item.comparison
    place = ("at",) if comparison.property else ()
    estimates = [
        (row.level, *((row.at,) if place else ()), f"{row.value:.4g}", f"{row.standard_error:.2g}", _interval(row))
        for row in comparison.estimates
    ]
    contrasts = [
        (
            f"{row.first} - {row.second}",
            *((row.at,) if place else ()),
            f"{row.difference:+.4g}",
            _interval(row),
            _p(row.p_value),
            f"{row.effect_size:+.3f}",
        )
        for row in comparison.contrasts
    ]
    fitted = (
        f"Standard deviations: between examples {comparison.example_deviation:.4g}, residual "
        f"{comparison.residual_deviation:.4g}. Maximum likelihood, {comparison.estimation}."
    )
    if comparison.singular:
        fitted += " Singular: the variance between examples is estimated as zero."
    return [
        _table(("level", *place, "estimate", "standard error", "interval"), estimates),
        _table(("contrast", *place, "difference", "interval", "p", "g"), contrasts),
        fitted,
    ]


def _variance(item: Reliability) -> list[str]:
    rows = [
        (row.name, "" if row.levels is None else str(row.levels), f"{row.variance:.4g}", f"{row.percent:.2f}%")
        for row in item.components
    ]
    fitted = f"Restricted maximum likelihood, {item.estimation}, {item.observations:,} observations."
    if item.singular:
        fitted += f" Singular: the variance of {', '.join(item.singular)} is estimated as zero."
    few = [row.name for row in item.components if row.levels is not None and row.levels < 4]
    if few:
        fitted += f" With so few levels the variance of {', '.join(few)} is known poorly."
    return [_table(("source", "levels", "variance", "share"), rows), fitted]


def _interval(row: object) -> str:
    return f"[{row.low:.4g}, {row.high:.4g}]"


def _p(value: float) -> str:
    return f"{value:.4g}" if value >= 1e-300 else "< 1e-300"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
