"""The property everything stands on: killed anywhere, a run ends with the same bits as an undisturbed one."""

import json
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
import torch
import toy_methods

from runner.checkpoints import Checkpoints
from runner.durable import Durable


def finish(folder: Path, kill_at=None, every_seconds=0.0) -> dict:
    assert forked.run(toy_methods.run_toy, str(folder), kill_at, every_seconds) in (0, -9)
    path = folder / "result.json"
    return json.loads(path.read_text()) if path.exists() else {}


def record(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return finish(folder), record(folder)


SAVING = pytest.mark.parametrize("every_seconds", [0.0, 1e6], ids=["save-every-step", "save-at-phase-ends"])


@pytest.fixture(scope="module")
def undisturbed_fit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed_fit")
    assert forked.run(toy_methods.run_toy, str(folder), None, 0.0, None, None, toy_methods.every_option) == 0
    return json.loads((folder / "result.json").read_text()), record(folder)


def check_all_ended_equal(undisturbed, folder: Path) -> None:
    expected, lines = undisturbed
    for event in range(1, expected["events"] + 1):
        result = json.loads((folder / str(event) / "result.json").read_text())
        assert result["digest"] == expected["digest"], f"killed at event {event}"
        assert record(folder / str(event)) == lines, f"killed at event {event}"


@SAVING
def test_it_goes_on_from_what_any_kill_leaves(undisturbed, tmp_path, every_seconds):
    """The folder is copied at every event of one run, and each copy is brought to its end."""
    left = tmp_path / "left"
    assert forked.run(toy_methods.run_toy, str(tmp_path / "run"), None, every_seconds, None, str(left)) == 0
    assert forked.run(toy_methods.resume_each, str(left), every_seconds) == 0
    check_all_ended_equal(undisturbed, left)


@pytest.mark.slow
@SAVING
def test_a_recipe_with_all_options_goes_on_from_what_any_kill_leaves(undisturbed_fit, tmp_path, every_seconds):
    left, method = str(tmp_path / "left"), toy_methods.every_option
    assert forked.run(toy_methods.run_toy, str(tmp_path / "run"), None, every_seconds, None, left, method) == 0
    assert forked.run(toy_methods.resume_each, left, every_seconds, method) == 0
    assert undisturbed_fit[0]["events"] == 2 * (2 * 7 + 1)
    check_all_ended_equal(undisturbed_fit, tmp_path / "left")


@pytest.mark.slow
@SAVING
def test_killed_at_every_point(undisturbed, tmp_path, every_seconds):
    """The same with a real kill and a new process for every event."""
    events = undisturbed[0]["events"]
    failed_at = forked.run(toy_methods.kill_at_every_event, str(tmp_path), every_seconds, events)
    assert failed_at == 0, f"event {failed_at}: the kill came too late, or the resume failed"
    check_all_ended_equal(undisturbed, tmp_path)


def test_killed_again_and_again(undisturbed, tmp_path):
    expected, lines = undisturbed
    attempts = 0
    while not (result := finish(tmp_path, kill_at=9)):
        attempts += 1
        assert attempts < 100
    assert attempts > 3
    assert result["digest"] == expected["digest"]
    assert record(tmp_path) == lines


def test_finished_verbs_are_skipped(undisturbed, tmp_path):
    expected, _ = undisturbed
    finish(tmp_path)
    assert finish(tmp_path)["events"] < expected["events"] / 3


def test_stop_signal_saves_at_the_next_step(undisturbed, tmp_path):
    expected, lines = undisturbed
    assert forked.run(toy_methods.run_toy, str(tmp_path), None, 1e6, 9) == 75
    result = finish(tmp_path, None, 1e6)
    assert result["digest"] == expected["digest"]
    assert result["events"] < expected["events"] - 4
    assert record(tmp_path) == lines


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_corrupt_checkpoint_falls_back(undisturbed, tmp_path, damage):
    expected, _ = undisturbed
    finish(tmp_path, kill_at=expected["events"] - 2)
    newest = max((tmp_path / "checkpoints").glob("loop.fine%20tune.*.pt"))
    content = newest.read_bytes()
    middle = len(content) // 2
    newest.write_bytes(
        {
            "truncate": content[:middle],
            "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "empty": b"",
        }[damage]
    )
    result = finish(tmp_path)
    assert result["digest"] == expected["digest"]
    assert any("corrupt" in line for line in result["said"])


def test_every_stored_file_may_be_corrupt(undisturbed, tmp_path):
    expected, _ = undisturbed
    finish(tmp_path, kill_at=expected["events"] - 2)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert finish(tmp_path)["digest"] == expected["digest"]


class Clock:
    """A second passes at every ``tick``; a process dies at the time ``end``."""

    def __init__(self) -> None:
        self.now, self.ticks, self.end = 0.0, 0, None

    def tick(self) -> None:
        if self.now == self.end:
            raise InterruptedError
        self.now += 1
        self.ticks += 1


def nested(folder: Path, clock: Clock, log_every: int = 1, inner: tuple[str, ...] = ("inner",)) -> list[float]:
    """Six steps with inner loops of ten seconds each; saves every seven seconds."""
    folder.mkdir(exist_ok=True)
    observer = toy_methods.FileObserver(folder / "metrics.jsonl")
    ctx = Durable(
        seed=3,
        device=torch.device("cpu"),
        checkpoints=Checkpoints(folder / "checkpoints", observer.say),
        observer=observer,
        every_seconds=7,
        log_every=log_every,
    )
    drawn: list[float] = []
    ctx.track(drawn=drawn)
    for _ in ctx.loop("outer", 6):
        for name in inner:
            for _ in ctx.loop(name, 10):
                clock.tick()
                drawn.append(torch.rand(()).item())
                ctx.log(drawn=drawn[-1])
                if len(drawn) % 10 == 6:
                    ctx.log(seldom=torch.tensor(float(len(drawn))))
    ctx.finish()
    observer.metrics.close()
    return drawn


def test_a_loop_around_others_that_save_is_saved_too(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("runner.durable.time", SimpleNamespace(monotonic=lambda: clock.now))
    expected = nested(tmp_path / "undisturbed", clock)
    clock.now, clock.ticks, clock.end = 0.0, 0, 58.0
    with pytest.raises(InterruptedError):
        nested(tmp_path / "killed", clock)
    stored = {path.name.partition(".0")[0] for path in (tmp_path / "killed" / "checkpoints").iterdir()}
    assert stored == {"loop.outer", "loop.outer%5B5%5D%2Finner"}  # none of steps that are over
    clock.ticks, clock.end = 0, None
    assert nested(tmp_path / "killed", clock) == expected
    assert clock.ticks <= 2 + 7
    assert record(tmp_path / "killed") == record(tmp_path / "undisturbed")


def test_what_was_logged_and_not_yet_written_survives_a_kill(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("runner.durable.time", SimpleNamespace(monotonic=lambda: clock.now))
    nested(tmp_path / "undisturbed", clock, log_every=4)
    clock.now, clock.ticks, clock.end = (
        0.0,
        0,
        27.0,
    )  # logged in step 6 of an inner loop, saved in step 7, to be written in step 8
    with pytest.raises(InterruptedError):
        nested(tmp_path / "killed", clock, log_every=4)
    clock.end = None
    nested(tmp_path / "killed", clock, log_every=4)
    assert record(tmp_path / "killed") == record(tmp_path / "undisturbed")


def test_of_two_loops_in_a_step_the_first_is_not_run_again_after_the_second_saved(tmp_path, monkeypatch):
    """What it wrote anew would take the place of the second's lines."""
    clock = Clock()
    monkeypatch.setattr("runner.durable.time", SimpleNamespace(monotonic=lambda: clock.now))
    expected = nested(tmp_path / "undisturbed", clock, inner=("first", "second"))
    clock.now, clock.ticks, clock.end = 0.0, 0, 18.0  # saved in the first loop at 7 and in the second, after 14
    with pytest.raises(InterruptedError):
        nested(tmp_path / "killed", clock, inner=("first", "second"))
    clock.ticks, clock.end = 0, None
    assert nested(tmp_path / "killed", clock, inner=("first", "second")) == expected
    assert clock.ticks <= 120 - 14
    assert record(tmp_path / "killed") == record(tmp_path / "undisturbed")
