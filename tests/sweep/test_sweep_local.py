"""Sweeps on the local launcher, with real processes and real kills."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from commands import until
from forked import repository
from sweeps import Grid, faults_stay_with_their_cells, states, summary
from user_methods import write_config


def alive_below(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def gone(pids: list[int]) -> bool:
    return all(not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie" for pid in pids)


def running(grid: Grid, number: int) -> bool:
    return grid.status(number).get("state") == "running"


def test_faults_stay_with_their_cells(tmp_path):
    faults_stay_with_their_cells(Grid(tmp_path))


def test_exactly_the_affected_cells_run_again(tmp_path):
    """One result deleted, one torn, one default changed in the file of one of two methods."""
    grid = Grid(tmp_path, cells=3)
    words = ("method=faulty,other",)
    write_config(grid.configs, "other", "user_methods:Faulty", {"number": 0, "seconds": 0.0})
    first = grid.run(*words)
    assert first.code == 0 and states(first) == ["done"] * 6, first.err
    folders = [Path(cell["folder"]) for cell in summary(first)["cells"]]
    (folders[0] / "result.json").unlink()
    (folders[2] / "result.json").write_text('{"metrics": {"number"')
    write_config(grid.configs, "other", "user_methods:Faulty", {"number": 0, "seconds": 0.001})
    second = grid.run(*words)
    assert second.code == 0 and states(second) == ["done", "cached", "done", "done", "done", "done"], second.err
    assert [cell["metrics"]["number"] for cell in summary(second)["cells"]] == [0, 1, 2, 0, 1, 2]
    assert states(grid.run(*words)) == ["cached"] * 6


@pytest.mark.slow
def test_retries_give_a_failed_cell_another_chance(tmp_path):
    grid = Grid(tmp_path, cells=2)
    grid.fault(1, "hang")
    command = grid.start("retries=1")
    grid.kill_cell(1, command)
    until(lambda: grid.status(1).get("attempt") == 2, 60)
    grid.repair()
    answer = command.wait()
    assert answer.code == 0 and states(answer) == ["done", "done"], answer.err
    assert summary(answer)["cells"][1]["attempts"] == 2 and "is tried again" in answer.err


@pytest.mark.slow
def test_equal_tracebacks_stop_the_queue_and_a_first_failure_when_asked(tmp_path):
    grid = Grid(tmp_path / "equal")
    for number in range(6):
        grid.fault(number, "raise")
    answer = grid.run("hardware.slots=1", "stop_after=2")
    assert answer.code == 1 and states(answer) == ["failed"] * 2 + ["stopped"] * 4, answer.err
    assert "2 failures with one traceback" in answer.err
    grid = Grid(tmp_path / "first", cells=4)
    grid.fault(0, "hang")
    grid.fault(1, "raise")
    answer = grid.run("hardware.slots=2", "fail_fast=true")
    assert answer.code == 1 and states(answer) == ["stopped", "failed", "stopped", "stopped"], answer.err
    assert grid.status(0)["state"] == "stopped", "it was asked to save"
    grid = Grid(tmp_path / "one", cells=2)
    grid.fault(0, "raise")
    answer = grid.run("hardware.slots=1", "retries=2", "stop_after=2")
    assert answer.code == 1 and states(answer) == ["failed", "done"], "one cell that is tried again is one failure"


@pytest.mark.slow
def test_three_copies_of_one_command_share_the_grid(tmp_path):
    grid = Grid(tmp_path, cells=5)
    commands = [grid.start("hardware.slots=2", "method.seconds=0.2") for _ in range(3)]
    answers = [command.wait() for command in commands]
    assert [answer.code for answer in answers] == [0, 0, 0], [answer.err for answer in answers]
    assert grid.computed() == [1] * 5
    assert len({answer.result_path for answer in answers}) == 1, "one grid has one folder"
    for answer in answers:
        assert set(states(answer)) <= {"done", "cached"}


@pytest.mark.slow
def test_a_cell_of_another_process_is_waited_for_and_its_failure_taken_over(tmp_path):
    grid = Grid(tmp_path, cells=2)
    grid.fault(1, "hang")
    first = grid.start()
    until(lambda: running(grid, 1), 90)
    second = grid.start()
    until(lambda: "waits for another process" in second.shown(), 90)
    grid.fault(1, "raise")
    answers = [first.wait(), second.wait()]
    assert [answer.code for answer in answers] == [1, 1], [answer.err for answer in answers]
    assert "in another process" in answers[1].err and "ArithmeticError" in answers[1].err
    assert grid.status(1)["attempt"] == 1


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=SLOW), pytest.param(signal.SIGUSR1, marks=SLOW)]
)
def test_a_signal_lets_cells_save_and_the_same_command_goes_on(tmp_path, number):
    grid = Grid(tmp_path, cells=4)
    grid.fault(0, "hang")
    command = grid.start("hardware.slots=1")
    until(lambda: running(grid, 0), 90)
    below = alive_below(command.process.pid)
    command.signal(number)
    answer = command.wait()
    assert answer.code == 75 and states(answer) == ["stopped"] * 4, answer.err
    assert "on request" in answer.err
    assert grid.status(0)["state"] == "stopped"
    until(lambda: gone(below))
    grid.repair()
    again = grid.run()
    assert again.code == 0 and states(again) == ["done"] * 4
    assert grid.status(0)["attempt"] == 2 and grid.computed() == [1] * 4


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once(tmp_path):
    grid = Grid(tmp_path, cells=2, target="user_methods:Stubborn")
    command = grid.start("hardware.slots=1")
    until(lambda: running(grid, 0), 90)
    below = alive_below(command.process.pid)
    command.signal(signal.SIGINT)
    until(lambda: "on request" in command.shown())
    assert not gone(below), "the cell does not look at signals"
    command.signal(signal.SIGINT)
    answer = command.wait(20)
    assert answer.code == 75 and states(answer) == ["stopped"] * 2, answer.err
    until(lambda: gone(below))
    assert grid.status(0)["state"] == "stopped"


@pytest.mark.parametrize("victim", ["sweep", pytest.param("server", marks=SLOW)])
def test_nothing_outlives_a_kill_and_nothing_is_lost(tmp_path, victim):
    grid = Grid(tmp_path, cells=3)
    grid.fault(2, "hang")
    command = grid.start("hardware.slots=1", "method.seconds=0.1")
    until(lambda: running(grid, 2), 90)
    below = alive_below(command.process.pid)
    server = psutil.Process(command.process.pid).children()[0].pid
    os.kill({"sweep": command.process.pid, "server": server}[victim], signal.SIGKILL)
    answer = command.wait()
    until(lambda: gone(below))
    if victim == "server":
        assert answer.code == 1 and states(answer) == ["done", "done", "failed"], answer.err
    grid.repair()
    again = grid.run("method.seconds=0.1")
    assert again.code == 0 and states(again) == ["cached", "cached", "done"], again.err
    assert grid.computed() == [1] * 3


def test_what_only_a_method_knows_to_be_wrong_is_found_before_anything_runs(tmp_path):
    grid = Grid(tmp_path, cells=3)
    answer = grid.run("+method.speed=3")
    assert answer.code == 2 and not answer.out, answer.err
    assert "method.speed" in answer.message and "in the cell: method=faulty" in answer.message
    assert not list(grid.work.glob("runs/faulty-*"))


def test_a_cached_sweep_does_not_import_torch(tmp_path):
    grid = Grid(tmp_path, cells=2)
    assert grid.run().code == 0
    probe = (
        "import sys; from runner.cli import main; code = main(sys.argv[1:]);"
        "print('torch' in sys.modules, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, *grid.words()],
        cwd=grid.work,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(repository()), "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "False" and "2 cached" in done.stderr
    assert json.loads(Path(done.stdout.splitlines()[-1]).read_text())["counts"] == {"cached": 2}


@pytest.mark.slow
def test_cells_are_runs_of_one_group_at_wandb(tmp_path):
    grid = Grid(tmp_path, cells=2)
    answer = grid.run("tracking=offline")
    assert answer.code == 0, answer.err
    about = [json.loads((Path(cell["folder"]) / "wandb/run.json").read_text()) for cell in summary(answer)["cells"]]
    assert {item["group"] for item in about} == {summary(answer)["sweep"]}
    assert [item["id"].split("-")[0] for item in about] == [cell["key"] for cell in summary(answer)["cells"]]
