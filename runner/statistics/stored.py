"""Stored runs as one long table of scores: a row a run and test example. Light until ``score_table``: no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import UserError, did_you_mean
from runner.key import LEFT_OUT
from runner.records import Record, find_runs
from runner.registry import flatten

if TYPE_CHECKING:
    import pandas

SCORES = Path("artifacts") / "test_scores.npz"
VALIDATION = "accuracy_validation"  # in metrics.jsonl: what may choose a configuration


def stored_runs(patterns: Sequence[str]) -> list[Record]:
    """The finished runs with test scores at or below folders (wildcards allowed), each once, by name.

    Raises:
        UserError: a pattern leads to none.
    """
    found: dict[Path, Record] = {}
    for pattern in patterns:
        place = Path(pattern).expanduser().absolute()
        folders = [place] if place.is_dir() else sorted(Path(place.anchor).glob(str(place.relative_to(place.anchor))))
        records = [item for folder in folders if folder.is_dir() for item in find_runs(folder.resolve())]
        usable = [item for item in records if item.state == "done" and (item.path / SCORES).is_file()]
        if not usable:
            which = "no folder" if not folders else f"no finished run with {SCORES.as_posix()} among {len(records)}"
            raise UserError(f"method.runs: {which} at '{pattern}'; `runner runs` shows what there is")
        found |= {item.path: item for item in usable}
    return sorted(found.values(), key=lambda item: (item.name, str(item.path)))


def fingerprint(patterns: Sequence[str]) -> str:
    """What the runs hold for a run's key, wherever they lie and in whatever order they are named."""
    from runner.datasets import files

    lines = sorted(f"{record.key} {files.fingerprint(record.path / SCORES)}" for record in stored_runs(patterns))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def score_table(
    records: Sequence[Record], response: str, system: Sequence[str], example_properties: Path | None = None
) -> tuple[pandas.DataFrame, list[str]]:
    """The table for ``runner.statistics.analysis.analyse``, and the settings that vary within a system.

    Columns: system, seed, example, label (text), ``response``, validation_accuracy where every run has one, a column
    for each setting (dotted), and those of the CSV file ``example_properties``, joined by its column ``index``.

    Args:
        response: an array of test_scores.npz, such as score (1 right, 0 wrong) or log_likelihood (nats).
        system: settings whose values make two runs different systems; all others are meta-parameters.

    Raises:
        UserError: another test set, no such setting or response, a property file that does not fit.
    """
    numpy, pandas = _libraries()
    configs = [dict(flatten(record.config)) for record in records]
    known = {name for config in configs for name in config}
    for name in system:
        if name not in known:
            raise UserError(f"method.system: the runs have no setting '{name}'; {did_you_mean(name, known)}")
    names = [", ".join(str(config.get(name)) for name in system) for config in configs]
    varying = [name for name in _decisive(known, system) if _varies(name, names, configs)]
    _check_test_set(records)
    validations = [_last_validation(record.path) for record in records]
    parts, labels = [], {}
    for record, config, name, validation in zip(records, configs, names, validations, strict=True):
        with numpy.load(record.path / SCORES) as arrays:
            if response not in arrays:
                raise UserError(
                    f"method.response: the test scores of {record.name} have no '{response}'; they have "
                    f"{', '.join(arrays)} (runs before this response was stored: force=true)"
                )
            part = pandas.DataFrame({"example": arrays["index"], response: arrays[response].astype(float)})
            part["label"] = [f"class {label}" for label in arrays["label"]]
        if any(labels.setdefault(*pair) != pair[1] for pair in zip(part["example"], part["label"], strict=True)):
            raise UserError(f"method.runs: {record.name} was tested on other examples than {records[0].name}")
        part["system"], part["seed"] = name, _seed(config)
        if None not in validations:
            part["validation_accuracy"] = validation
        for setting in varying:
            part[setting] = _category(config.get(setting))
        parts.append(part)
    table = pandas.concat(parts, ignore_index=True)
    if example_properties is not None:
        table = _with_properties(table, example_properties)
    return table, varying


def _libraries() -> tuple[Any, Any]:
    import numpy

    try:
        import pandas
    except ModuleNotFoundError:
        raise UserError(
            "the mixed-effects analysis needs pandas, which is not installed: pip install 'paper-runner[statistics]'"
        ) from None
    return numpy, pandas


def _decisive(known: Iterable[str], system: Sequence[str]) -> list[str]:
    """Settings that may be meta-parameters: they decide results and are not the seeds."""
    labels = ("method.target", "seed", *system)
    sections = LEFT_OUT | {"seeds"}
    return sorted(name for name in known if name.partition(".")[0] not in sections and name not in labels)


def _varies(name: str, systems: Sequence[str], configs: Sequence[dict[str, Any]]) -> bool:
    values: dict[str, set[str]] = {}
    for system, config in zip(systems, configs, strict=True):
        values.setdefault(system, set()).add(json.dumps(config.get(name), default=str))
    return any(len(found) > 1 for found in values.values())


def _check_test_set(records: Sequence[Record]) -> None:
    sets = {record.result.get("dataset"): record.name for record in records}
    if len(sets) > 1:
        (first, one), (second, other) = list(sets.items())[:2]
        raise UserError(
            f"method.runs: {one} was tested on {first} and {other} on {second}; compare runs on one test set"
        )


def _seed(config: dict[str, Any]) -> str:
    """The seed, with the streams that were set apart from it."""
    apart = [f"{name}={value}" for name, value in config.items() if name.startswith("seeds.") and value is not None]
    return " ".join([str(config.get("seed")), *apart])


def _category(value: Any) -> Any:
    return value if isinstance(value, (int, float, str)) or value is None else json.dumps(value, default=str)


def _last_validation(folder: Path) -> float | None:
    """The validation accuracy of the last epoch."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((json.loads(line)[VALIDATION] for line in reversed(lines) if f'"{VALIDATION}"' in line), None)


def _with_properties(table: pandas.DataFrame, file: Path) -> pandas.DataFrame:
    import pandas

    try:
        properties = pandas.read_csv(file)
    except (OSError, ValueError) as error:
        raise UserError(f"method.example_properties: {file} cannot be read as CSV: {error}") from None
    if "index" not in properties or not properties["index"].is_unique:
        raise UserError(f"method.example_properties: {file} needs a column 'index' with each test example once")
    return table.merge(properties.rename(columns={"index": "example"}), on="example", how="left", validate="m:1")
