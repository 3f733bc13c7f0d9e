"""Whole runs through the command line: done, answered, stopped, locked, shared, changed, forced, moved.

Kills at random moments: test_methods.py, for every method.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
import yaml
from commands import SMOKE, Command, listing, metric_lines, outcome, runner, smoke, until
from user_methods import write_config

import runner as package
from runner.compose import compose
from runner.environment import GitState
from runner.plan import plan

EVERY_STEP = "checkpoint.every_seconds=0"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished smoke run of `supervised`; read only."""
    answer = smoke(place=tmp_path_factory.mktemp("undisturbed"))
    assert answer.code == 0, answer.err
    return answer


def status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


def running(place: Path, pattern: str = "*") -> bool:
    """Whether a run below ``place`` has begun and is not done."""
    states = [json.loads(path.read_text())["state"] for path in place.glob(f"work/runs/{pattern}/*/status.json")]
    return "running" in states


# ---- a finished run ------------------------------------------------------------------------------------------------


def test_standard_output_is_the_path_of_the_result(undisturbed):
    assert undisturbed.out.splitlines() == [str(undisturbed.result_path)]
    assert undisturbed.result_path.name == "result.json"
    assert undisturbed.folder.parent.name == "supervised-resnet20-digits"
    assert len(undisturbed.folder.name) == 12


def test_the_result_says_what_design_asks_for(undisturbed):
    result = undisturbed.result
    asked = """method model dataset scale seed key metrics profile phases product seconds attempt resumes finished
        fidelity deviations fingerprints code commit uncommitted_changes versions hardware"""
    assert set(result) >= set(asked.split())
    assert result["key"] == undisturbed.folder.name
    assert set(result["metrics"]) == {"accuracy", "loss", "accuracy_best_validation"}
    profile = result["profile"]["final"]
    assert type(profile["params"]) is int and type(profile["flops"]) is int
    assert set(profile["latency_ms"]) == {"1", "64"} and all(value > 0 for value in profile["latency_ms"].values())
    assert set(result["phases"]) >= {"train", "profile final", "evaluate test"}
    assert all(phase["seconds"] >= 0 for phase in result["phases"].values())
    assert sum(phase["seconds"] for phase in result["phases"].values()) <= result["seconds"]
    assert {"python", "torch", "numpy"} <= set(result["versions"])
    assert result["hardware"]["threads"] == 1 and result["hardware"]["device"] == "cpu"
    assert (result["attempt"], result["resumes"]) == (1, 0)


def test_every_file_says_what_it_should(undisturbed):
    folder = undisturbed.folder
    composed = compose([*SMOKE]).config
    assert yaml.safe_load((folder / "config.yaml").read_text()) == composed
    found = status(folder)
    assert (found["state"], found["attempt"], found["resumes"]) == ("done", 1, 0)
    assert found["started"] <= found["attempt_started"] <= found["updated"]
    assert {"pid", "host", "phase", "step", "threads", "code", "seconds"} <= set(found)
    (line,) = metric_lines(folder)
    assert (line["phase"], line["step"]) == ("train", 2)
    assert {"loss", "learning_rate", "accuracy_validation"} <= set(line)
    log = (folder / "log.txt").read_text()
    assert "data digits: 30 train, 10 validation, 20 test" in log and "CIFAR stem" in log
    assert not (folder / "error.txt").exists()
    assert not (folder / "checkpoints").exists()
    assert not (folder / "lock.json").exists()


def test_test_scores_are_one_a_test_image(undisturbed):
    import numpy

    with numpy.load(undisturbed.folder / "artifacts" / "test_scores.npz") as scores:
        assert set(scores) == {"index", "label", "prediction", "score", "log_likelihood"}
        assert len(set(scores["index"].tolist())) == 20
        assert numpy.bincount(scores["label"]).tolist() == [2] * 10
        assert numpy.array_equal(scores["score"], scores["prediction"] == scores["label"])
        assert -scores["log_likelihood"].mean() == pytest.approx(undisturbed.result["metrics"]["loss"], abs=1e-5)
        assert scores["score"].mean() == pytest.approx(undisturbed.result["metrics"]["accuracy"])


def test_nothing_is_written_outside_the_run_folder(tmp_path):
    """Neither in the working directory nor in the user's home."""
    answer = smoke(place=tmp_path)
    inside = answer.folder.relative_to(tmp_path).as_posix()
    outside = {name for name in listing(tmp_path) if not name.startswith(inside)}
    assert outside == {"0.out", "0.err", "0.cpu", "home", "work", "work/runs", "work/runs/supervised-resnet20-digits"}


def test_a_demonstration_says_so_first_and_last(undisturbed):
    lines = undisturbed.err.splitlines()
    assert lines[0] == lines[-1]
    assert "not the paper's protocol" in lines[0]
    assert lines[0].endswith("runner method=supervised model=resnet20 hardware=cpu scale=paper")


# ---- the same command again ----------------------------------------------------------------------------------------


def test_a_finished_run_is_answered_without_torch(undisturbed):
    """Issue: repeating it answers in < 2 s CPU."""
    code = (
        "import sys; from runner.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'torchvision', 'wandb', 'sklearn', 'scipy', 'numpy'} & set(sys.modules);"
        "print(heavy, file=sys.stderr) if heavy else None; sys.exit(code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, *SMOKE],
        cwd=undisturbed.folder.parents[2],
        env={**os.environ, "PYTHONPATH": str(forked.repository())},
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert done.stdout == undisturbed.out
    assert "already done" in done.stderr and "stale" not in done.stderr
    assert "{" not in done.stderr, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0


def test_two_runs_are_equal_and_another_seed_is_not(undisturbed, tmp_path):
    assert outcome(smoke(EVERY_STEP, place=tmp_path)) == outcome(undisturbed)
    other = smoke("seed=1", place=tmp_path)
    assert outcome(other)["product"] != outcome(undisturbed)["product"]
    assert other.folder.name != undisturbed.folder.name


# ---- stopped and killed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_stop_signal_saves_and_the_same_command_goes_on(undisturbed, tmp_path, name):
    command = Command(*SMOKE, place=tmp_path)
    until(lambda: running(tmp_path))
    command.signal(getattr(signal, name))
    stopped = command.wait()
    assert stopped.code == 75
    assert stopped.message.startswith("runner: stopped in 'train' at step 1; the state is saved")
    assert "Traceback" not in stopped.err
    (folder,) = (tmp_path / "work" / "runs").glob("*/*")
    assert status(folder)["state"] == "stopped"
    assert not (folder / "result.json").exists() and not (folder / "lock.json").exists()
    again = smoke(place=tmp_path)
    assert again.code == 0
    assert outcome(again) == outcome(undisturbed)
    assert (status(folder)["state"], status(folder)["resumes"], again.result["resumes"]) == ("done", 1, 1)


# ---- several processes ---------------------------------------------------------------------------------------------


def test_a_second_process_on_a_run_is_refused(undisturbed, tmp_path):
    first = Command(*SMOKE, place=tmp_path)
    until(lambda: running(tmp_path))
    first.signal(signal.SIGSTOP)  # alive, and surely not done
    second = smoke(place=tmp_path)
    first.signal(signal.SIGCONT)
    assert second.code == 2
    assert f"in use by process {first.process.pid}" in second.message
    assert "Traceback" not in second.err
    done = first.wait()
    assert done.code == 0 and outcome(done) == outcome(undisturbed)


@pytest.fixture
def consumers(tmp_path):
    folder = write_config(tmp_path / "conf", "consumer", "user_methods:Consumer", {"number": 0}, baseline={"seed": 0})
    return lambda number: (
        *("method=consumer", *SMOKE[1:], "recipe.epochs=1", "recipe.batch_size=16", EVERY_STEP),
        *(f"method.number={number}", "--config-dir", folder),
    )


def test_a_cell_that_two_runs_need_runs_once(consumers, tmp_path):
    commands = [Command(*consumers(number), place=tmp_path) for number in (0, 1)]
    answers = [command.wait() for command in commands]
    assert [answer.code for answer in answers] == [0, 0], [answer.err for answer in answers]
    (cell,) = (tmp_path / "work" / "runs").glob("supervised-*/*")
    assert status(cell)["attempt"] == 1
    assert sum("baseline: runs as" in answer.err for answer in answers) == 1
    results = [answer.result for answer in answers]
    assert results[0]["metrics"].pop("number") != results[1]["metrics"].pop("number")
    assert results[0]["metrics"] == results[1]["metrics"]
    assert len({result["phases"]["baseline"]["weights_sha256"] for result in results}) == 1
    assert results[0]["phases"]["baseline"]["run"] == f"{cell.parent.name}/{cell.name}"


def test_who_waits_for_a_cell_takes_it_over_when_its_process_is_killed(consumers, tmp_path):
    first = Command(*consumers(0), place=tmp_path)
    until(lambda: running(tmp_path, "supervised-*"))
    first.signal(signal.SIGSTOP)
    second = Command(*consumers(1), place=tmp_path)
    until(lambda: "waits for another process" in second.shown())
    first.signal(signal.SIGKILL)
    assert first.wait().code == -9
    done = second.wait()
    assert done.code == 0, done.err
    again = runner(*consumers(0), place=tmp_path)
    assert again.code == 0 and "baseline: reuses" in again.err
    assert again.result["phases"]["baseline"]["weights_sha256"] == done.result["phases"]["baseline"]["weights_sha256"]


def test_who_waits_for_a_cell_can_be_stopped(consumers, tmp_path):
    first = Command(*consumers(0), place=tmp_path)
    until(lambda: running(tmp_path, "supervised-*"))
    first.signal(signal.SIGSTOP)
    second = Command(*consumers(1), place=tmp_path)
    until(lambda: "waits for another process" in second.shown())
    second.signal(signal.SIGTERM)
    assert second.wait().code == 75
    first.signal(signal.SIGCONT)
    assert first.wait().code == 0


# ---- code that changed ---------------------------------------------------------------------------------------------

METHOD = """
from dataclasses import dataclass

@dataclass
class Method:
    def run(self, ctx):
        ctx.track(total=(total := {"sum": 0.0}))
        for step in ctx.loop("count", 2):
            if step == 1 and not ctx.artifact("go").exists():
                raise ArithmeticError
            total["sum"] += STEP
        return total
"""


@pytest.fixture
def changing(tmp_path):
    """Writes a user's method into the working directory; returns its command."""
    folder = write_config(tmp_path / "conf", "changing", "mine.method:Method")

    def write(step: int) -> tuple:
        (tmp_path / "work" / "mine").mkdir(parents=True, exist_ok=True)
        (tmp_path / "work" / "mine" / "__init__.py").touch()
        (tmp_path / "work" / "mine" / "method.py").write_text(METHOD.replace("STEP", str(step)))
        return "method=changing", *SMOKE[1:], EVERY_STEP, "--config-dir", folder

    return write


def test_an_interrupted_run_does_not_go_on_in_other_code(changing, tmp_path):
    assert runner(*changing(1), place=tmp_path).code == 1
    (folder,) = (tmp_path / "work" / "runs").glob("*/*")
    (folder / "artifacts").mkdir(exist_ok=True)
    (folder / "artifacts" / "go").touch()
    refused = runner(*changing(10), place=tmp_path)
    assert refused.code == 2
    assert "the code of changing changed" in refused.message and "allow_code_change=true" in refused.message
    assert runner(*changing(1), place=tmp_path).result["metrics"] == {"sum": 2.0}


def test_it_goes_on_in_other_code_when_it_is_allowed(changing, tmp_path):
    assert runner(*changing(1), place=tmp_path).code == 1
    (folder,) = (tmp_path / "work" / "runs").glob("*/*")
    (folder / "artifacts").mkdir(exist_ok=True)
    (folder / "artifacts" / "go").touch()
    allowed = runner(*changing(10), "allow_code_change=true", place=tmp_path)
    assert allowed.code == 0 and allowed.result["metrics"] == {"sum": 11.0}
    assert "stale" in runner(*changing(1), place=tmp_path).err
    assert "stale" not in runner(*changing(10), place=tmp_path).err


# ---- force, move, Python -------------------------------------------------------------------------------------------


def test_force_runs_again_to_the_same_bits(undisturbed, tmp_path):
    first = smoke(place=tmp_path)
    again = smoke("force=true", place=tmp_path)
    assert again.code == 0 and again.result_path == first.result_path
    assert "already done" not in again.err and "train: finished" in again.err
    assert outcome(again) == outcome(undisturbed)
    assert (status(again.folder)["attempt"], again.result["resumes"]) == (1, 0)
    assert not (again.folder / "result.previous.json").exists()


def test_a_kill_during_a_forced_run_loses_nothing(undisturbed, tmp_path):
    first = smoke(place=tmp_path)
    stored = first.result
    command = Command(*SMOKE, EVERY_STEP, "force=true", place=tmp_path)
    until((first.folder / "result.previous.json").exists)
    until(lambda: list(first.folder.glob("checkpoints/loop.train.*.pt")))
    command.signal(signal.SIGKILL)
    assert command.wait().code == -9
    assert json.loads((first.folder / "result.previous.json").read_text()) == stored
    again = smoke(EVERY_STEP, place=tmp_path)  # without force: the rerun that was asked for goes on
    assert again.code == 0 and outcome(again) == outcome(undisturbed)
    assert again.result["resumes"] == 1
    assert not (first.folder / "result.previous.json").exists()


def test_a_moved_run_can_be_loaded(undisturbed, tmp_path):
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(undisturbed.folder, moved)
    model = package.load(moved)
    images = torch.randn(3, *model.architecture["input_shape"])
    assert torch.equal(model(images), package.load(undisturbed.folder / "artifacts" / "model")(images))
    numbers = sum(value.numel() for value in model.state_dict().values() if value.is_floating_point())
    assert numbers == undisturbed.result["profile"]["final"]["params"]  # moving averages count, as in the card's rule


def test_a_run_starts_from_the_product_of_another_wherever_it_lies(undisturbed, tmp_path):
    shutil.copytree(undisturbed.folder, tmp_path / "elsewhere")
    answers = [
        smoke(f"model.weights={folder}", "recipe.optimizer.learning_rate=1e-9", place=tmp_path)
        for folder in (undisturbed.folder, tmp_path / "elsewhere")
    ]
    assert [answer.code for answer in answers] == [0, 0], answers[0].err
    assert answers[0].result_path == answers[1].result_path
    assert answers[0].result["fingerprints"] == {"model.weights": undisturbed.result["product"]["sha256"]}
    assert answers[0].result["metrics"]["loss"] == pytest.approx(undisturbed.result["metrics"]["loss"], abs=0.05)


def test_from_python(undisturbed, tmp_path, monkeypatch):
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    words = [*SMOKE, f"paths.runs={tmp_path}", "hardware.threads=1"]
    folder = plan(compose(words).config).folder.path  # of an attempt that left nothing to go on from
    folder.mkdir(parents=True)
    (folder / "status.json").write_text('{"state": "failed", "attempt": 1, "threads": 2}')
    (folder / "code.patch").write_text("of older code")
    monkeypatch.setattr("runner.environment.git_state", lambda path: GitState("0" * 40))
    result = package.run(words)
    assert result["hardware"]["threads"] == 1
    assert not (folder / "code.patch").exists() and not result["uncommitted_changes"]
    assert result["metrics"] == undisturbed.result["metrics"]
    assert (signal.getsignal(signal.SIGTERM), torch.get_num_threads()) == (handler, threads)
    pandas = pytest.importorskip("pandas")
    (row,) = package.results(tmp_path).to_dict("records")
    assert isinstance(package.results(tmp_path), pandas.DataFrame)
    assert row["metrics.accuracy"] == result["metrics"]["accuracy"]
    assert row["profile.final.params"] == result["profile"]["final"]["params"]
    assert Path(row["folder"]).is_relative_to(tmp_path)
