"""The format of a table file, conf/table/<paper>/<name>.yaml (a user's: the same below a --config-dir).

Smallest file: a title, a source, rows, columns and what the paper reports.

    title: Distillation temperatures
    source: Author and Author 2015, arXiv:0000.00000, table 2
    overrides: [method=distillation]            # of every cell
    rows:                                       # name -> overrides, in Hydra's grammar; later ones win
      temperature 1: [method.temperature=1]
      temperature 4: [method.temperature=4]
      FitNet: reported                          # a method that the runner lacks: only its numbers are shown
    columns:
      CIFAR-10: [dataset=cifar10]
      CIFAR-100: [dataset=cifar100]
    reported:                                   # number, [number, spread], "not found", or {value, spread, note}
      temperature 1: {CIFAR-10: 92.1, CIFAR-100: not found}
      temperature 4: {CIFAR-10: [93.0, 0.2]}
    seeds: [0, 1, 2, 3, 4]
    claims:
      - text: a soft target helps
        left: temperature 4                     # a row, compared in every column; or [row, column]
        right: temperature 1

Metrics. Without more, cells show `accuracy` (the last epoch's) in percent. Others are named once and columns say which
they show; a column with two metrics is shown twice, so that last and best epoch stand apart. Differences of two
metrics, times and sizes are written the same way:

    metrics:                                    # the first one is that of columns that name none
      accuracy: {unit: "%", factor: 100}
      accuracy_best_validation: {unit: "%", factor: 100}
      loss of accuracy: {name: accuracy, minus: accuracy_baseline, unit: points, factor: 100}
      FLOPs removed: {name: flops_rate, unit: "%", factor: -100, offset: 100}
      search: {name: phases.search.seconds, unit: h, factor: 0.000277778, higher_is_better: false, judged: false}
    columns:
      CIFAR-10: {overrides: [dataset=cifar10], metric: [accuracy, accuracy_best_validation]}

Scales. ``desk``, ``smoke`` and ``paper`` are sections with their own overrides (added to those above), seeds, rows,
columns, claims, metrics, declared_axes or notes; what a section lacks is that of the top level. A row or column of a
section that has another name than the paper's says with ``beside`` which reported numbers are shown next to it.

    desk:
      columns:
        digits: {overrides: [dataset=digits, model=resnet20], beside: CIFAR-10}

A table that is not the paper's own, such as a check made for two cores, says ``scales: [desk, smoke]``.

Claims are compared over seeds. They refuse cells whose configs differ in more than rows and columns say (each method
brings its own recipe), unless ``declared_axes: [recipe]`` says that this belongs to the comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from runner import registry
from runner.errors import UserError, did_you_mean
from runner.schema import Seed
from runner.settings import build

SCALES = ("paper", "desk", "smoke")
NOT_FOUND = "not found"
NotNegative = Annotated[float, Field(ge=0)]


@dataclass(kw_only=True)
class Metric:
    """A number of result.json and how it is shown: ``factor`` x (name - minus) + offset, in ``unit``."""

    name: str | None = None  # in `metrics`, or a dotted path in result.json; null: what it stands under
    minus: str | None = None  # another one, taken off
    unit: str = ""
    factor: float = 1.0
    offset: float = 0.0
    higher_is_better: bool = True
    tolerance: NotNegative | None = None  # in the unit, where no spread is printed; null: 1% of the reported value
    judged: bool = True  # false: shown beside the reported number and never judged, such as times of another machine
    digits: Annotated[int, Field(ge=0, le=9)] = 2  # behind the point


@dataclass(kw_only=True)
class Row:
    """A row of cells."""

    overrides: list[str] = field(default_factory=list)
    measured: bool = True  # false: only reported
    columns: list[str] | None = None  # it is measured in these alone; null: in all
    beside: str | None = None  # the row of ``reported`` that it stands next to; null: of its own name


@dataclass(kw_only=True)
class Column:
    """A column of cells; with several metrics, one column each."""

    overrides: list[str] = field(default_factory=list)
    metric: list[str] | None = None  # names of ``metrics``; null: the first one
    measured: bool = True
    beside: str | None = None


@dataclass(kw_only=True)
class Reported:
    """What the paper printed, in the metric's unit; ``spread`` is the printed standard deviation or the like."""

    value: float | None = None
    spread: NotNegative | None = None
    note: str = ""


@dataclass(kw_only=True)
class Claim:
    """The left cell is better (worse) than the right one, or the left row than the right one in every column."""

    text: str
    left: Annotated[list[str], Field(min_length=1, max_length=2)]  # [row] or [row, column]
    right: Annotated[list[str], Field(min_length=1, max_length=2)]
    direction: Literal["better", "worse"] = "better"  # by the metric's higher_is_better
    columns: list[str] | None = None  # of a comparison of rows; null: all that show the first column's metric


@dataclass(kw_only=True)
class Section:
    """What can differ by scale; null: that of the top level."""

    overrides: list[str] = field(default_factory=list)
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None
    metrics: dict[str, Metric] | None = None
    rows: dict[str, Row] | None = None
    columns: dict[str, Column] | None = None
    claims: list[Claim] | None = None
    declared_axes: list[str] | None = None  # sections or dotted keys in which compared cells may differ
    notes: list[str] | None = None  # printed under the table


@dataclass(kw_only=True)
class Table(Section):
    """A whole file."""

    title: str
    source: str
    rows: dict[str, Row]
    columns: dict[str, Column]
    reported: dict[str, dict[str, Reported]] = field(default_factory=dict)
    scales: list[Literal["paper", "desk", "smoke"]] = field(default_factory=lambda: list(SCALES))  # that it is for
    paper: Section = field(default_factory=Section)
    desk: Section = field(default_factory=Section)
    smoke: Section = field(default_factory=Section)


def read_table(name: str, config_dirs: Sequence[Path] = ()) -> Table:
    """The checked table ``paper/name``.

    Raises:
        UserError: there is no such table, or its file is wrong: what, where, the nearest valid names.
    """
    path = registry.search_path(config_dirs)
    file = registry.choice_file("table", name, path)
    if file is None:
        raise registry.unknown_choice("table", name, path)
    shown = registry.display(file)
    table = build(Table, _written_out(registry.read_yaml(file)), "", lambda key: f"in {shown}")
    for scale in table.scales:
        try:
            _check_names(table, at_scale(table, scale))
        except UserError as error:
            raise UserError(f"{shown}, at scale={scale}: {error}") from None
    return table


def at_scale(table: Table, scale: str) -> Section:
    """The section of a scale, filled from the top level."""
    section: Section = getattr(table, scale)
    filled = {item.name: getattr(section, item.name) for item in fields(Section)}
    filled = {name: getattr(table, name) if value is None else value for name, value in filled.items()}
    filled["overrides"] = [*table.overrides, *section.overrides]
    defaults = {"seeds": [0], "metrics": {}, "claims": [], "declared_axes": [], "notes": []}
    found = Section(**{name: defaults.get(name) if value is None else value for name, value in filled.items()})
    used = {metric for column in found.columns.values() for metric in column.metric or []}
    found.metrics = found.metrics or {"accuracy": Metric(unit="%", factor=100.0)}
    for metric in sorted(used - set(found.metrics)):
        if metric.startswith("accuracy"):
            found.metrics[metric] = Metric(unit="%", factor=100.0)
    return found


def _written_out(content: dict[str, Any]) -> dict[str, Any]:
    """The short forms of a file in full: lists of overrides, reported numbers, single names."""
    content = dict(content)
    for scale in SCALES:
        if isinstance(content.get(scale), dict):
            content[scale] = _section_written_out(content[scale])
    content = _section_written_out(content)
    if isinstance(rows := content.get("reported"), dict):
        content["reported"] = {
            row: {column: _reported(value) for column, value in cells.items()} if isinstance(cells, dict) else cells
            for row, cells in rows.items()
        }
    return content


def _section_written_out(section: dict[str, Any]) -> dict[str, Any]:
    section = dict(section)
    for lines in ("rows", "columns"):
        if isinstance(section.get(lines), dict):
            section[lines] = {str(name): _line(line) for name, line in section[lines].items()}
    if isinstance(section.get("metrics"), dict):
        section["metrics"] = {name: {} if metric is None else metric for name, metric in section["metrics"].items()}
    if isinstance(section.get("claims"), list):
        section["claims"] = [
            {k: [v] if k in ("left", "right") and isinstance(v, str) else v for k, v in claim.items()}
            if isinstance(claim, dict)
            else claim
            for claim in section["claims"]
        ]
    return section


def _line(line: Any) -> Any:
    if line == "reported":
        return {"measured": False}
    if line is None or isinstance(line, list):
        return {"overrides": line or []}
    if isinstance(line, dict) and isinstance(line.get("metric"), str):
        return {**line, "metric": [line["metric"]]}
    return line


def _reported(value: Any) -> Any:
    if value == NOT_FOUND:
        return {}
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"value": value}
    if isinstance(value, list) and len(value) == 2:
        return {"value": value[0], "spread": value[1]}
    return value


def _check_names(table: Table, section: Section) -> None:
    """Every name that a file uses is one that it gives."""
    rows, columns = section.rows, section.columns
    for column, line in columns.items():
        for metric in line.metric or []:
            _known(metric, section.metrics, f"columns.{column}.metric")
        _known(line.beside or column, table.columns, f"columns.{column}.beside", needed=line.beside is not None)
    for row, line in rows.items():
        for column in line.columns or []:
            _known(column, columns, f"rows.{row}.columns")
        _known(line.beside or row, table.rows, f"rows.{row}.beside", needed=line.beside is not None)
    for row, cells in table.reported.items():
        _known(row, table.rows, "reported")
        for column in cells:
            _known(column, table.columns, f"reported.{row}")
    for number, claim in enumerate(section.claims):
        where = f"claims[{number}]"
        if len(claim.left) != len(claim.right):
            raise UserError(f"{where}: left and right must both be a row, or both [row, column]")
        for side in (claim.left, claim.right):
            _known(side[0], rows, where)
            if len(side) == 2:
                _known(side[1], columns, where)
        for column in claim.columns or []:
            _known(column, columns, f"{where}.columns")


def _known(name: str, valid: dict[str, Any], where: str, needed: bool = True) -> None:
    if needed and name not in valid:
        raise UserError(f"{where}: there is no '{name}'; {did_you_mean(name, valid)}")
