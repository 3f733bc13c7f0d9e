"""profile=true: a torch.profiler trace of some steps of the first loops, and their most expensive operators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import torch
from torch.profiler import ProfilerActivity, profile

from runner.storage import replace_atomic, write_atomic

if TYPE_CHECKING:
    from runner.loop import Loop

LOOPS = 3  # outermost ones; what they hold is traced with them
WARM_UP, STEPS = 2, 5
OPERATORS = 10


class Trace:
    """Traces steps ``WARM_UP`` .. ``WARM_UP + STEPS`` of each of the first loops; a short loop to its end.

    Writes NAME.json.gz for chrome://tracing or Perfetto, and NAME.txt with the operators that took most time, which it
    also shows by ``say``. Changes no result.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self._begun = 0
        self._loop: Loop | None = None
        self._done = self._first = 0
        self._profile: profile | None = None

    def begin(self, loop: Loop) -> None:
        """A loop is about to run its first step of this attempt."""
        if self._loop is not None or self._begun == LOOPS:
            return
        self._loop, self._done = loop, 0
        self._begun += 1
        planned = WARM_UP + 1 if loop.total is None else loop.total - loop.position
        self._first = max(0, min(WARM_UP, planned - 1))
        if self._first == 0:
            self._start()

    def after_step(self, loop: Loop) -> None:
        """A step of any loop ended."""
        if loop is not self._loop:
            return
        self._done += 1
        if self._done == self._first:
            self._start()
        elif self._done == self._first + STEPS:
            self._stop()

    def end(self, loop: Loop) -> None:
        """A loop was left, however."""
        if loop is self._loop:
            self._stop()
            self._loop = None

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._profile.start()

    def _stop(self) -> None:
        if self._profile is None:
            return
        found, self._profile = self._profile, None
        found.stop()
        name = self._loop.path
        steps = self._done - self._first
        if not steps:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{quote(name, safe=' ')}.json.gz"
        # the profiler compresses by the name, and the temporary file has another ending
        replace_atomic(path, lambda temporary: _export(found, temporary))
        table = f"{name}: {steps} step{'s' * (steps > 1)} from step {self._first + 1} on\n{operators(found)}"
        write_atomic(path.with_suffix("").with_suffix(".txt"), table + "\n")
        self.say(f"profile of {table}\ntrace: {path}")


def _export(found: profile, path: Path) -> None:
    compressed = path.with_name(f"{path.name}.json.gz")
    try:
        found.export_chrome_trace(str(compressed))
        compressed.replace(path)
    finally:
        compressed.unlink(missing_ok=True)


def operators(found: profile) -> str:
    """The operators with the largest own time: on the GPU where there is one, else on the CPU; times in ms."""
    events = found.key_averages()
    on_gpu = any(event.self_device_time_total for event in events)
    where = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    whole = sum(getattr(event, where) for event in events) or 1.0
    events = sorted(events, key=lambda event: getattr(event, where), reverse=True)[:OPERATORS]
    lines = [f"{'operator':<48}{'calls':>8}{'GPU ms' if on_gpu else 'CPU ms':>12}{'share':>8}"]
    for event in events:
        own = getattr(event, where)
        lines.append(f"{event.key[:47]:<48}{event.count:>8}{own / 1000:>12.2f}{own / whole:>8.1%}")
    return "\n".join(lines)
