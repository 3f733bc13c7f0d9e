"""From a table file to the cells of one scale: composed, with keys, folders and stored results. Light: no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from runner.errors import UserError, nearest
from runner.key import LEFT_OUT, PATHS
from runner.plan import Plan, plan
from runner.registry import flatten
from runner.tables.schema import Column, Metric, Reported, Row, Section, Table, at_scale


@dataclass
class SeedRun:
    """One seed of a cell: a run that is stored, or to be run, or whose config is refused (``error``)."""

    seed: int
    overrides: list[str]
    plan: Plan | None = None
    error: str | None = None
    code: Callable[[], str] | None = None  # the fingerprint of the code that it would use now

    @cached_property
    def result(self) -> dict[str, Any] | None:
        return self.plan.folder.result() if self.plan else None

    @property
    def stale(self) -> bool:
        """Stored, and the code of its method changed since."""
        return self.result is not None and self.result.get("code") != self.code()


@dataclass
class Cell:
    """One row in one column. ``runs`` is empty where nothing is measured."""

    row: str
    column: str
    metric_name: str
    metric: Metric
    overrides: list[str] = field(default_factory=list)  # without scale and seed
    reported: Reported | None = None
    runs: list[SeedRun] = field(default_factory=list)
    error: str | None = None  # why a stored result has no value, or the last line of a failed run

    def values(self) -> dict[int, float]:
        """Seed -> value in the metric's unit, of the stored results."""
        found = {}
        for run in self.runs:
            if run.result is not None:
                try:
                    found[run.seed] = value_of(run.result, self.metric, self.metric_name)
                except UserError as error:
                    self.error = str(error)
        return found


@dataclass
class Grid:
    """All cells of a table at a scale."""

    name: str
    table: Table
    scale: str
    section: Section
    changes: list[str]  # the user's overrides, seeds included
    config_dirs: list[Path]
    cells: list[Cell]
    columns: list[str]  # as they are shown: a column with two metrics stands twice

    def cell(self, row: str, column: str) -> Cell:
        return next(cell for cell in self.cells if (cell.row, cell.column) == (row, column))

    def runs(self) -> list[SeedRun]:
        """Every run once; cells that differ in the metric alone share theirs."""
        found = {(tuple(run.overrides)): run for cell in self.cells for run in cell.runs}
        return list({run.plan.key if run.plan else words: run for words, run in found.items()}.values())

    def forget(self) -> None:
        """What is stored is read anew."""
        for cell in self.cells:
            for run in cell.runs:
                run.__dict__.pop("result", None)


def make_grid(
    name: str,
    table: Table,
    scale: str,
    changes: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    config_dirs: Sequence[Path] = (),
) -> Grid:
    """Composes every measured cell. ``changes`` are overrides of all cells; ``seeds`` replaces the table's own.

    Raises:
        UserError: no measured cell can be composed; one that cannot while others can has an ``error``.
    """
    if scale not in table.scales:
        raise UserError(f"table {name} is not for scale={scale}; it has scale={' and scale='.join(table.scales)}")
    section = at_scale(table, scale)
    asked, seeds = seeds, list(seeds or section.seeds)
    columns = _shown_columns(section)
    composed: dict[tuple[str, ...], list[SeedRun]] = {}
    cells = []
    for row, line in section.rows.items():
        for shown, (column, metric) in columns.items():
            cell = Cell(row, shown, metric, section.metrics[metric])
            cell.reported = _reported(table, line, row, section.columns[column], column, metric, section)
            if _is_measured(line, section.columns[column], column):
                cell.overrides = merged([*section.overrides, *line.overrides, *section.columns[column].overrides])
                words = tuple(merged([*cell.overrides, f"scale={scale}", *changes]))
                if words not in composed:
                    composed[words] = _seed_runs(words, seeds, config_dirs)
                cell.runs = composed[words]
            cells.append(cell)
    errors = [run.error for cell in cells for run in cell.runs]
    if errors and all(errors):
        raise UserError(errors[0])
    given = [f"seed={','.join(map(str, asked))}"] if asked else []
    return Grid(name, table, scale, section, [*changes, *given], list(config_dirs), cells, list(columns))


def merged(overrides: Iterable[str]) -> list[str]:
    """Overrides with each key once, the last one's value, in the order in which the keys first came."""
    found: dict[str, str] = {}
    for word in overrides:
        found[override_key(word)] = word
    return list(found.values())


def override_key(word: str) -> str:
    """The key or group that an override sets."""
    return word.partition("=")[0].lstrip("+~")


def _shown_columns(section: Section) -> dict[str, tuple[str, str]]:
    """Shown name -> (column, metric)."""
    first = next(iter(section.metrics))
    found = {}
    for column, line in section.columns.items():
        for number, metric in enumerate(line.metric or [first]):
            found[column if number == 0 else f"{column}: {metric}"] = (column, metric)
    return found


def _is_measured(row: Row, column: Column, name: str) -> bool:
    return row.measured and column.measured and (row.columns is None or name in row.columns)


def _reported(
    table: Table, line: Row, row: str, column_line: Column, column: str, metric: str, section: Section
) -> Reported | None:
    """The paper's number; it belongs to the first metric of the paper's column."""
    beside = column_line.beside or column
    first = next(iter(section.metrics))
    if metric != (column_line.metric or [first])[0]:
        return None
    return table.reported.get(line.beside or row, {}).get(beside)


def _seed_runs(words: Sequence[str], seeds: Sequence[int], config_dirs: Sequence[Path]) -> list[SeedRun]:
    """One composition serves all seeds: they differ in the seed and in what refers to it."""
    from omegaconf import OmegaConf

    from runner.compose import compose
    from runner.settings import validate

    runs = [SeedRun(seed, [*words, f"seed={seed}"]) for seed in seeds]
    try:
        composed = compose(runs[0].overrides, config_dirs)
        validate(composed.config, composed.origin)
        code = cache(lambda: runs[0].plan.code())  # reads the sources of method, model and data set
        for run in runs:
            run.code = code
            OmegaConf.update(composed.node, "seed", run.seed)
            run.plan = plan(OmegaConf.to_container(composed.node, resolve=True), composed.origin)
    except UserError as error:
        for run in runs:
            run.error = str(error)
    return runs


def value_of(result: dict[str, Any], metric: Metric, key: str) -> float:
    """A metric of a stored result in the metric's unit.

    Raises:
        UserError: the result has no such number.
    """
    value = _number(result, metric.name or key)
    if metric.minus is not None:
        value -= _number(result, metric.minus)
    return metric.factor * value + metric.offset


def _number(result: dict[str, Any], name: str) -> float:
    if name in result["metrics"]:
        return float(result["metrics"][name])
    found: Any = result
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, (int, float)) and not isinstance(found, bool):
        return float(found)
    raise UserError(f"the result has no metric '{name}'; it has {', '.join(result['metrics'])}")


def decisive(words: Iterable[str]) -> list[str]:
    """Those of a user's overrides that change what is measured; other seeds or data elsewhere do not."""
    keys = {word: override_key(word) for word in words}
    return [word for word, key in keys.items() if key.partition(".")[0] not in LEFT_OUT and key not in (*PATHS, "seed")]


def differences(cells: Sequence[Cell], swept: Iterable[str]) -> dict[str, list[Any]]:
    """Dotted key -> the values in which the composed configs of ``cells`` differ, but for ``swept`` axes and seeds.

    A section that some lack stands for all its keys, with the values absent and present.
    """
    configs = [next((run.plan.config for run in cell.runs if run.plan), None) for cell in cells]
    flat = [dict(flatten({k: v for k, v in config.items() if k not in LEFT_OUT})) for config in configs if config]
    names = [{section for key in values for section in _sections(key)} for values in flat]
    found: dict[str, list[Any]] = {}
    for key in sorted(set().union(*flat)):
        if key == "seed" or key.endswith(".seed"):
            continue
        lacking = next((name for name in _sections(key) if not all(name in known for known in names)), None)
        values = [values.get(key) for values in flat]
        if lacking is not None:
            found[lacking] = ["absent", "present"]
        elif any(value != values[0] for value in values):
            found[key] = [value for number, value in enumerate(values) if value not in values[:number]]
    return {key: values for key, values in found.items() if not covered(key, swept)}


def _sections(key: str) -> list[str]:
    """a, a.b and a.b.c of a.b.c."""
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def covered(key: str, axes: Iterable[str]) -> bool:
    """Whether a dotted key is one of the axes or lies below one."""
    return any(f"{key}.".startswith(f"{axis}.") for axis in axes)


def swept_axes(section: Section) -> set[str]:
    """What rows and columns name: a choice stands for its whole section, a setting for itself."""
    lines = [*section.rows.values(), *section.columns.values()]
    return {override_key(word).rpartition("@")[2] for line in lines for word in line.overrides}


def parse_only(texts: Sequence[str], grid: Grid) -> list[tuple[str, str]]:
    """(row, column) of ``--only ROW,COLUMN`` words: shell wildcards; a name may hold commas; ROW alone is all columns.

    Raises:
        UserError: nothing fits.
    """
    found = []
    for text in texts:
        cuts = [(text, "*"), *((text[:i], text[i + 1 :].strip()) for i, sign in enumerate(text) if sign == ",")]
        fits = [
            (cell.row, cell.column)
            for cell in grid.cells
            for row, column in cuts
            if _fits(cell.row, row) and _fits(cell.column, column)
        ]
        if not fits:
            names = [*(f"{cell.row},{cell.column}" for cell in grid.cells), *grid.section.rows]
            close = nearest(text, names) or names[:3]
            raise UserError(f"--only '{text}': no such ROW,COLUMN; did you mean {' or '.join(map(repr, close))}?")
        found += fits
    return found


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)
