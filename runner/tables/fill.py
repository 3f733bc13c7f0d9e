"""Runs what a table lacks, estimates what that costs, and builds the table for the command and for Python."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.defaults import runs_default
from runner.records import find_runs
from runner.storage import write_json
from runner.tables.grid import Grid, SeedRun


@dataclass
class Filled:
    """How filling went."""

    ran: int = 0
    failed: int = 0
    stopped: int = 0


def pending(grid: Grid, only: Sequence[tuple[str, str]] | None = None) -> list[SeedRun]:
    """The runs without a stored result (all with force=true), once each; of the cells ``only``, where given."""
    wanted = {id(run) for cell in grid.cells if only is None or (cell.row, cell.column) in only for run in cell.runs}
    keys = {run.plan.key for cell in grid.cells for run in cell.runs if id(run) in wanted and run.plan}
    runs = [run for run in grid.runs() if run.plan and run.plan.key in keys]
    return [run for run in runs if run.result is None or run.plan.config["force"]]


def fill(grid: Grid, only: Sequence[tuple[str, str]] | None, options: Any) -> Filled:
    """Runs what is pending through ``runner.sweep``; what fails leaves its cell missing, with the last line of why."""
    todo = pending(grid, only)
    if not todo:
        return Filled()
    from runner.sweep import Job, run_jobs

    labels = {tuple(run.overrides): f"{cell.row}, {cell.column}" for cell in reversed(grid.cells) for run in cell.runs}
    jobs = [Job(f"{labels[tuple(run.overrides)]}, seed {run.seed}", run.overrides) for run in todo]
    name = f"{grid.name.replace('/', '-')}-{grid.scale}"
    outcomes = run_jobs(
        jobs,
        config_dirs=grid.config_dirs,
        options=options,
        group=f"table {grid.name} {grid.scale}",
        summary_name=f"table-{name}",
    )
    errors = {run.plan.key: outcome.error for run, outcome in zip(todo, outcomes, strict=True) if outcome.error}
    grid.forget()
    for cell in grid.cells:
        for run in cell.runs:
            if run.plan and run.result is None:
                run.error = errors.get(run.plan.key)
    states = [outcome.state for outcome in outcomes]
    return Filled(states.count("done"), states.count("failed"), states.count("stopped") + states.count("waiting"))


def runs_folder(grid: Grid) -> Path:
    """Where the runs of the grid are."""
    found = next((run.plan.config["paths"]["runs"] for run in grid.runs() if run.plan), None)
    return Path(found or runs_default()).expanduser().absolute()


def store(document: dict[str, Any], folder: Path) -> Path:
    """Writes tables/<paper>/<name>-<scale>.json below the run folders."""
    path = folder / "tables" / f"{document['name']}-{document['scale']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, document)
    return path


def estimate(runs: Sequence[SeedRun], folder: Path) -> tuple[float, int]:
    """(seconds, runs without an estimate): medians over finished runs of the same method, model, data set and scale.

    A run that trained a baseline or searched took longer than one that found them, so this is a rough upper bound of
    one process after another.
    """
    past: dict[tuple, list[float]] = {}
    for record in find_runs(folder) if folder.is_dir() else []:
        if record.result:
            past.setdefault(_kind(record.config or record.result), []).append(record.result["seconds"])
    known = [past[kind] for run in runs if (kind := _kind(run.plan.config)) in past]
    return sum(statistics.median(seconds) for seconds in known), len(runs) - len(known)


def _kind(config: dict[str, Any]) -> tuple:
    values = [config.get(name) for name in ("method", "model", "dataset", "scale")]
    return tuple(value.get("name") if isinstance(value, dict) else value for value in values)


def plan_lines(grid: Grid, todo: Sequence[SeedRun], folder: Path) -> list[str]:
    """What a call would do: every cell with what is stored, and the cost."""
    keys = {run.plan.key for run in todo}
    lines = [f"{grid.name} at scale={grid.scale}: {grid.table.title}"]
    for cell in grid.cells:
        if not cell.runs:
            continue
        stored = sum(run.result is not None for run in cell.runs)
        stale = sum(run.stale for run in cell.runs)
        parts = [f"{stored} of {len(cell.runs)} stored"]
        if stale:
            parts.append(f"{stale} by older code")
        if ahead := sum(run.plan is not None and run.plan.key in keys for run in cell.runs):
            parts.append(f"{ahead} to run")
        if cell.runs[0].error:
            parts.append(f"cannot run: {cell.runs[0].error}")
        lines.append(f"  {cell.row}, {cell.column}: {', '.join(parts)}")
        lines.append(f"    {' '.join(cell.overrides)}")
    reported = sum(not cell.runs and cell.reported is not None for cell in grid.cells)
    seconds, unknown = estimate(todo, folder)
    every = grid.runs()
    cost = f"about {_duration(seconds)} one after another by past runs" if seconds else ""
    if unknown:
        cost += f"{' and ' if cost else ''}{unknown} runs of a kind that was never run here"
    lines.append(
        f"{len(every)} runs in all, {len(todo)} to run{f': {cost}' if todo else ''}; "
        f"{reported} cell{' is' if reported == 1 else 's are'} only reported"
    )
    return lines


def _duration(seconds: float) -> str:
    for limit, unit, length in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
