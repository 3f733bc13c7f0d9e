"""scripts/demo_session.sh: a session from training to tidying up, whose output the README shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from forked import repository

SHARED = Path(os.environ.get("RUNNER_SHARED", repository().parent / "shared")) / "data"


def session(place: Path, runner: str, *settings: str) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "RUNNER": runner,
        "RUNNER_DATA": str(SHARED),
        "DEMO_FOLDER": str(place),
        "PYTHONPATH": os.pathsep.join([str(repository()), os.environ.get("PYTHONPATH", "")]),
        "WANDB_MODE": "offline",
    }
    command = [str(repository() / "scripts" / "demo_session.sh"), *settings]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_failing_step_ends_it(tmp_path):
    done = session(tmp_path, "false")
    assert done.returncode == 1
    assert done.stdout.count("\n$ runner ") == 1
    assert done.stdout.endswith("exit code 1, expected 0\n")


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "FashionMNIST").exists(), reason="needs Fashion-MNIST")
def test_the_session_runs_to_its_end(tmp_path):
    done = session(tmp_path, f"{sys.executable} -m runner", "hardware.threads=1")
    assert done.returncode == 0, done.stdout
    parts = done.stdout.split("\n$ runner ")[1:]
    words = [part.split()[0] for part in parts]
    assert words == [
        "method=supervised", "method=ekg", "evaluate", "profile", "compare", "method=supervised", "runs", "clean",
        "clean",
    ]  # fmt: skip
    trained, pruned, evaluated, profiled, compared, failed, listed, dry, deleted = parts

    def value(part: str, name: str) -> str:
        return re.search(rf"^\s*{name} +(\S+)", part, re.MULTILINE)[1]

    assert float(value(trained, "accuracy")) > 0.4  # ten classes: it has learnt
    assert value(pruned, "accuracy_baseline") == value(trained, "accuracy")
    assert 0.4 < float(value(pruned, "flops_rate")) <= 0.45
    assert value(evaluated, "accuracy") == value(pruned, "accuracy")
    assert value(profiled, "parameters") == re.search(r"parameters +274,042 +(\S+)", pruned)[1]
    assert f"{float(value(compared, 'accuracy')):.3f}" == f"{float(value(trained, 'accuracy')):.3f}"
    assert "nan" in failed
    assert listed.count("done") >= 4 and listed.count("failed") == 1
    assert "--yes" in dry and "deleted" in deleted
    states = [path.parent for path in tmp_path.glob("runs/*/*/status.json")]
    assert len(states) == 4 and all((folder / "result.json").exists() for folder in states)
