"""What a run shows while it goes: a live line on a terminal, plain lines elsewhere; everything on standard error.

``advance`` is called every step, so it only stores its arguments until the display is due. Nothing runs in a thread:
a display thread would compete with the loop for the interpreter.
"""

from __future__ import annotations

import io
import os
import sys
from time import perf_counter
from typing import Any, TextIO

TERMINAL_SECONDS = 1 / 8
PLAIN_SECONDS = 10.0
MAX_VALUES = 6  # of a step's values, as many as fit a line


class Progress:
    """Shows phases, steps, rate, remaining time and the last values of a run.

    Args:
        stream: where to write; standard error by default.
        plain: True: lines without control codes; None: a live display if ``stream`` is a terminal that can show one.
    """

    def __init__(self, stream: TextIO | None = None, *, plain: bool | None = None) -> None:
        self._stream = stream or sys.stderr
        self._plain = plain if plain is not None else not can_redraw(self._stream)
        self._interval = PLAIN_SECONDS if self._plain else TERMINAL_SECONDS
        self._bar: Any = None  # rich.progress.Progress between the first phase and close()
        self._task: Any = None
        self._open: list[_Phase] = []  # a phase and those inside it; the last one is shown
        self._due = perf_counter() + self._interval if self._plain else 0.0

    def phase(self, name: str, total: int | None) -> None:
        """Begin a phase of ``total`` steps (None: unknown); ``outer[3]/name`` is one inside step 3 of ``outer``."""
        while self._open and not name.startswith(f"{self._open[-1].name}["):
            self._open.pop()  # it was left without an end
        self._open.append(_Phase(name, total))
        if not self._plain and self._bar is None:
            self._show_bar()
        self._refresh(perf_counter(), begins=len(self._open) == 1)

    def advance(self, step: int, values: dict[str, float]) -> None:
        """``step`` steps of the phase are finished; ``values`` are the last ones read (kept by reference)."""
        if not self._open:
            return
        phase = self._open[-1]
        phase.step = step
        phase.values = values
        now = perf_counter()
        if phase.start is None:
            phase.start = (step, now)
        if now >= self._due:
            self._refresh(now)

    def end_phase(self, seconds: float) -> None:
        """The phase is finished and took ``seconds`` over all attempts; an outermost one stays as a line."""
        phase = self._open.pop() if self._open else None
        if phase is None or self._open:
            return
        if self._bar is not None:
            self._draw(visible=False)  # until the next phase begins
        parts = [f"{phase.step} step{'s' * (phase.step != 1)}"] if phase.step else []
        parts += [format_values(phase.values)] if phase.values else []
        self.say(f"{phase.name}: finished in {format_seconds(seconds)}" + "".join(f", {part}" for part in parts))

    def say(self, text: str) -> None:
        """One line of text, above the live display."""
        try:
            if self._bar is not None:
                self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                self._stream.write(text + "\n")
                self._stream.flush()
        except (OSError, ValueError):  # the reader of standard error is gone: that must not end the run
            self._silence()

    def close(self) -> None:
        """Restore the terminal; a phase that was not ended (a stop, a failure) keeps its last state as a line."""
        bar, self._bar = self._bar, None
        if bar is not None:
            try:
                bar.stop()
            except (OSError, ValueError):
                self._silence()
        if self._open and self._open[0].step:
            self.say(self._open[0].line(perf_counter()))
        self._open.clear()

    def _refresh(self, now: float, *, begins: bool = False) -> None:
        phase = self._open[-1]
        if self._plain:
            if not begins and now >= self._due:
                self._due = now + self._interval
                self.say(phase.line(now))
        elif self._bar is not None and (begins or now >= self._due):
            self._due = now + self._interval
            self._bar.tasks[0].total = phase.total  # update() takes None for "unchanged"
            status = phase.line(now, name=False)
            self._draw(visible=True, description=phase.name, completed=phase.step, status=status)

    def _draw(self, **changes: Any) -> None:
        try:
            self._bar.update(self._task, refresh=True, **changes)
        except (OSError, ValueError):
            self._silence()

    def _show_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        try:
            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[status]}", markup=False, table_column=Column(no_wrap=True)),
                console=Console(file=self._stream),  # honours NO_COLOR
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._bar.add_task("", total=None, status="")
            self._bar.start()
        except (OSError, ValueError):
            self._silence()

    def _silence(self) -> None:
        self._bar = None
        self._plain = True
        self._due = self._interval = float("inf")
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, self._stream.fileno())  # else the interpreter fails at its end, when it flushes the stream
        except (OSError, ValueError):
            self._stream = io.StringIO()
        finally:
            os.close(null)


class _Phase:
    __slots__ = ("name", "start", "step", "total", "values")

    def __init__(self, name: str, total: int | None) -> None:
        self.name, self.total = name, total
        self.step = 0
        self.values: dict[str, float] = {}
        self.start: tuple[int, float] | None = None  # step and time of the first advance: a resume starts late

    def line(self, now: float, name: bool = True) -> str:
        parts = [self.name] if name else []
        if self.step or self.total is not None:
            parts.append(f"step {self.step}" + (f"/{self.total}" if self.total is not None else ""))
        first_step, began = self.start or (self.step, now)
        if self.step > first_step and now > began:
            rate = (self.step - first_step) / (now - began)
            parts.append(f"{rate:.3g} step/s" if rate < 1000 else f"{rate:,.0f} step/s")
            if self.total is not None and self.total > self.step:
                parts.append(f"{format_seconds((self.total - self.step) / rate)} left")
        if self.values:
            parts.append(format_values(self.values))
        return "  ".join(parts)


def can_redraw(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal that understands cursor movement."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def format_seconds(seconds: float) -> str:
    """``8.3 s``, ``4:05``, ``1:02:03``: seconds below two minutes, else [hours:]minutes:seconds."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_values(values: dict[str, float]) -> str:
    """``loss 0.5321  accuracy 0.98``: four digits, at most ``MAX_VALUES`` of them."""
    return "  ".join(f"{name} {value:.4g}" for name, value in list(values.items())[:MAX_VALUES])


def closing_table(result: dict[str, Any]) -> str:
    """The table that ends a run, as aligned plain text without a final newline.

    Args:
        result: as stored in result.json; read are ``metrics`` (name -> number) and ``profile`` with ``baseline`` and
            ``final``: params, flops (integers), latency_ms (batch size -> milliseconds). Any of them may be absent.
    """
    blocks = []
    if metrics := result.get("metrics"):
        blocks.append(_align([(name, _number(value)) for name, value in metrics.items()]))
    profile = result.get("profile") or {}
    before, after = _profile_rows(profile.get("baseline")), _profile_rows(profile.get("final"))
    if before and after:
        rows = [("", "before", "after", "after / before")]
        for name in before | after:
            old, new = before.get(name), after.get(name)
            ratio = f"{new / old:.3f}" if old and new is not None else "-"
            rows.append((name, _number(old), _number(new), ratio))
        blocks.append(_align(rows))
    elif only := before or after:
        blocks.append(_align([(name, _number(value)) for name, value in only.items()]))
    return "\n\n".join(blocks)


def _profile_rows(profile: dict[str, Any] | None) -> dict[str, float]:
    if not profile:
        return {}
    rows = {"parameters": profile.get("params"), "FLOPs": profile.get("flops")}
    for batch, milliseconds in (profile.get("latency_ms") or {}).items():
        rows[f"latency at batch {batch} (ms)"] = milliseconds
    return {name: value for name, value in rows.items() if value is not None}


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4f}" if isinstance(value, float) and 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


def _align(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        padded = [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)
