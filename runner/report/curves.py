"""Learning curves out of metrics.jsonl, thinned where a page would become too large."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.metrics import NOT_FINITE


@dataclass
class Curve:
    """One metric of one phase. ``steps`` and ``values`` have equal length, at most ``total``; nan stands for a value
    that is not finite, of which the file has ``not_finite``."""

    phase: str
    metric: str
    steps: array[float]
    values: array[float]
    total: int = 0
    not_finite: int = 0

    def thin(self, limit: int) -> None:
        """Keeps at most ``limit`` points (>= 4): first, last, and smallest and largest of equally long stretches.

        So a peak stays a peak. Thinning a thinned curve gives points of the original curve too.
        """
        if len(self.values) <= limit:
            return
        kept = sorted(_extremes(self.values, limit))
        self.steps = array("d", (self.steps[i] for i in kept))
        self.values = array("d", (self.values[i] for i in kept))


def _extremes(values: array[float], limit: int) -> set[int]:
    last = len(values) - 1
    kept = {0, last}
    stretches = (limit - 2) // 2
    for number in range(stretches):
        start, end = (1 + (last - 1) * part // stretches for part in (number, number + 1))
        finite = [i for i in range(start, end) if math.isfinite(values[i])]
        if finite:
            kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
        else:
            kept.add(start)  # a stretch without a value stays a gap
    return kept


def read_curves(path: Path, limit: int) -> tuple[list[Curve], int]:
    """The curves of a metrics.jsonl in the order of their first points, each of ``limit`` points at most.

    Returns them with the number of lines that are no record; a torn last line is not counted (the file of a live run
    may end in one), nor is a missing file.
    """
    found: dict[tuple[str, str], Curve] = {}
    bad = 0
    for row in _rows(path):
        if row is None:
            bad += 1
            continue
        phase, step = str(row.pop("phase")), row.pop("step")
        row.pop("time", None)
        for metric, value in row.items():
            if isinstance(value, str):
                value = NOT_FINITE.get(value)
            if not isinstance(value, (int, float)):
                continue
            curve = found.get((phase, metric))
            if curve is None:
                curve = found[phase, metric] = Curve(phase, metric, array("d"), array("d"))
            finite = math.isfinite(value)
            curve.steps.append(step)
            curve.values.append(value if finite else math.nan)
            curve.total += 1
            curve.not_finite += not finite
    for curve in found.values():
        curve.thin(limit)
    return list(found.values()), bad


def _rows(path: Path) -> Iterator[dict | None]:
    """None for a line that is no record."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if not line.endswith("\n"):
                    return
                try:
                    row = json.loads(line)
                except ValueError:
                    yield None
                    continue
                known = isinstance(row, dict) and "phase" in row and _is_number(row.get("step"))
                yield row if known else None
    except FileNotFoundError:
        return


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def fit_budget(curves: Iterable[Curve], points: int, least: int = 20) -> None:
    """Thins all curves alike, so that together they have about ``points`` points; none goes below ``least``.

    Curves that are short leave their share to the long ones.
    """
    shortest_first = sorted(curves, key=lambda curve: len(curve.values))
    for place, curve in enumerate(shortest_first):
        share = max(least, points // (len(shortest_first) - place))
        curve.thin(share)
        points -= len(curve.values)
