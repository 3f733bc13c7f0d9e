"""runner runs [FILTERS] [--format text|csv|json] [paths.runs=DIR]

Past runs, the latest last: key, state, what was run, settings that differ from the defaults, metrics, age, disk.
A run whose process died is "interrupted"; the command that started it goes on with it.
Filters compare a column, a setting or a metric; all must hold. Quote < and > for the shell, wildcards too:
  runner runs method=ekg dataset=digits state=failed
  runner runs 'accuracy>0.9' recipe.epochs=10 'model=resnet*' 'age_days<7' state!=done
csv and json hold every metric, the profile and the folder; text is never cut when piped.
"""

from __future__ import annotations

import csv
import json
import operator
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from runner.commands import Parser
from runner.errors import UserError, did_you_mean
from runner.records import STATES, Defaults, Record, find_runs, no_runs, runs_folder, unknown_name
from runner.registry import flatten

COLUMNS = ("key", "state", "method", "model", "dataset", "scale", "seed")
_FILTER = re.compile(r"([\w.\[\]/ -]+?)\s*(!=|>=|<=|=|>|<)\s*(.*)", re.DOTALL)
_ORDER: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


def parser() -> Parser:
    found = Parser("runs")
    found.add_argument("--format", choices=("text", "csv", "json"), default="text")
    return found


def main(arguments: Sequence[str], config_dirs: Sequence[Path]) -> int:
    options = parser().read(arguments)
    folder, words = runs_folder(options.words)
    filters = [Filter.read(word) for word in words]
    records = sorted(find_runs(folder), key=lambda record: record.changed)
    if not records:
        raise no_runs(folder)
    defaults = Defaults(config_dirs)
    rows = [row(record, defaults) for record in fitting(records, filters)]
    {"text": _text, "csv": _csv, "json": _json}[options.format](rows)
    if not rows:
        print(f"runner: none of {len(records)} runs in {folder} fits the filters", file=sys.stderr)
    return 0


def fitting(records: Sequence[Record], filters: Sequence[Filter]) -> list[Record]:
    """The runs for which all filters hold.

    Raises:
        UserError: a filter names what no run has.
    """
    values = [lookup(record) for record in records]
    for one in filters:
        if not any(one.name in known for known in values):
            raise unknown_name(one.name, sorted(set().union(*values)))
    return [record for record, known in zip(records, values, strict=True) if all(one.holds(known) for one in filters)]


def head(record: Record) -> dict[str, Any]:
    """The columns that say what was run."""
    config, result = record.config, record.result
    names = {
        name: config.get(name, {}).get("name", result.get(name)) for name in ("method", "model", "dataset", "scale")
    }
    return {"key": record.key, "state": record.state, **names, "seed": config.get("seed", result.get("seed"))}


def lookup(record: Record) -> dict[str, Any]:
    """Every name that a filter can use, with its value for this run: columns, settings, metrics, profile."""
    profile = flatten({"profile": record.result.get("profile") or {}})
    recipe = record.config.get("recipe", {}).get("name")
    return {
        **dict(profile),
        **dict(flatten(record.config)),
        **{f"metrics.{name}": value for name, value in record.metrics.items()},
        **record.metrics,
        **({"recipe": recipe} if recipe else {}),
        "age_days": record.age_days,
        **head(record),
    }


def row(record: Record, defaults: Defaults) -> dict[str, Any]:
    """All that is told of a run; sizes in bytes, times in seconds."""
    return {
        **head(record),
        "settings": defaults.differences(record.config),
        "metrics": record.metrics,
        "profile": record.result.get("profile") or {},
        "seconds": record.status.get("seconds"),
        "age_seconds": round(record.age_days * 86400),
        "disk_bytes": record.disk_bytes,
        "folder": str(record.path),
    }


@dataclass(frozen=True)
class Filter:
    """``name OPERATOR value``; text is compared with shell wildcards, numbers as numbers."""

    name: str
    sign: str
    value: str

    @classmethod
    def read(cls, word: str) -> Filter:
        match = _FILTER.fullmatch(word)
        if match is None:
            raise UserError(f"'{word}' is not a filter: expected NAME=VALUE, or 'NAME>NUMBER' in quotes")
        name, sign, value = match.groups()
        if sign in _ORDER and _number(value) is None:
            raise UserError(f"'{word}': {sign} compares numbers, and '{value}' is none")
        if name == "state" and not any(fnmatchcase(state, value) for state in STATES):
            raise UserError(f"'{word}': no such state; {did_you_mean(value, STATES)}")
        return cls(name, sign, value)

    def holds(self, values: dict[str, Any]) -> bool:
        """Whether it holds for a run; a run without the value fits nothing but ``!=``."""
        if self.name not in values:
            return self.sign == "!="
        found, wanted = values[self.name], _number(self.value)
        is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
        if self.sign in _ORDER:
            return is_number and _ORDER[self.sign](found, wanted)
        equal = found == wanted if is_number and wanted is not None else fnmatchcase(shown(found), self.value)
        return equal == (self.sign == "=")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def shown(value: Any) -> str:
    """A setting as it is written on the command line, a number in four digits if it is a fraction."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def size(count: int) -> str:
    """Bytes in words."""
    value, units = float(count), ["B", "kB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 10 else f"{value:.1f} {units[0]}"


def age(seconds: float) -> str:
    """Seconds in words: 40 s, 12 min, 5 h, 3 d."""
    for limit, unit, length in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def pairs(values: dict[str, Any]) -> str:
    """``name=value`` in one line, or a dash."""
    return " ".join(f"{name}={shown(value)}" for name, value in values.items()) or "-"


def _text(rows: list[dict[str, Any]]) -> None:
    table = [(*COLUMNS, "age", "disk", "settings", "metrics")] if rows else []
    for item in rows:
        texts = [shown(item[name]) for name in COLUMNS]
        texts += [age(item["age_seconds"]), size(item["disk_bytes"]), pairs(item["settings"]), pairs(item["metrics"])]
        table.append(tuple(texts))
    print_columns(table)


def print_columns(table: Sequence[tuple[str, ...]]) -> None:
    """Aligned columns; lines are cut at the width of a terminal, never when piped."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for texts in table:
        line = "  ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True)).rstrip()
        print(line if limit is None or len(line) <= limit else line[: limit - 1] + "…")


def _csv(rows: list[dict[str, Any]]) -> None:
    flat = [{**dict(flatten(item)), "settings": pairs(item["settings"])} for item in rows]
    for one in flat:
        for name in [name for name in one if name.startswith("settings.") or one[name] == {}]:
            del one[name]
    names = list(dict.fromkeys(name for one in flat for name in one))
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)


def _json(rows: list[dict[str, Any]]) -> None:
    print(json.dumps(rows, indent=2, ensure_ascii=False))
