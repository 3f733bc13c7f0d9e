"""runs, compare, clean: over run folders in every state, some of them really run."""

import csv
import json
import os
import re
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import yaml

from runner.cli import main
from runner.commands.runs import Filter, age, size
from runner.compose import compose
from runner.folder import process_start

DAY = 86400


@cache
def composed(*words: str) -> dict:
    return compose(words).config


def make_run(folder: Path, name: str, *words: str, state="done", metrics=None, days=0.0, **sections) -> Path:
    """A run folder as the runner leaves it, without the run; ``days`` ago."""
    path = folder / name
    path.mkdir(parents=True)
    config = composed("model=resnet20", "scale=smoke", *words) | sections
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    changed = time.time() - days * DAY
    (path / "status.json").write_text(json.dumps({"state": state, "updated": changed, "seconds": 2.5}))
    if state == "done":
        result = {"metrics": metrics or {}, "code": "c0de", "versions": {"torch": "2"}, "profile": {}}
        (path / "result.json").write_text(json.dumps(result))
    return path


def own_lock(path: Path, start: float | None = None) -> None:
    owner = {"pid": os.getpid(), "start": start or process_start(os.getpid()), "host": socket.gethostname()}
    (path / "lock.json").write_text(json.dumps(owner))


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """Six runs in five states."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUNNER_CONFIG_PATH", raising=False)
    folder = tmp_path / "runs"
    one, two = "supervised-resnet20-digits", "ekg-resnet20-digits"
    words = ("method=supervised", "recipe.epochs=7", "hardware=cpu", "checkpoint.every_seconds=3")
    make_run(folder, f"{one}/aaaa00000001", *words, metrics={"accuracy": 0.95, "loss": 0.2}, days=5)
    make_run(folder, f"{one}/aaaa00000002", "method=supervised", "seed=3", metrics={"accuracy": 0.5}, days=4)
    make_run(folder, f"{two}/bbbb00000001", "method=ekg", "recipe=standard", state="failed", days=40)
    make_run(folder, f"{two}/bbbb00000002", "method=ekg", "method.target_rate=0.6", state="running", days=3)
    make_run(folder, f"{two}/bbbb00000003", "method=ekg", state="stopped", days=50)
    own_lock(make_run(folder, f"{two}/bbbb00000004", "method=ekg", state="failed", days=60))
    return folder


def listed(capsys, *words: str) -> dict[str, dict]:
    assert main(["runs", "--format", "json", *words]) == 0
    return {row["key"]: row for row in json.loads(capsys.readouterr().out)}


def test_states_and_settings(runs, capsys):
    rows = listed(capsys)
    assert list(rows)[-1] == "bbbb00000002", "the latest must stand last"
    assert {key[-4:]: row["state"] for key, row in rows.items() if row["method"] == "ekg"} == {
        "0001": "failed",
        "0002": "interrupted",
        "0003": "stopped",
        "0004": "running",
    }
    assert rows["aaaa00000001"]["settings"] == {"recipe.epochs": 7}
    assert rows["aaaa00000002"]["settings"] == {} and rows["aaaa00000002"]["seed"] == 3
    assert rows["bbbb00000001"]["settings"] == {"recipe": "standard"}
    assert rows["bbbb00000002"]["settings"] == {"method.target_rate": 0.6}
    assert rows["aaaa00000001"]["metrics"] == {"accuracy": 0.95, "loss": 0.2}
    assert rows["aaaa00000001"]["age_seconds"] == pytest.approx(5 * DAY, abs=60)
    assert rows["aaaa00000001"]["disk_bytes"] == sum(
        path.stat().st_size for path in (runs / "supervised-resnet20-digits/aaaa00000001").iterdir()
    )


def test_a_result_wins_over_a_status_that_says_running(runs, capsys):
    (runs / "supervised-resnet20-digits/aaaa00000001/status.json").write_text('{"state": "running"}')
    assert listed(capsys)["aaaa00000001"]["state"] == "done"


@pytest.mark.parametrize(
    "name, text",
    [
        ("config.yaml", "model: resnet\nmethod: {depth: 3}\n"),
        ("status.json", "[1]"),
        ("result.json", '{"metrics": [1], "profile": 2}'),
    ],
)
def test_a_file_of_another_program_hides_no_other_run(name, text, runs, capsys):
    place = make_run(runs, "theirs/outputs", "method=supervised", state="failed")
    (place / name).write_text(text)
    assert main(["runs", f"paths.runs={runs}", "state=*"]) == 0
    assert {"outputs", "aaaa00000001"} <= {line.split()[0] for line in capsys.readouterr().out.splitlines()}


def test_a_method_that_is_not_here_tells_all_its_fields(runs, capsys):
    method = {"name": "absent", "target": "absent:Absent", "rate": 0.5}
    make_run(runs, "absent-resnet20-digits/cccc00000001", "method=supervised", method=method)
    assert listed(capsys, "method=absent")["cccc00000001"]["settings"] == {"method.rate": 0.5}


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["method=supervised"], {"aaaa00000001", "aaaa00000002"}),
        (["method=sup*", "accuracy>0.9"], {"aaaa00000001"}),
        (["accuracy>=0.5"], {"aaaa00000001", "aaaa00000002"}),
        (["metrics.accuracy<0.95"], {"aaaa00000002"}),
        (["state=failed"], {"bbbb00000001"}),
        (["state!=done", "age_days<10"], {"bbbb00000002"}),
        (["recipe.epochs=7"], {"aaaa00000001"}),
        (["recipe.epochs=7.0"], {"aaaa00000001"}),
        (["seed=3"], {"aaaa00000002"}),
        (["loss!=0.2", "state=done"], {"aaaa00000002"}),
        (["method=nix"], set()),
    ],
)
def test_filters(words, keys, runs, capsys):
    assert set(listed(capsys, *words)) == keys


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["acuracy>0.9"], ["no run has", "'acuracy'", "accuracy"]),
        (["accuracy>high"], ["compares numbers", "'high'"]),
        (["state=don"], ["no such state", "done"]),
        (["accuracy"], ["not a filter"]),
        (["--formt", "csv"], ["--formt", "--format"]),
        (["--format", "xml"], ["xml", "runner runs --help"]),
        (["paths.runs="], ["'paths.runs=' names no folder"]),
        (["paths.runs=nowhere"], ["no run folders", "nowhere", "paths.runs=DIR"]),
    ],
)
def test_wrong_requests(words, expected, runs, capsys):
    assert main(["runs", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    for fragment in expected:
        assert fragment in err


def test_text_is_never_cut_when_piped(runs, capsys):
    note = "long-" * 60 + "end"
    make_run(runs, "supervised-resnet20-digits/aaaa00000003", "method=supervised", f"dataset.path={note}")
    assert main(["--config-dir", str(runs), "runs", "method=supervised"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "key",
        "state",
        "method",
        "model",
        "dataset",
        "scale",
        "seed",
        "age",
        "disk",
        "settings",
        "metrics",
    ]
    assert len(lines) == 4 and f"dataset.path={note}" in lines[3]
    assert "accuracy=0.95 loss=0.2" in lines[1]


def test_csv(runs, capsys):
    assert main(["runs", "--format=csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["metrics.accuracy"] for row in rows if row["state"] == "done"] == ["0.95", "0.5"]
    assert {row["key"]: row["settings"] for row in rows}["bbbb00000002"] == "method.target_rate=0.6"


def test_words_for_sizes_and_ages():
    assert [size(n) for n in (0, 999, 1000, 14_900)] == ["0 B", "999 B", "1.0 kB", "15 kB"]
    assert [size(n) for n in (2_500_000, 3e12)] == ["2.5 MB", "3000 GB"]
    assert [age(n) for n in (5, 119, 120, 7200, 172800)] == ["5 s", "119 s", "2 min", "2 h", "2 d"]
    assert Filter.read("metrics.a >= 1e-3") == Filter("metrics.a", ">=", "1e-3")


PROBE = """
import sys
from runner.cli import main
code = main(sys.argv[1:])
print("torch" in sys.modules)
sys.exit(code)
"""


@pytest.mark.parametrize(
    "words", [["runs"], ["compare", "aaaa00000001", "bbbb00000001"], ["clean"], ["sync", "--dry"]], ids=" ".join
)
def test_torch_is_not_imported(words, runs):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words], cwd=runs.parent, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "False"), done.stderr


# ---- compare -------------------------------------------------------------------------------------------------------


def test_compare(runs, capsys):
    assert (
        main(["compare", "aaaa00000001", str(runs / "supervised-resnet20-digits/aaaa00000002"), "--format=json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["settings"] == {"recipe.epochs": [7, 1], "seed": [0, 3]}
    assert set(found["other_settings"]) == {
        "hardware.name",
        "hardware.device",
        "checkpoint.every_seconds",
    }
    assert found["metrics"] == {"accuracy": [0.95, 0.5], "loss": [0.2, None]}
    assert found["code"] == {}


def test_compare_in_text(runs, capsys):
    result = runs / "supervised-resnet20-digits/aaaa00000002/result.json"
    result.write_text(json.dumps({**json.loads(result.read_text()), "code": "other"}))
    assert main(["compare", "aaaa00000001", str(result)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["recipe.epochs", "7", "1"] in lines
    assert ["accuracy", "0.95", "0.5", "-0.45"] in lines
    assert ["loss", "0.2", "-", "-"] in lines
    assert ["code", "c0de", "other"] in lines


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["aaaa00000001"], "takes two runs, got 1"),
        (["aaaa", "bbbb00000001"], "'aaaa' begins 2 keys: supervised-resnet20-digits/aaaa00000001"),
        (["zz", "bbbb00000001"], "no run folder 'zz'"),
        (["runs", "bbbb00000001"], "runs is not a run folder"),
    ],
)
def test_compare_refuses(words, expected, runs, capsys):
    assert main(["compare", *words]) == 2
    assert expected in capsys.readouterr().err


# ---- clean ---------------------------------------------------------------------------------------------------------


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.fixture
def litter(runs) -> dict[str, Path]:
    """What could go, by name."""
    done = runs / "supervised-resnet20-digits/aaaa00000001"
    found = {
        "checkpoints": done / "checkpoints",
        "half-written": done / "artifacts" / ".weights.x.partial",
        "lock": done / "lock.json",
        "failed": runs / "ekg-resnet20-digits/bbbb00000001",
        "never began": runs / "ekg-resnet20-digits/dddd00000001",
        "remainder": runs / "ekg-resnet20-digits/.eeee00000001.partial",
    }
    for name in ("checkpoints", "never began", "remainder"):
        found[name].mkdir()
        (found[name] / ".lock.guard").write_text("x" * 1000)
    found["half-written"].parent.mkdir()
    found["half-written"].write_text("x" * 500)
    own_lock(done, start=1.0)
    alive = runs / "ekg-resnet20-digits/bbbb00000004/checkpoints"
    alive.mkdir()
    (alive / ".a.partial").write_text("x")
    os.utime(found["never began"], (0, 0))
    return found


def named(out: str) -> set[str]:
    return {re.split(r"  +", line)[1] for line in out.splitlines() if "  " in line}


def test_clean_lists_and_does_nothing(litter, runs, capsys):
    before = files(runs)
    assert main(["clean"]) == 0
    out = capsys.readouterr().out
    assert named(out) == {path.relative_to(runs).as_posix() for path in litter.values()}
    assert "nothing was deleted: --yes" in out
    assert files(runs) == before


def test_clean_deletes_with_yes_and_nothing_else(litter, runs, capsys):
    def kept(names):
        gone = [path.relative_to(runs).as_posix() for path in litter.values()]
        return {name for name in names if not any(f"{name}/".startswith(f"{place}/") for place in gone)}

    before = files(runs)
    assert main(["clean", "--yes"]) == 0
    assert "deleted" in capsys.readouterr().out
    assert {name for name in files(runs) if not name.endswith(".lock.guard")} == kept(before)
    assert main(["clean"]) == 0
    assert capsys.readouterr().out == "nothing to clean\n"


def test_clean_older_than_and_filters(runs, capsys):
    assert main(["clean", "--older-than", "1"]) == 0
    assert named(capsys.readouterr().out) == {f"ekg-resnet20-digits/bbbb0000000{n}" for n in (1, 2)}
    assert main(["clean", "--older-than", "0", "method.target_rate=0.6", "--yes"]) == 0
    left = {path.name for path in (runs / "ekg-resnet20-digits").iterdir()}
    assert left == {f"bbbb0000000{n}" for n in (1, 3, 4)}


def test_clean_refuses_a_filter_that_means_nothing(runs, capsys):
    before = files(runs)
    assert main(["clean", "--older-than", "0", "--yes", "metod!=ekg"]) == 2
    assert "'metod'" in capsys.readouterr().err
    assert files(runs) == before


def test_a_folder_that_a_run_takes_meanwhile_is_kept(runs, monkeypatch, capsys):
    """The lock is asked again at the moment of deletion."""
    from runner.commands import clean

    found = list(clean.candidates(runs, [], 30.0))
    own_lock(found[0].path)
    monkeypatch.setattr(clean, "candidates", lambda *_: found)
    assert main(["clean", "--yes"]) == 0
    assert "a run began there" in capsys.readouterr().err
    assert found[0].path.is_dir()
