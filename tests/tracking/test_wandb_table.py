"""A paper's table at W&B: a run of its own in the group of its cells, read from the file that W&B wrote offline."""

import json
from pathlib import Path

import pytest
import wandb_file
import yaml
from commands import runner
from test_wandb import pieces
from user_methods import write_config

from runner.commands.sync import main as sync

TABLE = {
    "title": "Two arms",
    "source": "Author 2020, table 1",
    "overrides": ["method=arm", "model=resnet20", "hardware=cpu", "tracking=offline"],
    "seeds": [0, 1],
    "rows": {"low": ["method.level=0.4"], "high": ["method.level=0.6"]},
    "columns": {"digits": []},
    "reported": {"high": {"digits": [61.0, 0.5]}},
    "claims": [{"text": "high beats low", "left": "high", "right": "low"}],
}
PLACE = Path("work/runs/tables/toy/two-smoke")


def stored(folder: Path, name: str, row: dict) -> dict:
    (piece,) = pieces(folder)
    return json.loads((piece.parent / "files" / row[f"tables/{name}"]["path"]).read_text())


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_config(tmp_path / "configs", "arm", "user_methods:Arm", {"level": 0.5, "fails_at": []})
    file = tmp_path / "configs/table/toy/two.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump(TABLE, sort_keys=False))
    command = ("table", "toy/two", "scale=smoke", "--config-dir", tmp_path / "configs")
    return lambda *words: runner(*command, *words, place=tmp_path)


@pytest.mark.slow
def test_the_table_is_there_once_in_the_group_of_its_cells(table, tmp_path, capsys):
    answer = table()
    assert answer.code == 0, answer.err
    folder = tmp_path / PLACE
    found = wandb_file.read(pieces(folder)[0])
    assert (found.run.run_group, found.run.display_name) == ("table toy/two smoke",) * 2
    cells = [wandb_file.read(piece) for piece in (tmp_path / "work/runs").glob("arm-*/*/wandb/*/*.wandb")]
    assert {cell.run.run_group for cell in cells} == {"table toy/two smoke"}
    assert len({cell.run.run_id for cell in [*cells, found]}) == 5
    rows = [row for row in found.history if any(name.startswith("tables/") for name in row)]
    assert len(rows) == 2  # cells and claims
    merged = {name: value for row in rows for name, value in row.items()}
    table_of_cells = stored(folder, "cells", merged)
    assert table_of_cells["columns"][:3] == ["row", "column", "metric"]
    high = dict(zip(table_of_cells["columns"], table_of_cells["data"][1], strict=True))
    assert (high["row"], high["n"], high["mean"], high["reported"]) == ("high", 2, pytest.approx(60.5), 61.0)
    assert stored(folder, "claims", merged)["data"][0][0] == "high beats low (digits)"
    assert found.summary["cells_measured"] == 2

    before = pieces(folder)[0].stat().st_mtime_ns
    assert table().code == 0
    assert pieces(folder)[0].stat().st_mtime_ns == before, "nothing new, and written again"
    (tmp_path / "work/runs" / json.loads(Path(f"{folder}.json").read_text())["cells"][0]["runs"][0]).joinpath(
        "result.json"
    ).unlink()
    assert table("method.fails_at=[0]").code == 1  # another state of the table
    again = wandb_file.read(pieces(folder)[0])
    assert again.run.run_id == found.run.run_id

    assert sync(["--dry", f"paths.runs={tmp_path / 'work/runs'}"], []) == 0
    assert "table toy/two smoke" in capsys.readouterr().out
