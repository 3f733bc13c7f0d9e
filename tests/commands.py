"""Runs `runner ...` in forked processes, each in a folder and a home of its own, and keeps what a user would see."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked

SMOKE = ("method=supervised", "model=resnet20", "scale=smoke", "hardware=cpu")


@dataclass
class Answer:
    """How a command ended: exit code (negative: a signal), standard output and error."""

    code: int
    out: str
    err: str

    @property
    def result_path(self) -> Path:
        """Standard output's last line."""
        return Path(self.out.splitlines()[-1])

    @property
    def folder(self) -> Path:
        return self.result_path.parent

    @property
    def result(self) -> dict[str, Any]:
        return json.loads(self.result_path.read_text())

    @property
    def message(self) -> str:
        """The last line on the screen."""
        return self.err.splitlines()[-1] if self.err else ""


class Command:
    """A command that runs; ``place`` holds its working directory, its home and its output."""

    def __init__(self, *arguments: object, place: Path, limits: dict[str, int] | None = None) -> None:
        self.place = place
        for name in ("work", "home"):
            (place / name).mkdir(parents=True, exist_ok=True)
        number = len(list(place.glob("*.out")))
        self.output = place / f"{number}.out"
        for suffix in (".out", ".err"):
            self.output.with_suffix(suffix).touch()
        self.process = forked.start(_answer, [str(a) for a in arguments], str(place), self.output.name, limits or {})

    def wait(self, timeout: float = 120) -> Answer:
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"the command did not end in {timeout} s")
        return Answer(self.process.exitcode, self.output.read_text(), self.shown())

    def shown(self) -> str:
        """Standard error so far."""
        return self.output.with_suffix(".err").read_text()

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)


def runner(*arguments: object, place: Path, limits: dict[str, int] | None = None) -> Answer:
    """`runner ARGUMENTS` to its end."""
    return Command(*arguments, place=place, limits=limits).wait()


def smoke(*arguments: object, place: Path) -> Answer:
    """A smoke run of `supervised`, by default with its run folders below ``place``."""
    return runner(*SMOKE, *arguments, place=place)


def killed_and_repeated(arguments: tuple, place: Path, moments: list[tuple[int, float]]) -> tuple[Answer, int]:
    """Signal 9 at each moment; then the command once more to its end.

    A moment is so many new checkpoint files after the start of the run itself, and so many seconds more: counted in
    files it meets all phases on fast and slow machines alike. Returns the last answer and the number of kills that met
    a live run.
    """
    kills = 0
    for files, delay in moments:
        before, stored = _attempts(place), _stored(place)
        command = Command(*arguments, place=place)

        def ended(process=command.process) -> bool:
            return not process.is_alive()

        until(lambda before=before: _attempts(place) > before or ended())
        until(lambda stored=stored, files=files: len(_stored(place) - stored) >= files or ended())
        command.process.join(delay)
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            command.signal(signal.SIGKILL)
        answer = command.wait()
        if answer.code != -9:  # it was faster
            return answer, kills
        kills += 1
    return runner(*arguments, place=place), kills


def _stored(place: Path) -> set[str]:
    """Every checkpoint file of the runs below ``place``; a state of a loop has a new name each time."""
    return {str(path) for path in (place / "work").glob("runs/*/*/checkpoints/*.pt")}


def _attempts(place: Path) -> int:
    """Attempts over all runs below ``place``: a cell inside a run counts too."""
    found = 0
    for path in (place / "work").glob("runs/*/*/status.json"):
        found += json.loads(path.read_text()).get("attempt", 0)
    return found


def until(condition, seconds: float = 60) -> None:
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("what was waited for did not come")
        time.sleep(0.005)


def metric_lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def outcome(answer: Answer) -> dict[str, Any]:
    """What must be equal to the bit between two runs of one config."""
    result = answer.result
    profile = {name: (item["params"], item["flops"]) for name, item in result["profile"].items()}
    return {
        "metrics": result["metrics"],
        "product": result["product"] and result["product"]["sha256"],
        "profile": profile,
        "lines": metric_lines(answer.folder),
    }


def listing(folder: Path) -> set[str]:
    """Every file and folder below ``folder``."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def _answer(arguments: list[str], place: str, output: str, limits: dict[str, int]) -> int:
    root = Path(place)
    os.chdir(root / "work")
    for name in [name for name in os.environ if name.startswith(("XDG_", "RUNNER_", "WANDB_"))]:
        del os.environ[name]
    os.environ["HOME"] = str(root / "home")
    sys.dont_write_bytecode = True
    for stream, path in ((1, root / output), (2, (root / output).with_suffix(".err"))):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout = os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1)
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    from runner.cli import main

    before = time.process_time()  # modules are loaded in the server that this process was forked from
    code = main(arguments)
    (root / output).with_suffix(".cpu").write_text(str(time.process_time() - before))
    return code
