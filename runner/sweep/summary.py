"""What a sweep leaves behind: summary.json, and the list of failures on the screen."""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.storage import write_json
from runner.sweep import Job
from runner.sweep.planning import Cell

if TYPE_CHECKING:
    from runner.sweep.engine import Sweep


def sweep_folder(cells: Sequence[Cell], name: str) -> Path:
    """<paths.runs>/sweeps/<name>-<digest of the keys>: the same command has the same folder, and so have its copies."""
    runs = cells[0].folder.path.parent.parent
    keys = sorted(str(cell.folder.path.relative_to(runs)) for cell in cells if cell.folder.path.is_relative_to(runs))
    return runs / "sweeps" / f"{name}-{hashlib.sha256(chr(10).join(keys).encode()).hexdigest()[:8]}"


def write_summary(folder: Path, jobs: Sequence[tuple[Job, Cell]], begun: float, launcher: str) -> Path:
    """One entry a job, in the order of the jobs; returns the path."""
    entries = [_entry(job, cell) for job, cell in jobs]
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry["state"]] = counts.get(entry["state"], 0) + 1
    path = folder / "summary.json"
    content = {
        "sweep": folder.name,
        "launcher": launcher,
        "begun": _time(begun),
        "ended": _time(time.time()),
        "seconds": round(time.time() - begun, 1),
        "counts": counts,
        "cells": entries,
    }
    write_json(path, content)
    return path


def closing_lines(sweep: Sweep) -> list[str]:
    """The counts, and three lines a failed cell: its overrides, the error, where the traceback stands."""
    lines = []
    for cell in sweep.of("failed"):
        error = cell.folder.path / "error.txt"
        lines.append(f"failed: runner {' '.join(map(shlex.quote, cell.job.overrides))}")
        lines.append(f"  {cell.error}")
        if error.exists() and str(error) not in (cell.error or ""):
            lines.append(f"  {error}")
    states = ("done", "cached", "failed", "stopped", "waiting", "queued")
    counts = ", ".join(f"{count} {state}" for state in states if (count := len(sweep.of(state))))
    rest = "; the same command runs what is missing" if sweep.exit_code else ""
    lines.append(f"sweep {sweep.folder.name}: {counts}{rest}")
    scales = {cell.composed.config["scale"]["name"] for cell in sweep.cells} - {"paper"}
    if scales:
        lines.append(f"scale={','.join(sorted(scales))}: a demonstration, not the paper's protocol (scale=paper)")
    return lines


def _entry(job: Job, cell: Cell) -> dict[str, Any]:
    error_file = cell.folder.path / "error.txt"
    return {
        "name": job.name,
        "overrides": job.overrides,
        "state": cell.state,
        "key": cell.key,
        "folder": str(cell.folder.path),
        "metrics": (cell.result or {}).get("metrics"),
        "attempts": cell.attempts,
        "seconds": round(cell.seconds, 3),
        "error": cell.error,
        "error_file": str(error_file) if cell.state == "failed" and error_file.exists() else None,
    }


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
