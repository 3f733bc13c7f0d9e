"""debug=true and profile=true through the command line."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from commands import SMOKE, listing, outcome, runner, smoke
from user_methods import write_config


@pytest.fixture
def debug():
    """A command with debug=true; its folder goes after the test."""
    folders = []

    def command(*arguments, place):
        answer = runner(*arguments, "debug=true", place=place)
        folders.append(re.search(r"anew in (\S+),", answer.err)[1])
        return answer

    yield command
    for folder in folders:
        shutil.rmtree(folder)


def test_debug_reads_and_stores_nothing_in_the_usual_place(debug, tmp_path):
    stored = smoke(place=tmp_path)
    before = listing(tmp_path / "work")
    answer = debug(*SMOKE, "hardware.processes=2", place=tmp_path)
    assert answer.code == 0, answer.err
    assert "already done" not in answer.err and "train: finished" in answer.err
    assert listing(tmp_path / "work") == before
    assert answer.folder.name == stored.folder.name
    assert answer.folder.parents[1].name.startswith("runner-debug-") and str(answer.folder.parents[1]) in answer.err
    assert answer.folder.parents[1] != debug(*SMOKE, place=tmp_path).folder.parents[1]
    assert outcome(answer) == outcome(stored)
    assert answer.result["hardware"]["processes"] == 1


def test_debug_names_the_operation_of_a_gradient_that_is_nan(debug, tmp_path):
    folder = write_config(tmp_path / "conf", "not_a_number", "user_methods:NotANumber")
    command = ("method=not_a_number", *SMOKE[1:], "--config-dir", folder)
    assert runner(*command, place=tmp_path).code == 0
    answer = debug(*command, place=tmp_path)
    assert answer.code == 1
    assert "SqrtBackward0" in answer.message and "Traceback" in answer.err


@pytest.mark.slow
def test_a_breakpoint_in_a_method_is_met(tmp_path):
    folder = write_config(tmp_path / "conf", "stops", "user_methods:Stops")
    done = subprocess.run(
        [sys.executable, "-B", "-m", "runner", "method=stops", *SMOKE[1:], "debug=true", "--config-dir", str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(forked.repository()), str(Path(__file__).parent)])},
        input="p found + 2\nfound = 7.0\nc\np found\nc\n",
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "42.0" in done.stdout and "7.0" in done.stdout
    result = Path(done.stdout.rpartition("(Pdb) ")[2].strip())
    assert json.loads(result.read_text())["metrics"] == {"found": 7.0}
    shutil.rmtree(result.parents[2])


@pytest.mark.slow
def test_a_trace_changes_nothing_else(tmp_path):
    plain = smoke("scale.max_steps=null", "recipe.batch_size=4", place=tmp_path / "plain")
    traced = smoke("scale.max_steps=null", "recipe.batch_size=4", "profile=true", place=tmp_path / "traced")
    assert traced.code == 0, traced.err
    assert outcome(traced) == outcome(plain) and traced.folder.name == plain.folder.name
    folder = traced.folder / "artifacts" / "trace"
    assert {path.name for path in folder.iterdir()} == {"train.json.gz", "train.txt"}
    events = json.loads(gzip.decompress((folder / "train.json.gz").read_bytes()))["traceEvents"]
    steps = sum(event.get("name") == "aten::cross_entropy_loss" for event in events)
    assert steps == 5
    table = (folder / "train.txt").read_text()
    assert table.startswith("train: 5 steps from step 3 on\noperator")
    assert "convolution" in table and table in traced.err + "\n"
    assert 1 < len(table.splitlines()) <= 12
    again = smoke("scale.max_steps=null", "recipe.batch_size=4", "profile=true", place=tmp_path / "traced")
    assert "profile=true: there is no step to trace" in again.err


def test_a_short_loop_is_traced_to_its_end(tmp_path):
    answer = smoke("profile=true", place=tmp_path)
    assert (answer.folder / "artifacts" / "trace" / "train.txt").read_text().startswith("train: 1 step from step 2 on")
