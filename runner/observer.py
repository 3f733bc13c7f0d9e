"""One face for the display, metrics.jsonl and log.txt: what the durable verbs and the context report to."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from runner.metrics import MetricsFile
    from runner.progress import Progress


class Silent:
    """An observer, and a display, of a rank above 0: rank 0 reports for all."""

    def phase(self, name: str, total: int | None) -> None: ...
    def advance(self, step: int, values: dict[str, float]) -> None: ...
    def end_phase(self, seconds: float) -> None: ...
    def say(self, text: str) -> None: ...
    def write(self, phase: str, step: int, values: dict[str, float]) -> None: ...
    def rewind(self, position: int) -> None: ...

    def position(self) -> int:
        return 0


class RunObserver:
    """Reports one run. A cell inside it has an observer of its own that shares the display."""

    def __init__(self, progress: Progress, metrics: MetricsFile, log: Path, prefix: str = "") -> None:
        self.progress = progress
        self.metrics = metrics
        self.log = log
        self.prefix = prefix
        self.now = ("", 0)  # phase and step, for status.json
        with contextlib.suppress(OSError):
            log.touch()  # every run has one, also a cell with nothing to say until it is resumed

    def phase(self, name: str, total: int | None) -> None:
        """A verb begins."""
        self.now = (name, 0)
        self.progress.phase(self.prefix + name, total)

    def advance(self, step: int, values: dict[str, float]) -> None:
        """A step ended; called every step, so it does next to nothing unless the display is due."""
        self.now = (self.now[0], step)
        self.progress.advance(step, values)

    def end_phase(self, seconds: float) -> None:
        """The verb ended."""
        self.progress.end_phase(seconds)

    def say(self, text: str) -> None:
        """One line to the screen and to log.txt."""
        self.progress.say(text)
        try:
            with self.log.open("a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        except OSError:
            self.progress.say(f"(log.txt cannot be written: {self.log})")

    def write(self, phase: str, step: int, values: dict[str, float]) -> None:
        """Values of a step, already read."""
        self.metrics.write(phase, step, values)

    def position(self) -> int:
        """Lines of metrics.jsonl, everything written so far included."""
        return self.metrics.position()

    def rewind(self, position: int) -> None:
        """The next write comes after line ``position``; what stands there now is dropped then."""
        self.metrics.rewind(position)
