"""What a report shows, as plain values for JSON: runs, their curves and settings, and the stored tables."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from runner.commands.runs import head, lookup, shown
from runner.key import LEFT_OUT
from runner.records import Defaults, Record
from runner.registry import flatten
from runner.report.curves import Curve, fit_budget, read_curves
from runner.report.figures import LOWER_IS_BETTER
from runner.storage import read_json

CURVE_POINTS = 500  # of one curve at most
PAGE_POINTS = 400_000  # of all curves together: about 5 MB
READING_POINTS = 4_000_000  # held in memory while reading, about
UNREADABLE = "unreadable"
ERROR_CHARACTERS = 300


def collect(
    records: Sequence[Record],
    folder: Path,
    tables: Sequence[dict[str, Any]],
    output: Path,
    config_dirs: Sequence[Path] = (),
) -> dict[str, Any]:
    """All values of a page of the runs below ``folder`` that will stand at ``output``.

    ``pool`` holds every distinct [group, name, value] of the runs' configs and code; a run names its own by number.
    """
    names = {record.name for record in records}
    limit = max(100, min(CURVE_POINTS, READING_POINTS // (8 * max(1, len(records)))))
    defaults, pool = Defaults(config_dirs), Pool()
    runs, curves = [], []
    for record in records:
        run = read_run(record, defaults, pool, names)
        run |= {"link": link(record.path, output), "place": record.path.relative_to(folder).as_posix()}
        found = _curves(record, run, limit)
        curves += found
        runs.append(run | {"curves": found})
    _name_machines(runs)
    fit_budget(curves, PAGE_POINTS)
    for run in runs:
        run["curves"] = [_plain(curve) for curve in run["curves"]]
    shared = {"created": time.time(), "lower_is_better": LOWER_IS_BETTER}
    return {**shared, "runs": runs, "pool": pool.entries, "tables": list(tables)}


def is_readable(record: Record) -> bool:
    """Whether filters can look at the run: they need its state and settings."""
    try:
        lookup(record)
    except Exception:  # as in ``read_run``
        return False
    return True


class Pool:
    """Distinct values, told by number: a thousand configs differ in few of their lines."""

    def __init__(self) -> None:
        self.entries: list[list[str]] = []
        self._numbers: dict[tuple[str, str, str], int] = {}

    def number(self, group: str, name: str, value: Any) -> int:
        entry = (group, name, _exact(value))
        if entry not in self._numbers:
            self._numbers[entry] = len(self.entries)
            self.entries.append(list(entry))
        return self._numbers[entry]


def _exact(value: Any) -> str:
    """Equal texts for equal values only; 1 and 1.0 are equal, as in a run's key."""
    if isinstance(value, str):
        return value
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value, default=str)


def read_run(record: Record, defaults: Defaults, pool: Pool, names: set[str]) -> dict[str, Any]:
    """One run's row; whatever its folder holds, there is a row. Times in seconds, latency in ms, FLOPs as stored.

    ``problems`` says what could not be read; ``seconds_own`` leaves out the shared cells that stand in rows of their
    own (``names``).
    """
    run: dict[str, Any] = {"name": record.name, "key": record.key, "state": UNREADABLE, "problems": []}
    for part in (_state, _head, _result, _config):
        try:
            part(record, run, defaults, pool, names)
        except Exception as error:  # a foreign or torn file can hold anything; the report still has to be written
            run["problems"].append(f"{part.__name__.strip('_')}: {type(error).__name__}: {error}"[:ERROR_CHARACTERS])
    return run


def _state(record: Record, run: dict[str, Any], *_: Any) -> None:
    unread = []
    for name, found in (("result.json", record.result), ("status.json", record.status), ("config.yaml", record.config)):
        if (record.path / name).exists() and not (isinstance(found, dict) and found):
            unread.append(name)
    run["problems"] += [f"{name} is torn or foreign" for name in unread]
    run["changed"] = record.path.stat().st_mtime
    run["changed"] = record.changed
    if record.result or not {"result.json", "status.json"} & set(unread):
        run["state"] = str(record.state)
    if run["state"] == "failed":
        run["error"] = _last_line(record.path / "error.txt")


def _head(record: Record, run: dict[str, Any], *_: Any) -> None:
    run |= {name: value for name, value in head(record).items() if name not in ("key", "state")}


def _result(record: Record, run: dict[str, Any], defaults: Defaults, pool: Pool, names: set[str]) -> None:
    result, status = record.result, record.status
    seconds = result.get("seconds", status.get("seconds"))
    run["seconds"] = seconds
    hardware = result.get("hardware") or {}
    host = str(hardware.get("host", status.get("host", "")))
    if host:
        chip = ", ".join(hardware.get("gpus") or []) if hardware.get("device") == "cuda" else hardware.get("processor")
        run |= {"host": host, "machine": " · ".join(filter(None, (host, chip)))}
    if host and hardware:
        threads = f", threads: {hardware.get('threads')}" if hardware.get("device") == "cpu" else ""
        run["latency_machine"] = f"{run['machine']} · {hardware.get('device')}{threads}"
    if not result:
        return
    run["metrics"] = {name: value for name, value in result["metrics"].items() if _is_number(value)}
    run["seconds_own"] = seconds - _seconds_of_cells(result.get("phases") or {}, names)
    run["fidelity"] = result.get("fidelity")
    profile = result.get("profile") or {}
    for name, values in profile.items():
        flat = {key: value for key, value in flatten(values) if _is_number(value)}
        run.setdefault("profile", {})[name] = flat
    code = {name: result.get(name) for name in ("code", "commit", "uncommitted_changes", "versions", "hardware")}
    run["config"] = [pool.number("code", name, value) for name, value in flatten(code) if value is not None]


def _config(record: Record, run: dict[str, Any], defaults: Defaults, pool: Pool, names: set[str]) -> None:
    numbers = []
    for name, value in flatten(record.config):
        group = "other" if name.partition(".")[0] in LEFT_OUT else "settings"
        numbers.append(pool.number(group, name, value))
    run["config"] = numbers + run.get("config", [])
    run["settings"] = [f"{name}={shown(value)}" for name, value in defaults.differences(record.config).items()]


def _seconds_of_cells(phases: dict[str, Any], names: set[str]) -> float:
    """Of the cells that this run computed itself, the outermost ones."""
    cells = {name: one for name, one in phases.items() if "run" in one and not one.get("reused")}
    return sum(
        one["seconds"]
        for name, one in cells.items()
        if one["run"] in names and not any(name.startswith(f"{outer}/") for outer in cells)
    )


def _name_machines(runs: list[dict[str, Any]]) -> None:
    """An unfinished run knows its host alone: its processor is that of the finished runs there, if they agree."""
    known: dict[str, set[str]] = {}
    for run in runs:
        if "latency_machine" in run:
            known.setdefault(run["host"], set()).add(run["machine"])
    for run in runs:
        host = run.pop("host", None)
        if len(known.get(host, ())) == 1:
            run["machine"] = next(iter(known[host]))


def _curves(record: Record, run: dict[str, Any], limit: int) -> list[Curve]:
    try:
        found, bad = read_curves(record.path / "metrics.jsonl", limit)
    except OSError as error:
        run["problems"].append(f"metrics.jsonl: {error.strerror}")
        return []
    if bad:
        run["problems"].append(f"metrics.jsonl: {bad} {'line is' if bad == 1 else 'lines are'} no record")
    return found


def _plain(curve: Curve) -> dict[str, Any]:
    values = [None if value != value else float(f"{value:.5g}") for value in curve.values]
    steps = [int(step) if step.is_integer() else step for step in curve.steps]
    return {
        "phase": curve.phase,
        "metric": curve.metric,
        "total": curve.total,
        "not_finite": curve.not_finite,
        "steps": steps,
        "values": values,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _last_line(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return None
    return next((line.strip()[:ERROR_CHARACTERS] for line in reversed(lines) if line.strip()), None)


def link(path: Path, output: Path) -> str:
    """A relative address of ``path`` on a page at ``output``; a name never becomes a scheme or markup."""
    return "./" + quote(os.fsencode(os.path.relpath(path, output.parent)))


# ---- tables --------------------------------------------------------------------------------------------------------


def find_tables(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Every stored table below ``folder``/tables, by name, each with its file as ``file``; and those not readable."""
    found, unreadable = [], []
    for file in sorted([*(folder / "tables").glob("*.json"), *(folder / "tables").glob("*/*.json")]):
        table = read_json(file)
        place = file.relative_to(folder).as_posix()
        if _is_table(table):
            found.append(table | {"file": place})
        else:
            unreadable.append(place)
    return found, unreadable


def _is_table(table: Any) -> bool:
    if not isinstance(table, dict):
        return False
    lists = all(isinstance(table.get(name), list) for name in ("rows", "columns", "cells"))
    return lists and all(isinstance(cell, dict) and "row" in cell and "column" in cell for cell in table["cells"])


def table_names(table: dict[str, Any]) -> list[str]:
    """The names that mean this table, the full one first: PAPER/NAME and NAME."""
    paper, name = Path(table["file"]).parent.name, str(table.get("name", ""))
    full = name if "/" in name or paper == "tables" else f"{paper}/{name}"
    return [full, full.rpartition("/")[2]]


def table_runs(tables: Iterable[dict[str, Any]]) -> set[str]:
    """The folders of the runs in the tables' cells, relative to the folder of all runs."""
    cells = (cell for table in tables for cell in table["cells"])
    return {run for cell in cells for run in cell.get("runs") or [] if isinstance(run, str)}
