"""Tables of trained architectures: what a search looks up instead of training. A CSV file, made here or by a user.

Columns: ``architecture`` (text, the network's argument of this name), ``accuracy_test``, and where they are known
``accuracy_validation``, ``accuracy_search`` (validation after the short training that a search can afford), ``cost``
(of that training, in the unit of a search's budget), and any further ``accuracy_NAME``. Accuracies are 0..1, or percent
in a column that goes above 1.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy

from runner.errors import UserError
from runner.storage import write_atomic

ARCHITECTURE, TEST, VALIDATION, SEARCH, COST = (
    "architecture",
    "accuracy_test",
    "accuracy_validation",
    "accuracy_search",
    "cost",
)


@dataclass(frozen=True)
class ArchitectureTable:
    """``columns``: name -> values (architectures,) float64; accuracies are 0..1."""

    architectures: list[str]
    columns: dict[str, numpy.ndarray]

    def __len__(self) -> int:
        return len(self.architectures)

    @property
    def validation(self) -> numpy.ndarray:
        """The accuracy by which architectures are compared: validation, or test where there is no other."""
        return self.columns.get(VALIDATION, self.columns[TEST])

    @property
    def searched(self) -> numpy.ndarray:
        """The accuracy that a search is shown when it trains one."""
        return self.columns.get(SEARCH, self.validation)

    def accuracies(self) -> dict[str, numpy.ndarray]:
        """Name of a metric -> values: the test accuracy is ``accuracy``."""
        named = {name: values for name, values in self.columns.items() if name.startswith("accuracy_")}
        return {"accuracy": named.pop(TEST), **named}

    def write(self, path: Path) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([ARCHITECTURE, *self.columns])
        for number, architecture in enumerate(self.architectures):
            writer.writerow([architecture, *(repr(float(values[number])) for values in self.columns.values())])
        write_atomic(path, text.getvalue())


def read_table(path: str | Path) -> ArchitectureTable:
    """The table of a CSV file.

    Raises:
        UserError: no such file, no such columns, something that is no number, the same architecture twice.
    """
    file = Path(path).expanduser()
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: this table of architectures cannot be read ({error})") from error
    missing = [name for name in (ARCHITECTURE, TEST) if not rows or name not in rows[0]]
    if missing:
        raise UserError(f"{path}: a table of architectures needs rows, and the column {missing[0]}")
    architectures = [row[ARCHITECTURE] for row in rows]
    if len(set(architectures)) < len(architectures):
        raise UserError(f"{path}: an architecture stands there twice")
    columns = {}
    for name in rows[0]:
        if name == COST or (name or "").startswith("accuracy_"):
            columns[name] = _numbers([row[name] for row in rows], f"{path}, column {name}")
    for name, values in columns.items():
        if name != COST and values.max() > 1:
            columns[name] = values / 100
    return ArchitectureTable(architectures, columns)


def _numbers(texts: list[str | None], where: str) -> numpy.ndarray:
    for line, text in enumerate(texts, 2):
        try:
            found = float(text or "")
        except ValueError:
            found = float("nan")
        if not 0 <= found < float("inf"):
            raise UserError(f"{where}, line {line}: '{text or ''}' is no number of at least 0")
    return numpy.array([float(text) for text in texts])


def parts(architectures: list[str]) -> numpy.ndarray:
    """(architectures, parts) of integers: equal numbers in a column stand for equal parts of the text.

    A part is what stands between the signs | and +. Raises UserError: they differ in their number of parts.
    """
    split = [re.findall(r"[^|+]+", text) for text in architectures]
    if len({len(row) for row in split}) > 1:
        raise UserError("the table's architectures differ in their number of parts (between | and +): none mutates")
    columns = [numpy.unique(column, return_inverse=True)[1] for column in zip(*split, strict=True)]
    return numpy.stack(columns, 1)


def mutant(codes: numpy.ndarray, parent: int, random: numpy.random.Generator) -> int:
    """One of the architectures nearest to ``parent`` in the table, drawn uniformly.

    Nearest: in the fewest parts another; in a full table one part, as regularised evolution has it. ``codes`` are those
    of ``parts``. Raises UserError: the table holds a single architecture.
    """
    distance = (codes != codes[parent]).sum(1)
    others = distance[distance > 0]
    if not len(others):
        raise UserError("an evolution needs a table of two architectures at least")
    return int(random.choice(numpy.flatnonzero(distance == others.min())))
