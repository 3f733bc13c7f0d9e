"""A grid of toy cells with faults, for the tests of sweeps on every launcher."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from commands import Answer, Command, until
from user_methods import write_config

FIELDS = {"number": 0, "seconds": 0.0}
SETTINGS = ("model=resnet20", "scale=smoke", "hardware=cpu", "hardware.slots=3", "checkpoint.every_seconds=0")


class Grid:
    """``number=0,...,cells-1`` of the method ``faulty`` below ``place``."""

    def __init__(self, place: Path, cells: int = 6, target: str = "user_methods:Faulty") -> None:
        self.place, self.cells = place, cells
        self.work = place / "work"
        self.work.mkdir(parents=True)
        self.configs = write_config(place / "configs", "faulty", target, dict(FIELDS))

    def words(self, *words: str) -> list[str]:
        """The command line."""
        numbers = ",".join(map(str, range(self.cells)))
        configs = str(self.configs)
        return ["-m", "--config-dir", configs, "method=faulty", f"method.number={numbers}", *SETTINGS, *words]

    def start(self, *words: str) -> Command:
        return Command(*self.words(*words), place=self.place)

    def run(self, *words: str, timeout: float = 120) -> Answer:
        return self.start(*words).wait(timeout)

    def fault(self, number: int, kind: str) -> None:
        (self.work / f"fault-{number}").write_text(kind)

    def repair(self) -> None:
        for path in self.work.glob("fault-*"):
            path.unlink()

    def computed(self) -> list[int]:
        """How often each cell was computed."""
        paths = [self.work / f"computed-{number}" for number in range(self.cells)]
        return [len(path.read_text()) if path.exists() else 0 for path in paths]

    def status(self, number: int) -> dict:
        """status.json of a cell, with its folder."""
        for path in self.work.glob("runs/faulty-*/*/config.yaml"):
            if f"number: {number}\n" in path.read_text():
                return json.loads((path.parent / "status.json").read_text()) | {"folder": path.parent}
        return {}

    def kill_cell(self, number: int, command: Command) -> None:
        """Signal 9 to the process of a cell, once it has begun."""
        until(lambda: self.status(number).get("state") == "running" or not command.process.is_alive(), 200)
        assert command.process.is_alive(), command.shown()
        os.kill(self.status(number)["pid"], signal.SIGKILL)


def summary(answer: Answer) -> dict:
    assert answer.result_path.name == "summary.json", answer.err
    return json.loads(answer.result_path.read_text())


def states(answer: Answer) -> list[str]:
    return [cell["state"] for cell in summary(answer)["cells"]]


def faults_stay_with_their_cells(grid: Grid, *words: str, timeout: float = 120) -> None:
    """One cell raises, one is killed by signal 9 from outside: four are done; repaired, exactly two run."""
    grid.fault(1, "raise")
    grid.fault(4, "hang")
    command = grid.start(*words)
    grid.kill_cell(4, command)
    answer = command.wait(timeout)
    assert answer.code == 1, answer.err
    assert states(answer) == ["done", "failed", "done", "done", "failed", "done"]
    found = summary(answer)
    raised, killed = found["cells"][1], found["cells"][4]
    assert "ArithmeticError: the metal broke at 1" in raised["error"]
    assert "killed by signal 9 (SIGKILL)" in killed["error"]
    for cell, number, text in ((raised, 1, "Traceback"), (killed, 4, "killed by signal 9 (SIGKILL)")):
        assert text in Path(cell["error_file"]).read_text()
        assert grid.status(number)["state"] == "failed"
        assert "method.number=" + str(number) in answer.err and cell["error"] in answer.err
    assert "failed: runner" in answer.err and "4 done, 2 failed" in answer.err

    grid.repair()
    again = grid.run(*words, timeout=timeout)
    assert again.code == 0, again.err
    assert states(again) == ["cached", "done", "cached", "cached", "done", "cached"]
    assert grid.computed() == [1] * 6
    assert grid.status(4)["attempt"] == 2
