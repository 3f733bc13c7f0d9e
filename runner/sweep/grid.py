"""From the words of a sweep to its cells, in Hydra's own grammar."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner import registry
from runner.errors import UserError
from runner.sweep import Job


def expand(words: Sequence[str], config_dirs: Sequence[Path] = ()) -> list[Job]:
    """Every combination of choices (``a=1,2``, ``choice``, ``range``, ``glob``, ``sort`` ...), the last word fastest.

    A later word for the same key replaces an earlier one. A job is named by what is swept.

    Raises:
        UserError: a word cannot be read, or it is a sweep that has no list of values (interval).
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    path = registry.search_path(config_dirs)
    parser = OverridesParser.create()
    values: dict[str, list[str]] = {}
    swept: list[str] = []
    for word in words:
        try:
            override = parser.parse_override(word)
            override.validate()
            key = override.get_key_element()
            values[key] = _values(override, word, path)
        except HydraException as error:
            raise UserError(f"'{word}': {str(error).splitlines()[0]} (set on the command line)") from None
        if override.is_sweep_override():
            swept.append(key)
    names = [[word if key in swept else "" for word in found] for key, found in values.items()]
    cells = itertools.product(*values.values())
    labels = itertools.product(*names)
    return [Job(" ".join(filter(None, label)), list(cell)) for cell, label in zip(cells, labels, strict=True)]


def _values(override: Any, word: str, path: Sequence[Path]) -> list[str]:
    if not override.is_sweep_override():
        return [word]
    if not override.is_discrete_sweep():
        raise UserError(f"'{word}': an interval has no list of values; name them, or use range() (on the command line)")
    group, key = override.key_or_group, override.get_key_element()
    if override.value_type.name == "GLOB_CHOICE_SWEEP":
        if group not in registry.groups(path):
            raise UserError(f"'{word}': glob() chooses among the names of a group, and {group} is none")
        found = override.value().filter(list(registry.choices(group, path)))
        if not found:
            raise UserError(f"'{word}' fits no {group}; `runner list {registry.PLURALS.get(group, group)}` shows all")
        return [f"{key}={name}" for name in found]
    return [f"{key}={text}" for text in override.sweep_string_iterator()]
