"""runner list [methods|models|datasets|recipes|scales|hardware|tracking|tables] [PATTERN]

What there is, one line each. Methods stand by family, with the fidelity of the implementation:
  official        checked against the authors' released code
  paper           from the full text of the paper
  reconstruction  the text leaves gaps; `runner show METHOD` says how they were filled
PATTERN has shell wildcards (quote it): runner list 'ek*', runner list models 'resnet*'
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from runner import registry
from runner.errors import UserError, did_you_mean

KINDS = {plural: group for group, plural in registry.PLURALS.items()}


def main(arguments: Sequence[str], config_dirs: Sequence[Path]) -> int:
    path = registry.search_path(config_dirs)
    kind, pattern = _request(list(arguments))
    rows = _methods(pattern, path) if kind == "method" else _others(kind, pattern, path)
    if not rows:
        known = registry.choices(kind, path)
        what = f"match '{pattern}'; {did_you_mean(pattern, known)}" if known else "are here yet"
        raise UserError(f"no {registry.PLURALS[kind]} {what}")
    _print(rows)
    if sys.stdout.isatty() and kind == "method":
        print(f"\nalso: {', '.join(f'runner list {plural}' for plural in KINDS if plural != 'methods')}")
    return 0


def _request(arguments: list[str]) -> tuple[str, str]:
    kind = "methods"
    if arguments and (arguments[0] in KINDS or arguments[0] in KINDS.values()):
        kind = arguments.pop(0)
    elif len(arguments) > 1 or (
        arguments and not any(sign in arguments[0] for sign in "*?[") and _is_kind(arguments[0])
    ):
        raise UserError(f"unknown list '{arguments[0]}'; {did_you_mean(arguments[0], KINDS)}")
    if len(arguments) > 1:
        raise UserError(
            f"one pattern at a time, got {' '.join(arguments)} (quote wildcards, so that the shell keeps them)"
        )
    return KINDS.get(kind, kind), arguments[0] if arguments else "*"


def _is_kind(word: str) -> bool:
    """Whether a word reads like a misspelt kind rather than a method's name."""
    import difflib

    return bool(difflib.get_close_matches(word, KINDS, n=1, cutoff=0.75))


def _methods(pattern: str, path: Sequence[Path]) -> list[tuple[str, ...]]:
    found = [registry.describe(name, path) for name in registry.methods(path)]
    found = [item for item in found if fnmatchcase(item.name, pattern) or fnmatchcase(item.family, pattern)]
    rows: list[tuple[str, ...]] = []
    for family in sorted({item.family for item in found}):
        rows.append((family,))
        rows += [(f"  {item.name}", item.fidelity or "-", item.title) for item in found if item.family == family]
    return rows


def _others(group: str, pattern: str, path: Sequence[Path]) -> list[tuple[str, ...]]:
    rows = []
    for name, file in registry.choices(group, path).items():
        if fnmatchcase(name, pattern):
            title = registry.read_yaml(file).get("title") if group == "table" else None
            rows.append((name, str(title or registry.comment(file))))
    return rows


def _print(rows: list[tuple[str, ...]]) -> None:
    columns = max(len(row) for row in rows)
    widths = [max((len(row[i]) for row in rows if len(row) > 1), default=0) for i in range(columns - 1)]
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else None  # piped lists are never cut
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)] if len(row) > 1 else []
        line = "  ".join([*cells, row[-1]]).rstrip()
        print(line if limit is None or len(line) <= limit else line[: limit - 1] + "…")
