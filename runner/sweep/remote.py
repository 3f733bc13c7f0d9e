"""A cell on a worker of another engine: the run in a process of its own, so that its death is seen and named there."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from pathlib import Path
from typing import Any

from runner.folder import process_start
from runner.sweep.launchers import signal_process, start_process

POLL_SECONDS = 0.5


class RemoteCell:
    """Called on the worker with the cell's specification; returns its exit code (negative: the signal that killed it).

    ``stop`` is a file on the shared file system: the number in it is the signal to send. ``owner`` is the sweep's
    process (pid, start) where the cells are to end with it.
    """

    def __init__(self, folder: str, stop: str, owner: tuple[int, float | None] | None) -> None:
        self._folder, self._stop, self._owner = folder, Path(stop), owner
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self, told: dict[str, Any], log: str, environment: dict[str, str]) -> int:
        from runner.errors import StopRequested
        from runner.folder import RunFolder
        from runner.sweep.cell import settle

        if self._asked():
            return StopRequested.exit_code
        self._child = start_process(told, Path(log), environment)
        sent = 0
        while self._child.poll() is None:
            number = self._asked()
            if number > sent and number != 0:
                signal_process(self._child, number)
                sent = number
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(POLL_SECONDS)
        code = self._child.returncode
        if code < 0 and not sent:
            settle(RunFolder(Path(self._folder)), "failed", f"{killed_by(code)}\n\nOutput: {log}\n")
        return code

    def checkpoint(self, *arguments: Any) -> Any:
        """Asked by submitit before a time limit or a preemption: the run saves, the job is queued again."""
        import submitit

        if self._child is not None:
            signal_process(self._child, signal.SIGTERM)
            self._child.wait()
        self._child = None
        return submitit.helpers.DelayedSubmission(self, *arguments)

    def _asked(self) -> int:
        try:
            return int(self._stop.read_text())
        except (OSError, ValueError):
            pass
        if self._owner is not None and process_start(self._owner[0]) != self._owner[1]:
            return signal.SIGTERM
        return 0


def killed_by(code: int) -> str:
    """The name of the signal behind a negative exit code."""
    return f"killed by signal {-code} ({signal.Signals(-code).name})"
