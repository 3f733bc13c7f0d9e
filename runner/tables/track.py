"""A finished table at Weights & Biases: one run of its own, in the group of its cells. Light: no wandb, no torch."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from runner.schema import Tracking
from runner.settings import build_section
from runner.storage import read_json, write_json
from runner.tables.grid import Grid
from runner.tracking import Tracker

CELL = ("row", "column", "metric", "unit", "n", "mean", "sd", "interval", "reported", "difference", "verdict")
CLAIM = ("text", "left", "right", "verdict", "n", "difference", "interval", "p", "unit", "test", "level")


def group_name(name: str, scale: str) -> str:
    """The W&B group of a table and of its cells."""
    return f"table {name} {scale}"


def track(document: dict[str, Any], grid: Grid, runs_folder: Path) -> None:
    """Sends the cells and the claims of a table, once for each state that it had, as ``tracking`` says.

    Everything lies in <runs_folder>/tables/<paper>/<name>-<scale>/, and W&B's id stays while that folder does. A
    failure is one line on the screen.
    """
    config = next((run.plan.config for run in grid.runs() if run.plan), None)
    if config is None:
        return
    settings: Tracking = build_section("tracking", config["tracking"])
    folder = runs_folder / "tables" / f"{document['name']}-{document['scale']}"
    tables = {"cells": _rows(document["cells"], CELL), "claims": _rows(document["claims"], CLAIM)}
    tables = {name: table for name, table in tables.items() if table["rows"]}
    known = (folder / "wandb" / "run.json").exists()
    name = group_name(document["name"], document["scale"])
    tracker = Tracker(
        folder,
        settings,
        key=hashlib.sha256(name.encode()).hexdigest()[:12],
        config={key: document[key] for key in ("name", "title", "source", "scale", "commit", "machine", "command")},
        name=name,
        group=name,
        attempt=2 if known else 1,
        offline=config["offline"],
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if tracker.mode == "none" or (
        known and all(_stored(folder, each) == tables.get(each) for each in ("cells", "claims"))
    ):
        return
    try:
        (folder / "tables").mkdir(parents=True, exist_ok=True)
        for each in ("cells", "claims"):
            (folder / "tables" / f"{each}.json").unlink(missing_ok=True)
        for each, table in tables.items():
            write_json(folder / "tables" / f"{each}.json", table)
        (folder / "metrics.jsonl").touch()
    except OSError as error:
        print(f"W&B: the table was not sent ({error})", file=sys.stderr)
        return
    tracker.start()
    tracker.finish(_summary(document), "done")


def _stored(folder: Path, name: str) -> dict[str, Any] | None:
    return read_json(folder / "tables" / f"{name}.json")


def _rows(entries: list[dict[str, Any]], keys: tuple[str, ...]) -> dict[str, Any]:
    """Numbers, texts and null; an interval and a reported value take two columns each."""
    columns = [
        name
        for key in keys
        for name in {"interval": ["low", "high"], "reported": ["reported", "reported_spread"]}.get(key, [key])
    ]
    rows = []
    for entry in entries:
        row: list[Any] = []
        for key in keys:
            value = entry.get(key)
            if key == "interval":
                row += value or [None, None]
            elif key == "reported":
                row += [value["value"], value["spread"]] if value else [None, None]
            else:
                row.append(value)
        rows.append(row)
    return {"columns": columns, "rows": rows}


def _summary(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"cells_measured": sum(cell["n"] > 0 for cell in document["cells"])}
    for kind in ("cells", "claims"):
        counts: dict[str, int] = {}
        for entry in document[kind]:
            counts[entry["verdict"]] = counts.get(entry["verdict"], 0) + 1
        found |= {f"{kind}: {verdict}": count for verdict, count in counts.items()}
    return found
