"""runner show METHOD

The page of a method: paper, claim, fidelity and deviations, its settings at every scale, tables, citation, and the
commands that run it. Settings of the composed config with all overrides: runner --cfg job method=METHOD
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner import registry
from runner.errors import UserError

SCALES = ("paper", "desk", "smoke")


def main(arguments: Sequence[str], config_dirs: Sequence[Path]) -> int:
    path = registry.search_path(config_dirs)
    if len(arguments) != 1:
        raise UserError("show takes one method's name: runner show METHOD  (`runner list methods` shows all)")
    name = arguments[0].removeprefix("method=")
    method = registry.describe(name, path)
    _head(method)
    _settings(method, path)
    constants = registry.choices(f"recommended/constants/{name}", path)
    if constants:
        print("\nConstants of other code bases")
    for recipe, file in constants.items():
        values = registry.flatten(registry.read_yaml(file))
        print(f"  recipe={recipe}  " + "  ".join(f"{key}={_text(value)}" for key, value in values))
    tables = registry.choices(f"table/{name}", path)
    if tables:
        print("\nTables")
    for table, file in tables.items():
        print(f"  {name}/{table}  {registry.read_yaml(file).get('title', '')}".rstrip())
    if method.citation:
        print("\nCitation")
        print(textwrap.indent(textwrap.dedent(method.citation).strip(), "  "))
    dirs = "".join(f"--config-dir {folder} " for folder in config_dirs)
    print(f"\nRun\n  runner {dirs}method={name}                 desk: minutes, a demonstration")
    print(f"  runner {dirs}method={name} scale=smoke     seconds, every phase")
    print(f"  runner {dirs}method={name} scale=paper     the paper's own protocol")
    return 0


def _head(method: registry.Description) -> None:
    print(f"{method.name}: {method.title}" if method.title else method.name)
    print()
    rows = [
        ("paper", method.paper),
        ("claim", method.claim),
        ("fidelity", method.fidelity),
        ("family", method.family),
        ("takes", " on ".join(filter(None, [", ".join(method.model), ", ".join(method.data)]))),
        ("file", str(method.source or f"{method.target} (not found)")),
        ("config", registry.display(method.config)),
    ]
    for label, text in rows:
        if text:
            _wrapped(f"{label:<12}", text)
    for index, deviation in enumerate(method.deviations):
        _wrapped(f"{'deviations' if index == 0 else '':<12}", deviation)


def _wrapped(label: str, text: str) -> None:
    print(textwrap.fill(text, 110, initial_indent=label, subsequent_indent=" " * 12, break_long_words=False))


def _settings(method: registry.Description, path: Sequence[Path]) -> None:
    """A table setting x scale from the YAML files alone; a value that a scale does not change is left blank."""
    own = registry.read_yaml(method.config)
    chosen = registry.default_choices(registry.read_yaml(registry.package_conf() / "config.yaml"))
    chosen |= registry.default_choices(own)
    brought = {
        scale: registry.brought_along({**chosen, "method": method.name, "scale": scale}, path) for scale in SCALES
    }
    chosen |= brought["paper"]
    print("\nRuns on")
    print("  " + "  ".join(f"{group}={chosen[group]}" for group in ("model", "dataset", "recipe") if group in chosen))
    for scale in SCALES[1:]:
        others = [f"{group}={name}" for group, name in brought[scale].items() if name != chosen.get(group)]
        if others:
            print(f"  at scale={scale}: {'  '.join(others)}")
    values: dict[str, Any] = {}
    if recipe := registry.choice_file("recipe", chosen["recipe"], path):
        values |= registry.flatten({"recipe": registry.read_yaml(recipe)})
    values |= {k: v for k, v in registry.flatten(own) if k.partition(".")[0] != "defaults"}
    for hidden in ("method.name", "method.target", "recipe.name"):
        values.pop(hidden, None)
    overlays = {}
    for scale in SCALES[1:]:
        overlays[scale] = {}
        for group in (method.name, f"dataset/{chosen['dataset']}/{method.name}"):
            file = registry.choice_file(f"recommended/{group}", scale, path)
            tree = registry.read_yaml(file) if file else {}
            overlays[scale] |= {k: v for k, v in registry.flatten(tree) if k.partition(".")[0] != "defaults"}
    keys = list(dict.fromkeys([*values, *overlays["desk"], *overlays["smoke"]]))
    rows = [("Settings", *SCALES)]
    for key in keys:
        desk, smoke = (overlays[scale].get(key, _ABSENT) for scale in SCALES[1:])
        rows.append((f"  {key}", _text(values.get(key, _ABSENT)), _text(desk), _text(smoke)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(SCALES))]
    print()
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[-1]]).rstrip())


_ABSENT = object()


def _text(value: Any) -> str:
    if value is _ABSENT:
        return ""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
