"""Past runs as their folders tell them: state, settings beside the defaults, metrics, disk. Light: no torch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from runner import registry
from runner.defaults import runs_default
from runner.errors import UserError, did_you_mean
from runner.folder import RunFolder
from runner.key import LEFT_OUT
from runner.registry import flatten
from runner.storage import PARTIAL

STATES = ("running", "done", "failed", "stopped", "interrupted")
CHOICES = ("method", "scale", "model", "dataset", "recipe")  # groups whose choice a stored config shows by its name
NAMED = {"seed", "method.target", *(f"{group}.name" for group in CHOICES)}  # told in columns of their own
MARKS = {"status.json", "lock.json", ".lock.guard"}  # a folder with one of them is, or was to become, a run folder


@dataclass(frozen=True)
class Record:
    """One run folder."""

    folder: RunFolder

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def key(self) -> str:
        return self.path.name

    @property
    def name(self) -> str:
        """METHOD-MODEL-DATASET/KEY."""
        return f"{self.path.parent.name}/{self.key}"

    @cached_property
    def result(self) -> dict[str, Any]:
        """Empty unless the run is done."""
        return self.folder.result() or {}

    @cached_property
    def status(self) -> dict[str, Any]:
        return self.folder.status()

    @cached_property
    def config(self) -> dict[str, Any]:
        """Empty where the run ended before it was written, and where it cannot be read or is another program's."""
        file = self.path / "config.yaml"
        try:
            found = registry.read_yaml(file) if file.is_file() else {}
        except UserError:
            return {}
        ours = all(isinstance(found.get(group), dict) and "name" in found[group] for group in CHOICES)
        return found if ours else {}

    @cached_property
    def state(self) -> str:
        """One of ``STATES``. A result wins over status.json, which a killed process leaves at 'running'."""
        if self.result:
            return "done"
        if self.folder.in_use():
            return "running"
        state = self.status.get("state", "interrupted")
        return "interrupted" if state == "running" else state

    @property
    def metrics(self) -> dict[str, float]:
        return self.result.get("metrics", {})

    @cached_property
    def changed(self) -> float:
        """When its state was last written, in seconds since 1970."""
        found = self.status.get("updated")
        return float(found) if found else self.path.stat().st_mtime

    @property
    def age_days(self) -> float:
        return (time.time() - self.changed) / 86400

    @cached_property
    def disk_bytes(self) -> int:
        return disk_bytes(self.path)


def disk_bytes(path: Path) -> int:
    """The sizes of a file, or of all files below a folder; what goes away meanwhile counts nothing."""
    if not path.is_dir():
        return path.lstat().st_size if path.exists() else 0
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += Path(folder, name).lstat().st_size
            except FileNotFoundError:
                continue
    return total


def runs_folder(words: Sequence[str]) -> tuple[Path, list[str]]:
    """Where the run folders are (``paths.runs=DIR`` among the words, else the default), and the other words.

    Raises:
        UserError: the word names no folder, or there is none.
    """
    given = [word.partition("=")[2] for word in words if word.startswith("paths.runs=")]
    if given and not given[-1]:
        raise UserError("'paths.runs=' names no folder")
    folder = Path(given[-1] if given else runs_default()).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"there are no run folders in {folder}; name their place with paths.runs=DIR")
    return folder, [word for word in words if not word.startswith("paths.runs=")]


def find_runs(folder: Path) -> Iterator[Record]:
    """Every run folder at or below ``folder``, by name."""
    for place, folders, names in os.walk(folder):
        if MARKS & set(names) or {"config.yaml", "result.json"} <= set(names):
            yield Record(RunFolder(Path(place)))
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.endswith(PARTIAL))


def find_run(text: str, folder: Path | None) -> Record:
    """The run that ``text`` means: its folder, its result.json, its key or a unique beginning of its key.

    ``folder`` has the runs that keys are looked up in.

    Raises:
        UserError: there is none, or several.
    """
    path = Path(text).expanduser()
    place = (path.parent if path.name == "result.json" else path).absolute()
    if place.is_dir():
        found = list(find_runs(place))
        if [record.path for record in found] == [place]:
            return found[0]
        raise UserError(f"{text} is not a run folder; `runner runs paths.runs={text}` lists the runs below it")
    records = list(find_runs(folder)) if folder else []
    found = [record for record in records if text in (record.key, record.name)]
    found = found or [record for record in records if text and record.key.startswith(text)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"'{text}' begins {len(found)} keys: {', '.join(record.name for record in found[:5])}")
    where = f" in {folder}" if folder else ""
    raise UserError(f"there is no run folder '{text}', and no run with that key{where}; `runner runs` shows the keys")


def choice_words(config: dict[str, Any], groups: Sequence[str], config_dirs: Sequence[Path]) -> list[str]:
    """``group=name`` for each group whose choice, as the config names it, is there."""
    path = registry.search_path(config_dirs)
    names = {group: config.get(group, {}).get("name") for group in groups}
    return [f"{group}={name}" for group, name in names.items() if name and registry.choice_file(group, name, path)]


class Defaults:
    """Finds what a stored config sets beside its choices; compositions are kept, many runs share one."""

    def __init__(self, config_dirs: Sequence[Path] = ()) -> None:
        self._config_dirs = config_dirs
        self._composed: dict[tuple[str, ...], dict[str, Any] | None] = {}

    def differences(self, config: dict[str, Any]) -> dict[str, Any]:
        """Dotted key -> value of the decisive settings that differ from what method, scale, model and dataset bring.

        ``recipe`` alone says that another recipe was chosen than the method's. For a method whose config is not here
        all of its own fields are given. Method, scale, model, dataset and seed are left to the caller.
        """
        if not config:
            return {}
        words = choice_words(config, CHOICES, self._config_dirs)
        found: dict[str, Any] = {}
        base = self._compose([word for word in words if not word.startswith("recipe=")])
        if base is not None and base["method"]["name"] != config["method"]["name"]:
            base = None
        if base is not None and base["recipe"]["name"] != config["recipe"]["name"]:
            found["recipe"] = config["recipe"]["name"]
            base = self._compose(words) or base
        expected = dict(flatten(base)) if base is not None else {}
        for key, value in flatten(config):
            section = key.partition(".")[0]
            if section in LEFT_OUT or key in NAMED:
                continue
            if (key in expected and expected[key] != value) or (not expected and section == "method"):
                found[key] = value
        return found

    def _compose(self, words: list[str]) -> dict[str, Any] | None:
        from runner.compose import compose

        if tuple(words) not in self._composed:
            try:
                self._composed[tuple(words)] = compose(words, self._config_dirs).config
            except UserError:  # a method or a model that is not here
                self._composed[tuple(words)] = None
        return self._composed[tuple(words)]


def no_runs(folder: Path) -> UserError:
    """The message for a folder without runs."""
    return UserError(f"there are no runs in {folder}; `runner` makes one, paths.runs=DIR names another place")


def unknown_name(name: str, valid: Sequence[str]) -> UserError:
    """The message for a filter that no run has a value for."""
    return UserError(f"no run has a setting, a metric or a column '{name}'; {did_you_mean(name, valid)}")
