"""Runs what a table lacks, says beforehand what that is and what it costs, and stores the table as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.commands.runs import age
from runner.defaults import runs_default
from runner.errors import UserError
from runner.records import find_runs
from runner.storage import write_json
from runner.tables.grid import Grid, SeedRun, override_key

if TYPE_CHECKING:
    from runner.sweep import Outcome, SweepOptions


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


def fill(grid: Grid, only: Sequence[tuple[str, str]] | None, options: SweepOptions) -> Filled:
    """Runs what is pending through ``runner.sweep``; what fails leaves its cell missing, with the last line of why.

    Raises:
        UserError: every run was refused, and nothing of the table is stored.
    """
    todo = pending(grid, only)
    if not todo:
        return Filled()
    if options.stop_after is None and not any(override_key(word) == "stop_after" for word in grid.changes):
        options = replace(options, stop_after=0)  # a row that fails for every seed must not stop the other rows
    outcomes, errors = _run(grid, todo, options)
    states = [outcome.state for outcome in outcomes.values()]
    filled = Filled(states.count("done"), states.count("failed") + len(errors), 0)
    filled.stopped = len(states) - states.count("cached") - filled.ran - states.count("failed")
    errors |= {key: outcome.error for key, outcome in outcomes.items() if outcome.error}
    grid.forget()
    every = [run for cell in grid.cells for run in cell.runs if run.plan]
    for run in every:
        if run.result is None:
            run.error = errors.get(run.plan.key)
    if not outcomes and not any(run.result for run in every):
        raise UserError(next(iter(errors.values())))
    return filled


def _run(grid: Grid, todo: Sequence[SeedRun], options: SweepOptions) -> tuple[dict[str, Outcome], dict[str, str]]:
    """(key -> outcome, key -> why it was refused before anything ran); what is refused is left out, for all seeds."""
    from runner.sweep import Job, run_jobs
    from runner.tables.track import group_name

    labels = {tuple(run.overrides): f"{cell.row}, {cell.column}" for cell in reversed(grid.cells) for run in cell.runs}
    left = {run.plan.key: Job(f"{labels[tuple(run.overrides)]}, seed {run.seed}", run.overrides) for run in todo}
    refused: dict[str, str] = {}
    while left:
        try:
            outcomes = run_jobs(
                list(left.values()),
                config_dirs=grid.config_dirs,
                options=options,
                group=group_name(grid.name, grid.scale),
                summary_name=f"table-{grid.name.replace('/', '-')}-{grid.scale}",
            )
            return dict(zip(left, outcomes, strict=True)), refused
        except UserError as error:
            why, _, words = str(error).partition("  [in the cell: ")
            cell = words.rpartition(" seed=")[0]
            same = [key for key, job in left.items() if " ".join(job.overrides[:-1]) == cell]
            if not same:
                raise
            for key in same:
                refused[key] = why
                del left[key]
    return {}, refused


def runs_folder(grid: Grid) -> Path:
    """Where the runs of the grid are."""
    found = next((run.plan.config["paths"]["runs"] for run in grid.runs() if run.plan), None)
    found = found or next((word.partition("=")[2] for word in grid.changes if override_key(word) == "paths.runs"), None)
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
    shown: dict[tuple[str, ...], str] = {}  # cells that differ in the metric alone are one
    for cell in grid.cells:
        if cell.runs:
            shown.setdefault((cell.row, *cell.overrides), f"{cell.row}, {cell.column}")
    for (_, *words), name in shown.items():
        cell = next(cell for cell in grid.cells if f"{cell.row}, {cell.column}" == name)
        parts = [f"{sum(run.result is not None for run in cell.runs)} of {len(cell.runs)} stored"]
        if stale := sum(run.stale for run in cell.runs):
            parts.append(f"{stale} by older code")
        if ahead := sum(run.plan is not None and run.plan.key in keys for run in cell.runs):
            parts.append(f"{ahead} to run")
        if cell.runs[0].error:
            parts.append(f"cannot run: {cell.runs[0].error}")
        lines += [f"  {name}: {', '.join(parts)}", f"    {' '.join(words)}"]
    reported = sum(not cell.runs and cell.reported is not None for cell in grid.cells)
    seconds, unknown = estimate(todo, folder)
    every = grid.runs()
    cost = f"about {age(seconds)} one after another by past runs" if seconds else ""
    if unknown:
        cost += f"{' and ' if cost else ''}{unknown} runs of a kind that was never run here"
    lines.append(
        f"{len(every)} runs in all, {len(todo)} to run{f': {cost}' if todo else ''}; "
        f"{reported} cell{' is' if reported == 1 else 's are'} only reported"
    )
    return lines
