"""A grid with its results as one plain document: what is stored as JSON and printed in every form."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

from runner import registry
from runner.tables.grid import Cell, Grid, covered, decisive, differences, swept_axes
from runner.tables.schema import Claim
from runner.tables.verdicts import MISSING, NO_VERDICT, Comparison, cell_verdict, compare, summarise, tolerance_of

REPORTED_ONLY = "reported only"


def document(grid: Grid, runs_folder: Path) -> dict[str, Any]:
    """Everything that a table says.

    Keys: name, title, source, scale, created, command, overrides, commit, machine, seeds, metric (the first),
    metrics, rows, columns, cells, claims, fidelity, deviations, differing_axes, notes. A cell: row, column, metric,
    unit, digits, overrides, runs (folders below ``runs_folder``), n, seeds_asked, mean, sd, interval, reported,
    difference, tolerance, verdict, stale, error, command. A claim: text, left, right, verdict, test, level, n,
    difference, interval, p, unit, note. Values are in the metric's unit.
    """
    metrics = {cell.metric_name: cell.metric for cell in grid.cells}
    described = [{"name": name, "unit": m.unit, "higher_is_better": m.higher_is_better} for name, m in metrics.items()]
    results = [run.result for run in grid.runs() if run.result is not None]
    swept = swept_axes(grid.section)
    axes = _differing_axes(grid, swept)
    methods = sorted({run.plan.config["method"]["name"] for run in grid.runs() if run.plan})
    pages = {name: registry.describe(name, registry.search_path(grid.config_dirs)) for name in methods}
    return {
        "name": grid.name,
        "title": grid.table.title,
        "source": grid.table.source,
        "scale": grid.scale,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command(grid),
        "overrides": grid.changes,
        "commit": _joined(_commit(result) for result in results),
        "machine": _joined(_machine(result) for result in results),
        "seeds": sorted({run.seed for run in grid.runs()}),
        "metric": described[0],
        "metrics": described,
        "rows": list(grid.section.rows),
        "columns": grid.columns,
        "cells": [_cell(grid, cell, runs_folder) for cell in grid.cells],
        "claims": [
            _claim(grid, claim, left, right, swept)
            for claim in grid.section.claims
            for left, right in pairs(grid, claim)
        ],
        "fidelity": {name: page.fidelity or "not stated" for name, page in pages.items()},
        "deviations": {name: list(page.deviations) for name, page in pages.items()},
        "differing_axes": axes,
        "notes": grid.section.notes,
    }


def command(grid: Grid, cell: Cell | None = None) -> str:
    """The command that fills the table, or one cell of it."""
    words = ["runner"]
    for folder in grid.config_dirs:
        words += ["--config-dir", str(folder)]
    words += ["table", grid.name, f"scale={grid.scale}", *grid.changes]
    if cell is not None:
        words += ["--only", f"{cell.row},{cell.column}"]
    return " ".join(shlex.quote(word) for word in words)


def pairs(grid: Grid, claim: Claim) -> list[tuple[Cell, Cell]]:
    """The cells that a claim compares."""
    if len(claim.left) == 2:
        return [(grid.cell(*claim.left), grid.cell(*claim.right))]
    first = grid.cell(claim.left[0], grid.columns[0]).metric_name
    lefts = [cell for cell in grid.cells if cell.row == claim.left[0]]
    if claim.columns is None:
        lefts = [cell for cell in lefts if cell.metric_name == first and cell.runs]
    else:
        lefts = [cell for cell in lefts if cell.column in claim.columns]
    return [(cell, grid.cell(claim.right[0], cell.column)) for cell in lefts]


def _cell(grid: Grid, cell: Cell, runs_folder: Path) -> dict[str, Any]:
    values = cell.values()
    summary = summarise(list(values.values()))
    reported = cell.reported
    number = reported.value if reported else None
    tolerance = difference = None
    if number is not None and grid.scale == "paper" and cell.metric.judged:
        tolerance = tolerance_of(number, reported.spread, cell.metric.tolerance)
    if not cell.runs:
        verdict = REPORTED_ONLY if reported else ""
    elif summary is None:
        verdict = MISSING
    elif tolerance is None:
        verdict = ""  # a demonstration's number, a time of another machine, or nothing to compare with
    elif decisive(grid.changes):
        verdict = f"{NO_VERDICT}: settings changed"
    else:
        difference = summary.mean - number
        verdict = cell_verdict(summary, number, tolerance)
    absent = [run for run in cell.runs if run.result is None]
    return {
        "row": cell.row,
        "column": cell.column,
        "metric": cell.metric_name,
        "unit": cell.metric.unit,
        "digits": cell.metric.digits,
        "overrides": cell.overrides,
        "runs": [_relative(run.plan.folder.path, runs_folder) for run in cell.runs if run.result is not None],
        "n": summary.n if summary else 0,
        "seeds_asked": len(cell.runs),
        "mean": summary.mean if summary else None,
        "sd": summary.sd if summary else None,
        "interval": list(summary.interval) if summary and summary.interval else None,
        "reported": {"value": number, "spread": reported.spread, "note": reported.note} if reported else None,
        "difference": difference,
        "tolerance": tolerance,
        "verdict": verdict,
        "stale": any(run.stale for run in cell.runs),
        "error": cell.error or next((run.error for run in absent if run.error), None),
        "command": command(grid, cell) if absent else None,
    }


def _claim(grid: Grid, claim: Claim, left: Cell, right: Cell, swept: set[str]) -> dict[str, Any]:
    larger = left.metric.higher_is_better == (claim.direction == "better")
    barred = differences([left, right], {*swept, *grid.section.declared_axes})
    scales = [(cell.metric.unit, cell.metric.higher_is_better) for cell in (left, right)]
    if scales[0] != scales[1]:
        barred = {"metric": [left.metric_name, right.metric_name]}
    if barred:
        found = Comparison("refused", "", 0, None, None, None, f"the cells also differ in {'; '.join(_axes(barred))}")
    else:
        found = compare(left.values(), right.values(), larger)
    text = claim.text if len(claim.left) == 2 else f"{claim.text} ({left.column})"
    return {
        "text": text,
        "left": [left.row, left.column],
        "right": [right.row, right.column],
        "verdict": found.verdict,
        "test": found.test,
        "level": 0.95,
        "n": found.n,
        "difference": found.difference,
        "interval": list(found.interval) if found.interval else None,
        "p": found.p,
        "unit": left.metric.unit,
        "note": found.note,
    }


def _differing_axes(grid: Grid, swept: set[str]) -> list[str]:
    """What differs within a column beside what rows and columns name; what the table declares is marked."""
    found: dict[str, list[Any]] = {}
    for column in grid.columns:
        cells = [cell for cell in grid.cells if cell.column == column and cell.runs]
        for key, values in differences(cells, swept).items():
            found.setdefault(key, [])
            found[key] += [value for value in values if value not in found[key]]
    declared = grid.section.declared_axes
    return [
        f"{text}{' (declared part of the comparison)' if covered(key, declared) else ''}"
        for key, text in zip(found, _axes(found), strict=True)
    ]


def _axes(found: dict[str, list[Any]]) -> list[str]:
    return [f"{key}: {', '.join('null' if value is None else str(value) for value in found[key])}" for key in found]


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _joined(texts: Any) -> str:
    return " and ".join(sorted(set(texts)))


def _commit(result: dict[str, Any]) -> str:
    commit = (result.get("commit") or "unknown")[:12]
    return f"{commit} with uncommitted changes" if result.get("uncommitted_changes") else commit


def _machine(result: dict[str, Any]) -> str:
    hardware = result.get("hardware", {})
    on_gpu = str(hardware.get("device", "")).startswith("cuda") and hardware.get("gpus")
    processor = hardware["gpus"][0] if on_gpu else hardware.get("processor", "unknown processor")
    torch = result.get("versions", {}).get("torch", "?")
    return f"{processor}, {hardware.get('threads', '?')} threads, torch {torch}"
