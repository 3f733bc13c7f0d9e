"""Weights & Biases, really run offline: it gets the record, and nothing it does reaches the run."""

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from runner.metrics import MetricsFile
from runner.schema import Tracking
from runner.tracking import DEFAULTS, Tracker, replay, resolve
from runner.wandb_forward import Translator, rows

ROOT = Path(__file__).parents[2]


def settings(**changes) -> Tracking:
    fields = {"mode": "offline", "project": "paper-runner", "entity": None, "group": None, "name": None}
    return Tracking(**{**fields, "tags": [], "notes": None, "every_steps": 10, **changes})


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path_factory):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


def record(folder: Path, steps: int = 30) -> None:
    file = MetricsFile(folder / "metrics.jsonl")
    for step in range(1, steps + 1):
        file.write("train", step, {"loss": 1 / step})
    file.write("search[0]/tune", 5, {"distance": float("inf")})
    file.close()


def tracker(folder: Path, lines: list[str], **changes) -> Tracker:
    arguments = {"key": "0123abcd", "config": {"seed": 0}, "name": "ekg smoke", "say": lines.append}
    return Tracker(folder, changes.pop("settings", settings()), **{**arguments, **changes})


def pieces(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))


def finish_killing_wandb(run: Tracker, wanted) -> None:
    """Finishes while another thread kills each process below this one that ``wanted`` names."""
    done = threading.Event()

    def hunt() -> None:
        while not done.is_set():
            for child in psutil.Process().children(recursive=True):
                try:
                    if wanted(child.cmdline()):
                        child.kill()
                except psutil.Error:
                    continue
            time.sleep(0.02)

    thread = threading.Thread(target=hunt)
    thread.start()
    run.finish({"accuracy": 0.5}, "done")
    done.set()
    thread.join()


def test_an_offline_run_holds_the_record_of_all_attempts(tmp_path):
    lines: list[str] = []
    outside = set(Path(os.environ["HOME"]).rglob("*"))
    random.seed(0)
    before = random.getstate()
    first = tracker(tmp_path, lines)
    first.start()
    record(tmp_path, steps=10)
    first.finish({}, "failed")
    about = json.loads((tmp_path / "wandb" / "run.json").read_text())

    second = tracker(tmp_path, lines, attempt=2)
    second.start()
    record(tmp_path)
    second.finish({"accuracy": 0.75}, "done")
    (piece,) = pieces(tmp_path)  # the failed attempt's is replaced: two of one id would overwrite each other
    content = piece.read_bytes()
    for expected in (b"train/loss", b"train/step", b"search.tune/distance", b"accuracy", b"paper-runner", b"ekg smoke"):
        assert expected in content
    assert about["id"].startswith("0123abcd-")
    assert about["id"] in piece.name
    assert lines[-1] == f"W&B: recorded offline; to upload: wandb sync {piece.parent}"
    assert random.getstate() == before
    assert set(Path(os.environ["HOME"]).rglob("*")) == outside  # nothing is written outside the run folder


def test_a_new_start_gets_a_new_id_and_a_resume_keeps_it(tmp_path):
    ids = []
    for attempt in (1, 2, 1):
        tracker(tmp_path, [], attempt=attempt).start()
        ids.append(json.loads((tmp_path / "wandb" / "run.json").read_text())["id"])
    assert ids[0] == ids[1] != ids[2]


def test_a_stopped_run_leaves_the_offline_run_to_its_resume(tmp_path):
    lines: list[str] = []
    run = tracker(tmp_path, lines)
    run.start()
    record(tmp_path)
    run.finish({}, "stopped")
    assert lines == []
    assert pieces(tmp_path) == []


def test_two_runs_in_one_process_never_mix(tmp_path):
    """Cells of one sweep that overlap: one group, an id, a name and a record each."""
    runs = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        run = tracker(folder, [], key=f"key{name}", name=f"run {name}", group="the sweep")
        run.start()
        runs.append((name, folder, run))
    for name, folder, _ in runs:
        file = MetricsFile(folder / "metrics.jsonl")
        file.write("train", 1, {f"loss_{name}": 0.5})
        file.close()
    for _, _, run in runs:
        run.finish({"accuracy": 0.5}, "done")
    for (name, folder, _), (other, _, _) in zip(runs, reversed(runs), strict=True):
        content = pieces(folder)[0].read_bytes()
        assert all(text.encode() in content for text in (f"loss_{name}", f"run {name}", f"key{name}-", "the sweep"))
        assert other.encode() not in content


def test_mode_none_writes_nothing(tmp_path):
    run = tracker(tmp_path, [], settings=settings(mode="none"))
    run.start()
    run.finish({}, "done")
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_folder_costs_one_line(tmp_path):
    script = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_wandb
folder = Path({str(tmp_path)!r}) / "run"
folder.mkdir()
test_wandb.record(folder)
if os.geteuid() == 0:
    os.chmod({str(tmp_path)!r}, 0o755)
    os.setegid(65534); os.seteuid(65534)  # root may write anywhere
else:
    folder.chmod(0o500)
run = test_wandb.tracker(folder, lines := [])
run.start()
run.finish({{}}, "done")
print(len(lines), lines)
"""
    for parent in [tmp_path, *tmp_path.parents][:3]:
        parent.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert re.match(r"1 \[.W&B: not started \(\[Errno 13\]", done.stdout), done.stdout
    assert done.stderr == ""


def test_killing_the_service_of_wandb_costs_one_line(tmp_path):
    lines: list[str] = []
    run = tracker(tmp_path, lines)
    run.start()
    record(tmp_path, steps=20_000)
    finish_killing_wandb(run, lambda command: command and "wandb-core" in command[0])
    assert len(lines) == 1
    assert lines[0].startswith("W&B: no offline record, ")


def test_killing_the_forwarding_process_costs_one_line(tmp_path):
    lines: list[str] = []
    run = tracker(tmp_path, lines)
    run.start()
    record(tmp_path)
    finish_killing_wandb(run, lambda command: any("wandb_forward.py" in part for part in command))
    assert lines == ["W&B: no offline record, W&B's process ended with code -9; metrics.jsonl has all values"]


def test_a_wandb_that_cannot_be_imported_costs_one_line(tmp_path, monkeypatch):
    shadow = tmp_path / "shadow" / "wandb"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("raise ImportError('broken on purpose')")
    monkeypatch.setenv("PYTHONPATH", str(shadow.parent))
    lines: list[str] = []
    run = tracker(tmp_path, lines)
    run.start()
    record(tmp_path)
    run.finish({}, "done")
    assert lines == ["W&B: no offline record, broken on purpose; metrics.jsonl has all values"]


def test_a_wandb_that_hangs_is_left_after_the_limit(tmp_path, monkeypatch):
    shadow = tmp_path / "shadow" / "wandb"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(shadow.parent))
    lines: list[str] = []
    run = tracker(tmp_path, lines, settings=settings(mode="online"))
    run.start()
    record(tmp_path)
    started = time.monotonic()
    run.finish({}, "done", limit_seconds=0.5)
    assert time.monotonic() - started < 5
    assert [line.partition(",")[0] for line in lines] == ["W&B: no answer within 0 s", "W&B: no offline record"]


def test_what_follows_a_run_ends_with_it_even_when_the_run_is_killed(tmp_path):
    script = f"""
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
import test_wandb
from runner import tracking
folder = Path({str(tmp_path)!r})
file = test_wandb.MetricsFile(folder / "metrics.jsonl")
test_wandb.tracker(folder, []).start()
follower = tracking._start(folder, "offline", "follow")  # offline, since there is no server to follow to
file.write("train", 1, {{"loss": 1.0}})
file.flush()
print(follower.pid, flush=True)
follower.stdout = None
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -9
    pid = int(done.stdout.splitlines()[0])
    for _ in range(200):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the process that follows the run outlives it")
    (piece,) = pieces(tmp_path)
    assert b"train/loss" in piece.read_bytes()


def test_online_without_a_login_is_recorded_offline(tmp_path):
    lines: list[str] = []
    run = tracker(tmp_path, lines, settings=settings(mode="online"))
    run.start()
    record(tmp_path)
    run.finish({"accuracy": 0.75}, "done")
    assert len(lines) == 2
    assert lines[0].startswith("W&B: cannot go online (")
    assert lines[1].startswith("W&B: recorded offline")
    assert len(pieces(tmp_path)) == 1


def test_offline_true_forbids_online(tmp_path):
    lines: list[str] = []
    run = tracker(tmp_path, lines, settings=settings(mode="online"), offline=True)
    assert run.mode == "offline"
    assert len(lines) == 1


def test_replay_without_a_record_is_an_error_in_words(tmp_path):
    assert replay(tmp_path, "offline") == {"error": "the run was never tracked"}


def test_a_variable_wins_over_a_default_and_a_changed_setting_over_the_variable():
    variables = {"WANDB_PROJECT": "mine", "WANDB_TAGS": "a, b", "WANDB_RUN_GROUP": "g", "WANDB_MODE": "online"}
    chosen = resolve(settings(), variables)
    assert (chosen["project"], chosen["tags"], chosen["group"], chosen["mode"]) == ("mine", ["a", "b"], "g", "online")
    chosen = resolve(settings(project="given", tags=["c"], group="h", mode="none"), variables)
    assert (chosen["project"], chosen["tags"], chosen["group"], chosen["mode"]) == ("given", ["c"], "h", "none")
    assert resolve(settings(), {"WANDB_MODE": "disabled"})["mode"] == "none"
    assert resolve(settings(), {"WANDB_MODE": "dryrun"})["mode"] == "offline"


def test_the_defaults_are_those_of_the_config():
    yaml = pytest.importorskip("yaml")
    written = yaml.safe_load((ROOT / "conf" / "tracking" / "offline.yaml").read_text())
    written.pop("every_steps")
    assert {name: value for name, value in written.items() if value is not None} == DEFAULTS


def test_inner_loops_become_one_series_that_goes_on_counting():
    translate = Translator()
    steps = []
    for phase, step in [("search[0]/tune", 2), ("search[0]/tune", 4), ("search[1]/tune", 2), ("search[2]/tune", 4)]:
        series, values = translate({"phase": phase, "step": step, "time": 7.0, "loss": 0.5})
        assert series == "search.tune"
        assert values == {"_timestamp": 7.0, "search.tune/step": values["search.tune/step"], "search.tune/loss": 0.5}
        steps.append(values["search.tune/step"])
    assert steps == [2, 4, 6, 10]


def test_following_sees_each_row_once_when_a_resume_replaces_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    killed = MetricsFile(path)
    killed.write("train", 1, {})
    stored = killed.position()
    killed.write("train", 2, {})
    killed.write("train", 3, {})
    killed.close()
    ended = threading.Event()
    followed = rows(path, ended)
    assert [next(followed)["step"] for _ in range(3)] == [1, 2, 3]
    resumed = MetricsFile(path)
    resumed.rewind(stored)
    for step in (2, 3, 4):
        resumed.write("train", step, {})
    resumed.close()
    ended.set()
    assert [row["step"] for row in followed if row] == [4]
