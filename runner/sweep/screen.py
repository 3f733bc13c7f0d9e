"""The screen of a whole sweep: one live table on a terminal, plain lines elsewhere; everything on standard error."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from runner.progress import can_redraw, format_seconds, format_values
from runner.sweep.planning import Cell

if TYPE_CHECKING:
    from runner.sweep.engine import Sweep

REDRAW_SECONDS = 0.5
PLAIN_SECONDS = 30.0
ROWS = 12  # running cells that are shown one by one


class Screen:
    """Shows a running sweep; a context manager."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._live: Any = None
        self._due = 0.0
        self._last_error = ""

    def __enter__(self) -> Screen:
        sweep = self._sweep
        queued, cached = len(sweep.of("queued")), len(sweep.of("cached"))
        at_once = min(len(sweep.layout.slots), queued)
        self.say(f"sweep {sweep.folder.name}: {len(sweep.cells)} cells, {cached} cached, {queued} to run"
                 f" by {sweep.launcher_name}, {at_once} at once")  # fmt: skip
        if can_redraw(sys.stderr):
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(file=sys.stderr), auto_refresh=False, transient=True,
                redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._live.start()
        self._due = time.monotonic() + (0 if self._live else PLAIN_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
            return
        try:
            print(text, file=sys.stderr, flush=True)
        except OSError:  # the reader of standard error is gone: that must not end the sweep
            return

    def ended(self, cell: Cell) -> None:
        """A cell came to an end."""
        total = len(self._sweep.cells)
        number = total - len(self._sweep.of("queued", "running", "waiting"))
        parts = [f"{number}/{total} {cell.state}: {cell.label}"]
        if cell.seconds:
            parts.append(f"in {format_seconds(cell.seconds)}")
        if cell.state == "done" and cell.result:
            parts.append(format_values(dict(list(cell.result["metrics"].items())[:3])))
        if cell.state == "failed":
            self._last_error = f"{cell.label}: {cell.error}"
            parts.append(cell.error or "")
        self.say("  ".join(parts))

    def update(self) -> None:
        """Redraws when that is due."""
        now = time.monotonic()
        if now < self._due:
            return
        if self._live is None:
            self._due = now + PLAIN_SECONDS
            running = "; ".join(_running(cell) for cell in self._sweep.of("running")[:3])
            self.say(f"{self._counts()}  {running}".rstrip())
        else:
            from rich.text import Text

            self._due = now + REDRAW_SECONDS
            running = self._sweep.of("running")
            lines = [self._counts(), *(f"  {_running(cell)}" for cell in running[:ROWS])]
            lines += [f"  and {len(running) - ROWS} more"] if len(running) > ROWS else []
            lines += [f"  last error: {self._last_error}"] if self._last_error else []
            self._live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)

    def _counts(self) -> str:
        sweep = self._sweep
        words = ("done", "cached", "running", "failed", "stopped", "waiting", "queued")
        parts = [f"{count} {word}" for word in words if (count := len(sweep.of(word)))]
        seconds = [cell.seconds for cell in sweep.of("done") if cell.seconds]
        left = len(sweep.of("queued", "running"))
        if seconds and left and not sweep.stopping:
            at_once = max(1, len(sweep.of("running")))
            parts.append(f"about {format_seconds(sum(seconds) / len(seconds) * left / at_once)} left")
        return ", ".join(parts)


def _running(cell: Cell) -> str:
    elapsed = time.time() - cell.started
    status = cell.folder.status() if elapsed > 2 else {}
    phase = f"  {status['phase']} step {status.get('step', 0)}" if status.get("phase") else ""
    return f"{cell.label}  {format_seconds(elapsed)}{phase}"
