"""metrics.jsonl: a resumed run's file equals an undisturbed one's but for the times."""

import json
import math
from pathlib import Path

import pytest

from runner.metrics import MetricsFile, read_metrics


def without_times(path: Path) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "time"} for row in read_metrics(path)]


def write_steps(file: MetricsFile, phase: str, steps: range) -> None:
    for step in steps:
        file.write(phase, step, {"loss": 1 / (step + 3)})


@pytest.fixture
def undisturbed(tmp_path):
    path = tmp_path / "undisturbed.jsonl"
    file = MetricsFile(path)
    write_steps(file, "train", range(1, 6))
    write_steps(file, "tune", range(1, 4))
    file.close()
    return without_times(path)


def test_a_resume_drops_what_came_after_the_checkpoint(tmp_path, undisturbed):
    path = tmp_path / "metrics.jsonl"
    killed = MetricsFile(path)
    write_steps(killed, "train", range(1, 4))
    stored = killed.position()
    write_steps(killed, "train", range(4, 6))
    write_steps(killed, "tune", range(1, 2))
    killed.flush()
    with path.open("a") as file:
        file.write('{"phase": "tune", "step": 2, "lo')  # killed while it wrote

    resumed = MetricsFile(path)
    resumed.rewind(stored)
    write_steps(resumed, "train", range(4, 6))
    write_steps(resumed, "tune", range(1, 4))
    resumed.close()
    assert without_times(path) == undisturbed


def test_only_the_last_of_many_rewinds_counts(tmp_path, undisturbed):
    path = tmp_path / "metrics.jsonl"
    killed = MetricsFile(path)
    start = killed.position()
    write_steps(killed, "train", range(1, 6))
    after_train = killed.position()
    write_steps(killed, "tune", range(1, 3))
    killed.close()

    resumed = MetricsFile(path)
    for position in (start, after_train):  # finished phases are passed over one by one
        resumed.rewind(position)
    write_steps(resumed, "tune", range(1, 4))
    resumed.close()
    assert without_times(path) == undisturbed


def test_without_a_stored_position_the_file_is_written_anew(tmp_path, undisturbed):
    path = tmp_path / "metrics.jsonl"
    killed = MetricsFile(path)
    write_steps(killed, "train", range(1, 3))
    killed.close()

    again = MetricsFile(path)
    assert again.position() == 0
    write_steps(again, "train", range(1, 6))
    write_steps(again, "tune", range(1, 4))
    again.close()
    assert without_times(path) == undisturbed


def test_opening_and_closing_loses_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    write_steps(file, "train", range(1, 4))
    file.close()
    before = path.read_bytes()
    MetricsFile(path).close()
    assert path.read_bytes() == before


def test_a_torn_line_at_the_stored_position_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"phase": "a", "step": 1, "time": 1.0, "loss": 0.5}\n{"phase": "a", "st')
    file = MetricsFile(path)
    file.rewind(10_000)  # the disk kept less than was written
    file.write("a", 2, {"loss": 0.25})
    file.close()
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_values_survive_to_the_bit_and_lines_are_valid_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    values = {"tenth": 0.1, "third": 1 / 3, "tiny": 5e-324, "count": 3, "inf": math.inf, "minus": -math.inf}
    file.write("a", 1, {**values, "nan": math.nan})
    file.close()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    line = json.loads(path.read_text(), parse_constant=refuse)
    assert (line["nan"], line["inf"], line["minus"]) == ("nan", "inf", "-inf")
    (row,) = read_metrics(path)
    assert math.isnan(row.pop("nan"))
    assert {name: row[name] for name in values} == values


def test_lines_reach_the_file_at_a_flush(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    write_steps(file, "train", range(1, 100))
    file.flush()
    assert len(path.read_text().splitlines()) == 99
