"""A user's table of a toy method (user_methods.Arm), and its results without running anything."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from runner.tables.document import document
from runner.tables.grid import Grid, make_grid
from runner.tables.schema import read_table

TABLE = {
    "title": "Arms & levels, 100% toy",
    "source": "Author 2020, table 1",
    "overrides": ["method=arm", "model=resnet20", "hardware=cpu"],
    "seeds": [0, 1, 2, 3, 4],
    "metrics": {
        "accuracy": {"unit": "%", "factor": 100, "tolerance": 0.5},
        "accuracy_best_validation": {"unit": "%", "factor": 100},
        "search": {"name": "seconds_of_search", "unit": "s", "higher_is_better": False, "judged": False},
    },
    "rows": {
        "low, plain": ["method.level=0.4"],
        "high": ["method.level=0.6"],
        "longer": ["method.level=0.5"],
        "theirs": "reported",
    },
    "columns": {
        "digits": {"metric": ["accuracy", "accuracy_best_validation"]},
        "search": {"metric": "search"},
    },
    "reported": {
        "low, plain": {"digits": [41, 1.5], "search": 9.0},
        "high": {"digits": 75.0, "search": "not found"},
        "longer": {"digits": {"value": 51.0, "note": "read off a plot"}},
        "theirs": {"digits": 70.5},
    },
    "claims": [
        {"text": "high beats low", "left": "high", "right": "low, plain"},
        {"text": "low is quicker", "left": ["low, plain", "search"], "right": ["high", "search"]},
        {"text": "low beats high", "left": "low, plain", "right": "high"},
    ],
    "desk": {"seeds": [0, 1]},
    "smoke": {"seeds": [0, 1, 2]},
}


def write_table(folder: Path, content: dict, name: str = "toy/arms") -> None:
    """Adds a table to a --config-dir."""
    file = folder / "table" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content, sort_keys=False))


def grid_of(configs: Path, scale: str = "paper", *changes: str, name: str = "toy/arms", **options) -> Grid:
    return make_grid(name, read_table(name, [configs]), scale, changes, config_dirs=[configs], **options)


def pretend(grid: Grid, value=None, rows: tuple[str, ...] = ()) -> None:
    """Stores a result for every run of the grid, or of some rows: what the toy method would return, or ``value``."""
    for cell in grid.cells:
        for run in cell.runs if not rows or cell.row in rows else []:
            level = (
                run.plan.config["method"]["level"] + 0.01 * (run.seed % 3) if value is None else value(cell, run.seed)
            )
            metrics = {"accuracy": level, "accuracy_best_validation": level + 0.02, "seconds_of_search": 10 * level}
            result = {
                "metrics": metrics,
                "code": run.plan.code(),
                "commit": "0123456789abcdef",
                "seconds": 3.0,
                "hardware": {"processor": "a processor", "threads": 1, "device": "cpu"},
                "versions": {"torch": "2.0"},
            }
            run.plan.folder.path.mkdir(parents=True, exist_ok=True)
            run.plan.folder.result_path.write_text(json.dumps(result))
            config = yaml.safe_dump(run.plan.config)
            (run.plan.folder.path / "config.yaml").write_text(config)
    grid.forget()


def made(grid: Grid) -> dict:
    return document(grid, Path("runs").absolute())


def cell_of(found: dict, row: str, column: str) -> dict:
    return next(cell for cell in found["cells"] if (cell["row"], cell["column"]) == (row, column))
