"""A user's or site's defaults: one YAML file outside the repository, below the command line, never part of a key.

The file stands at ``~/.config/paper-runner/defaults.yaml`` or where RUNNER_DEFAULTS says (empty: none is read):

    hardware: gpu                 # a choice of the group, or single fields:
    tracking: {entity: my-lab, project: pruning}
    paths: {data: /data, runs: ~/runs}
    checkpoint: {every_seconds: 120}
    offline: false

What the command line sets wins; so does what a choice such as ``hardware=cpu`` or ``scale=smoke`` stands for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner import registry
from runner.errors import UserError, did_you_mean

VARIABLE = "RUNNER_DEFAULTS"
SECTIONS = (
    "checkpoint",
    "hardware",
    "offline",
    "paths",
    "tracking",
)  # runner.key.LEFT_OUT without the switches of a run


@dataclass(frozen=True)
class SiteDefaults:
    """``values``: dotted key -> value, a choice replaced by its fields already; ``file`` is None without a file."""

    file: Path | None = None
    values: dict[str, Any] = field(default_factory=dict)

    def applying(
        self, config: Mapping[str, Any], overrides: Sequence[str], search_path: Sequence[Path]
    ) -> dict[str, Any]:
        """Those of the values that stand against a composed config.

        A value gives way to an override of its key or section, to whatever changed the composed value from the
        package's own default, and, in the fields in which the choices of a group differ, to a choice on the command
        line.
        """
        if not self.values:
            return {}
        given = {word.partition("=")[0].lstrip("+~") for word in overrides}
        package = _package_defaults()
        composed = dict(registry.flatten(dict(config)))
        found = {}
        for key, value in self.values.items():
            section = key.partition(".")[0]
            explicit = key in given or (section in given and _varies(key, search_path))
            if not explicit and (key not in package or composed.get(key) == package[key]):
                found[key] = value
        return found


def site_defaults(search_path: Sequence[Path]) -> SiteDefaults:
    """Reads the file, if there is one.

    Raises:
        UserError: RUNNER_DEFAULTS names no file, the file is no YAML, or it sets what decides results.
    """
    asked = os.environ.get(VARIABLE)
    file = Path(asked if asked is not None else "~/.config/paper-runner/defaults.yaml").expanduser()
    if asked == "" or (asked is None and not file.is_file()):
        return SiteDefaults()
    if not file.is_file():
        raise UserError(f"{VARIABLE}={asked}: there is no such file; an empty {VARIABLE} means none")
    values: dict[str, Any] = {}
    for section, content in registry.read_yaml(file).items():
        values |= _section(str(section), content, file, search_path)
    return SiteDefaults(file, values)


def runs_default() -> str:
    """Where run folders are without paths.runs on the command line."""
    default = _package_defaults()["paths.runs"]
    value = str(site_defaults(registry.search_path()).values.get("paths.runs", default))
    if "${" in value:
        from omegaconf import OmegaConf

        value = OmegaConf.create({"runs": value})["runs"]
    return value


def _section(section: str, content: Any, file: Path, search_path: Sequence[Path]) -> dict[str, Any]:
    if section not in SECTIONS:
        known = registry.read_yaml(registry.package_conf() / "config.yaml")
        decides = section in known or section in registry.groups(search_path)
        why = "is not for a defaults file, which holds nothing of one run or its result" if decides else "is unknown"
        raise UserError(f"{file}: '{section}' {why}; only {', '.join(SECTIONS)} can stand there")
    if isinstance(content, str) and section in registry.groups(search_path):
        chosen = registry.choice_file(section, content, search_path)
        if chosen is None:
            raise registry.unknown_choice(section, content, search_path, f" (set in {file})")
        content = registry.read_yaml(chosen)
    valid = {key for key in _package_defaults() if f"{key}.".startswith(f"{section}.")}
    found = dict(registry.flatten({section: content}))
    for key in found:
        if key not in valid:
            raise UserError(f"{file}: unknown key '{key}'; {did_you_mean(key, valid)}")
    return found


def _package_defaults() -> dict[str, Any]:
    """Dotted key -> value of the sections that a defaults file can set, as the package's own files have them."""
    config = registry.read_yaml(registry.package_conf() / "config.yaml")
    for group, name in registry.default_choices(config).items():
        if group in SECTIONS:
            config[group] = registry.read_yaml(registry.package_conf() / group / f"{name}.yaml")
    return dict(registry.flatten({section: config[section] for section in SECTIONS}))


def _varies(key: str, search_path: Sequence[Path]) -> bool:
    """Whether the choices of the key's group differ in it; a single value such as ``offline`` counts as differing."""
    group, _, name = key.partition(".")
    values = [registry.read_yaml(file).get(name) for file in registry.choices(group, search_path).values()]
    return not values or any(value != values[0] for value in values)
