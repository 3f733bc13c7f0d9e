"""metrics.jsonl, the record of a run: one JSON object a line, ``{"phase": ..., "step": ..., "time": ..., values}``.

``time`` is in seconds since 1970. A value that is not finite is written as the string "nan", "inf" or "-inf", since
JSON has no such numbers; ``read_metrics`` turns it back. Every other float is written as ``repr`` writes it, so a
resumed run's file equals an undisturbed one's but for the times.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from time import time
from typing import Any

FLUSH_SECONDS = 1.0
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

_encode = json.JSONEncoder(allow_nan=False, separators=(", ", ": ")).encode


class MetricsFile:
    """Appends lines to ``path``; they reach the file a second later at most, at ``flush`` and at ``close``.

    A file that exists is written anew unless ``rewind`` says from where it goes on.

    Raises:
        OSError: the file cannot be opened, or (from any method) the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self._path = Path(path)
        self._lines: list[str] = []
        self._due = 0.0
        self._file = _open(self._path)
        self._rewind_to: int | None = 0
        self._count = 0  # lines in the file

    def write(self, phase: str, step: int, values: dict[str, float]) -> None:
        """One line. ``values`` are Python numbers, already read from the device."""
        now = time()
        row: dict[str, Any] = {"phase": phase, "step": step, "time": round(now, 3), **values}
        try:
            line = _encode(row)
        except ValueError:
            line = _encode({name: _finite(value) for name, value in row.items()})
        self._lines.append(line)
        if now >= self._due:
            self.flush()

    def flush(self) -> None:
        """Hand every line to the operating system: it then survives the death of this process."""
        if self._lines:
            self._cut()
            data = memoryview(("\n".join(self._lines) + "\n").encode())
            while data:
                data = data[os.write(self._file, data) :]
            self._count += len(self._lines)
            self._lines.clear()
        self._due = time() + FLUSH_SECONDS

    def position(self) -> int:
        """How many lines the file has after a flush: what a checkpoint stores for ``rewind``.

        Lines, not bytes: a line that a resumed run writes again has another time, perhaps in another length.
        """
        self._cut()
        self.flush()
        return self._count

    def rewind(self, position: int) -> None:
        """What was written after ``position()`` gave this number is dropped as soon as something is written again.

        Not at once: a resume passes over many stored positions, and only the last one counts.
        """
        self.flush()
        self._rewind_to = position

    def close(self) -> None:
        """Flush and close; closing twice is allowed."""
        if self._file >= 0:
            try:
                self.flush()
            finally:
                os.close(self._file)
                self._file = -1

    def _cut(self) -> None:
        if self._rewind_to is None:
            return
        end, self._count = _end_of_line(self._path, self._rewind_to)
        if end < os.fstat(self._file).st_size:
            # A new file in place of the old one, not a shorter one: who follows it (W&B) can tell.
            new = self._path.with_name(self._path.name + ".new")
            with self._path.open("rb") as old, new.open("wb") as file:
                file.write(old.read(end))
            new.replace(self._path)
            os.close(self._file)
            self._file = _open(self._path)
        self._rewind_to = None


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a metrics.jsonl in order, numbers restored; a torn last line is left out."""
    with Path(path).open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            row = json.loads(line)
            phase = row.pop("phase")
            yield {"phase": phase, **{name: NOT_FINITE.get(value, value) for name, value in row.items()}}


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def _finite(value: Any) -> Any:
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value


def _end_of_line(path: Path, count: int) -> tuple[int, int]:
    """Bytes up to and with newline number ``count``, or the last one there is; and how many newlines that are."""
    end = lines = 0
    with path.open("rb") as file:
        for line in file:
            if lines == count or not line.endswith(b"\n"):  # a process killed while writing leaves a torn line
                break
            end += len(line)
            lines += 1
    return end, lines
