"""Locks between real processes, atomic files, status, and the preparation of a forced rerun."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import stat
import sys
import time
from pathlib import Path

import pytest
from commands import until

from runner.errors import UserError
from runner.folder import STALE_SECONDS, Locked, RunFolder, process_start
from runner.storage import read_json, replace_atomic, write_atomic, write_json

FORK = multiprocessing.get_context("forkserver")


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    run = RunFolder(tmp_path / "method-model-data" / "0123456789ab")
    run.create()
    return run


def hold(path: str, seconds: float) -> None:
    with RunFolder(Path(path)).lock():
        (Path(path) / "held").touch()
        time.sleep(seconds)


@pytest.fixture
def holder(folder):
    process = FORK.Process(target=hold, args=(str(folder.path), 60))
    process.start()
    until((folder.path / "held").exists)
    yield process
    process.kill()
    process.join()


def owner_file(folder: RunFolder, **changes) -> None:
    owner = {"pid": os.getpid(), "start": process_start(os.getpid()), "host": socket.gethostname()}
    write_json(folder.path / "lock.json", {**owner, **changes})


def taken(folder: RunFolder) -> bool:
    try:
        with folder.lock():
            return False
    except Locked:
        return True


def test_a_live_process_keeps_its_lock_and_is_named(folder, holder):
    with pytest.raises(Locked, match=rf"process {holder.pid} on {socket.gethostname()}") as caught, folder.lock():
        pytest.fail("two processes hold one lock")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert read_json(folder.path / "lock.json")["pid"] == holder.pid, "the loser took the lock away"


def test_a_holder_killed_by_signal_9_frees_it_at_once(folder, holder):
    assert taken(folder)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert not taken(folder)


def test_a_killed_holder_whose_parent_has_not_looked_yet_frees_it_too(folder, holder):
    """A zombie still has its process id."""
    os.kill(holder.pid, signal.SIGKILL)
    until(lambda: process_start(holder.pid) is None, 10)
    assert not taken(folder)


def test_a_stopped_holder_keeps_it(folder, holder):
    os.kill(holder.pid, signal.SIGSTOP)
    assert taken(folder)
    os.kill(holder.pid, signal.SIGCONT)


def test_the_lock_is_given_back(folder):
    with folder.lock():
        assert taken(folder)
    assert not (folder.path / "lock.json").exists()
    with pytest.raises(KeyError), folder.lock():
        raise KeyError
    assert not taken(folder)


def test_a_process_id_that_was_used_again_is_nobody(folder):
    owner_file(folder)
    assert taken(folder)
    owner_file(folder, start=process_start(os.getpid()) - 100)
    assert not taken(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the start is kept by the system's clock")
def test_setting_the_clock_frees_no_lock(folder, holder, monkeypatch):
    import psutil._pslinux

    shifted = psutil.boot_time() + 3
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: shifted)
    assert taken(folder)


def test_a_lock_of_another_host_holds_as_long_as_its_heart_beats(folder):
    owner_file(folder, host="elsewhere", pid=1)
    assert taken(folder)
    beat = time.time() - STALE_SECONDS - 5
    os.utime(folder.path / "lock.json", (beat, beat))
    assert not taken(folder)


def test_the_heart_beats_while_it_is_held(folder, monkeypatch):
    monkeypatch.setattr("runner.folder.HEARTBEAT_SECONDS", 0.02)
    with folder.lock():
        os.utime(folder.path / "lock.json", (1, 1))
        until(lambda: time.time() - (folder.path / "lock.json").stat().st_mtime < 5, 5)


@pytest.mark.parametrize("text", ["", "{", "{}"])
def test_a_torn_lock_file_is_free(folder, text):
    (folder.path / "lock.json").write_text(text)
    assert not taken(folder)


def race(path: str, gate: str, seconds: float) -> None:
    folder = RunFolder(Path(path))
    until(Path(gate).exists)
    try:
        with folder.lock():
            (folder.path / f"won.{os.getpid()}").touch()
            time.sleep(seconds)
    except Locked:
        (folder.path / f"lost.{os.getpid()}").touch()


def test_of_many_that_find_a_stale_lock_one_wins(folder, tmp_path):
    owner_file(folder, pid=2**22 + 1)
    gate = tmp_path / "gate"
    racers = [FORK.Process(target=race, args=(str(folder.path), str(gate), 3.0)) for _ in range(8)]
    for racer in racers:
        racer.start()
    time.sleep(0.3)
    gate.touch()
    for racer in racers:
        racer.join()
    assert len(list(folder.path.glob("won.*"))) == 1
    assert len(list(folder.path.glob("lost.*"))) == 7


def test_a_place_that_cannot_be_is_a_wrong_request(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write run folders in .*file.*paths\.runs=DIR"):
        RunFolder(tmp_path / "file" / "name" / "key").create()


def test_making_the_folder_leaves_nothing_in_it(folder):
    assert list(folder.path.iterdir()) == []


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, "old")

    def fails(temporary: Path) -> None:
        temporary.write_text("new, torn")
        raise KeyError

    with pytest.raises(KeyError):
        replace_atomic(path, fails)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomic(path, b"new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644, "others in the group cannot read it"


def rewrite(path: str) -> None:
    for number in range(300):
        write_json(Path(path), {"number": number, "filler": "x" * 20_000})


def test_a_reader_never_sees_a_torn_file(tmp_path):
    path = tmp_path / "file.json"
    rewrite_process = FORK.Process(target=rewrite, args=(str(path),))
    rewrite_process.start()
    until(path.exists)
    seen = set()
    while rewrite_process.is_alive():
        seen.add(json.loads(path.read_text())["number"])
    rewrite_process.join()
    assert len(seen) > 3


def test_a_writer_killed_at_any_time_leaves_whole_content(tmp_path):
    path = tmp_path / "file.json"
    for delay in (0.0, 0.01, 0.02):
        path.unlink(missing_ok=True)
        process = FORK.Process(target=rewrite, args=(str(path),))
        process.start()
        until(path.exists)
        time.sleep(delay)
        process.kill()
        process.join()
        assert read_json(path)["filler"] == "x" * 20_000


def test_the_next_holder_removes_what_killed_writers_left(folder, tmp_path):
    def killed(temporary: Path) -> None:
        shutil.copy(temporary, tmp_path / temporary.name)
        raise KeyError

    (folder.path / "artifacts" / ".model.partial").mkdir(parents=True)
    for path in (folder.path / "status.json", folder.path / "artifacts" / "scores.npz"):
        path.touch()
        with pytest.raises(KeyError):
            replace_atomic(path, killed)
        (left,) = tmp_path.glob(f".{path.name}.*")  # as such a writer names it
        left.rename(path.parent / left.name)
    with folder.lock():
        assert {path.name for path in folder.path.rglob("*")} == {
            "status.json", "artifacts", "scores.npz", "lock.json", ".lock.guard"
        }  # fmt: skip


def test_status_merges(folder):
    assert folder.status() == {}
    folder.update_status(state="running", step=1)
    before = time.time()
    folder.update_status(step=2)
    status = folder.status()
    assert (status["state"], status["step"]) == ("running", 2)
    assert before <= status["updated"] <= time.time()


@pytest.mark.parametrize("text", ["", "{", "null"])
def test_a_torn_status_is_an_empty_one(folder, text):
    (folder.path / "status.json").write_text(text)
    assert folder.status() == {}
    folder.update_status(state="running")
    assert folder.status()["state"] == "running"


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"seconds": 1}'])
def test_a_torn_result_is_none(folder, text):
    folder.result_path.write_text(text)
    assert folder.result() is None


def test_clearing_keeps_the_old_result_apart(folder):
    for name in (
        "config.yaml",
        "status.json",
        "metrics.jsonl",
        "error.txt",
        "checkpoints/a.pt",
        "artifacts/b",
        "figures/c",
    ):
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_text("{}")
    write_json(folder.result_path, {"metrics": {"accuracy": 0.5}})
    folder.clear()
    assert folder.result() is None
    assert read_json(folder.path / "result.previous.json") == {"metrics": {"accuracy": 0.5}}
    assert {path.name for path in folder.path.iterdir()} == {"config.yaml", "result.previous.json"}


def left_after_the_result(folder: RunFolder) -> None:
    """As a kill between result.json and the last bookkeeping leaves it."""
    write_json(folder.result_path, {"metrics": {"accuracy": 0.5}})
    folder.update_status(state="running", attempt=2)
    (folder.path / "checkpoints").mkdir()
    (folder.path / "checkpoints" / "once.a.pt").touch()


def test_settling_finishes_the_bookkeeping_of_a_killed_run(folder):
    left_after_the_result(folder)
    write_json(folder.path / "lock.json", {"pid": os.getpid(), "start": 1.0, "host": socket.gethostname()})
    folder.settle()
    assert not (folder.path / "checkpoints").exists()
    assert not (folder.path / "lock.json").exists()
    assert folder.status()["state"] == "done"
    assert folder.status()["attempt"] == 2


def test_settling_removes_the_lock_of_a_holder_killed_at_its_very_end(folder):
    write_json(folder.result_path, {"metrics": {"accuracy": 0.5}})
    folder.update_status(state="done")
    write_json(folder.path / "lock.json", {"pid": os.getpid(), "start": 1.0, "host": socket.gethostname()})
    folder.settle()
    assert not (folder.path / "lock.json").exists()


def test_settling_leaves_a_live_run_alone(folder, holder):
    left_after_the_result(folder)
    folder.settle()
    assert (folder.path / "checkpoints" / "once.a.pt").exists()
    assert folder.status()["state"] == "running"
