"""runner compare A B [--format text|json] [paths.runs=DIR]

Two runs side by side: settings that differ, metrics and profile with their differences, code and versions.
A and B are run folders, keys, or unique beginnings of keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.commands import Parser
from runner.commands.runs import print_columns, shown
from runner.errors import UserError
from runner.key import LEFT_OUT
from runner.records import Record, find_run, runs_folder
from runner.registry import flatten

ABSENT = "-"


def parser() -> Parser:
    found = Parser("compare")
    found.add_argument("--format", choices=("text", "json"), default="text")
    return found


def main(arguments: Sequence[str], config_dirs: Sequence[Path]) -> int:
    options = parser().read(arguments)
    names = [word for word in options.words if not word.startswith("paths.runs=")]
    if len(names) != 2:
        raise UserError(f"compare takes two runs, got {len(names)}; `runner runs` shows the keys")
    records = find_all(names, options.words)
    found = comparison(*records)
    if options.format == "json":
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _print(found)
    return 0


def find_all(names: Sequence[str], words: Sequence[str]) -> list[Record]:
    """The runs that ``names`` mean; the place of keys is needed only where a name is not a folder."""
    folder = None if all(Path(name).expanduser().exists() for name in names) else runs_folder(words)[0]
    return [find_run(name, folder) for name in names]


def comparison(first: Record, second: Record) -> dict[str, Any]:
    """What differs, by block; each entry of a block is a name with the two values, None where a run has none.

    Blocks: runs, settings (they decide the result), other_settings (they do not), metrics and profile (all values,
    equal ones too), code (fingerprint, commit, versions, hardware: what differs).
    """
    one, other = dict(flatten(first.config)), dict(flatten(second.config))
    settings = _differing(one, other)
    results = first.result, second.result
    return {
        "runs": {
            "run": [first.name, second.name],
            "state": [first.state, second.state],
            "folder": [str(first.path), str(second.path)],
        },
        "settings": {name: values for name, values in settings.items() if name.partition(".")[0] not in LEFT_OUT},
        "other_settings": {name: values for name, values in settings.items() if name.partition(".")[0] in LEFT_OUT},
        "metrics": _both(first.metrics, second.metrics),
        "profile": _both(*(dict(flatten(result.get("profile") or {})) for result in results)),
        "code": _differing(*map(_code, results)),
    }


def _code(result: Mapping[str, Any]) -> dict[str, Any]:
    parts = {name: result.get(name) for name in ("code", "commit", "uncommitted_changes", "versions", "hardware")}
    return dict(flatten({name: value for name, value in parts.items() if value is not None}))


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: [one.get(name), other.get(name)] for name in {**one, **other}}


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: values for name, values in _both(one, other).items() if values[0] != values[1]}


def _print(found: dict[str, Any]) -> None:
    print_columns([("", "A", "B"), *((name, *values) for name, values in found["runs"].items())])
    _block("settings that differ", found["settings"], "none: the same settings")
    _block("other settings that differ (hardware, tracking ...: not part of the key)", found["other_settings"])
    _block("metrics", found["metrics"], "none: no run is done", difference=True)
    _block("profile", found["profile"], difference=True)
    same = "the same code, versions and machine" if found["metrics"] else "unknown before a run is done"
    _block("code that differs", found["code"], same)


def _block(title: str, values: dict[str, list[Any]], empty: str = "", *, difference: bool = False) -> None:
    if not values and not empty:
        return
    print(f"\n{title}" + ("" if values else f": {empty}"))
    rows = []
    for name, (one, other) in values.items():
        change = (_difference(one, other),) if difference else ()
        rows.append((f"  {name}", _shown(one), _shown(other), *change))
    if rows:
        print_columns([("", "A", "B", "B - A") if difference else ("", "A", "B"), *rows])


def _shown(value: Any) -> str:
    return ABSENT if value is None else shown(value)


def _difference(one: Any, other: Any) -> str:
    if not all(isinstance(value, (int, float)) for value in (one, other)):
        return ABSENT
    difference = other - one
    return "0" if difference == 0 else f"{difference:+,d}" if isinstance(difference, int) else f"{difference:+.4g}"
