"""The key of a run: a short hash of everything that decides its result, and of nothing else. Light: no torch.

What enters: every section and value of the composed config except those named in ``LEFT_OUT``.

| enters | as |
|---|---|
| method, recipe, scale, seed, seeds, precision, model, dataset, roles (baseline, teacher ...) | their values |
| dataset.path, model.weights, a role's too | the content (sha256 of a file, names and sizes of a folder) |
| method.runs, method.example_properties, method.benchmark | the fingerprint of the runs' test scores, of the file |
| a user's own file in paths.data, where dataset.path is not set (graphs, few-shot sets, logs) | the content |
| model.weights=imagenet | torchvision's name of the weights |
| fields added later (conf/added_later.yaml), a role's too, while they stand at their neutral value | not at all |
| hardware, tracking, paths, checkpoint, force, allow_code_change, debug, profile, offline | not at all |
| retries, fail_fast, stop_after (of a sweep) | not at all |

Order of keys does not matter; 1 and 1.0 are equal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SWEEP = frozenset({"retries", "fail_fast", "stop_after"})
LEFT_OUT = SWEEP | {
    "hardware",
    "tracking",
    "paths",
    "checkpoint",
    "force",
    "allow_code_change",
    "debug",
    "profile",
    "offline",
}
PATHS = ("dataset.path", "model.weights")
LENGTH = 12


def run_key(
    config: Mapping[str, Any],
    fingerprints: Mapping[str, str] | None = None,
    added_later: Mapping[str, Any] | None = None,
) -> str:
    """The key as 12 hexadecimal digits.

    Args:
        config: the composed, resolved config.
        fingerprints: of each of ``PATHS`` that is set or found in ``paths.data``, and of paths among the method's
            fields, the fingerprint of its content; without one a path of ``PATHS`` says nothing about the result (a
            set with published checksums) and counts as not set.
        added_later: dotted name of a field -> the neutral value at which it is left out, in a role's section too.
    """
    decisive = {name: value for name, value in config.items() if name not in LEFT_OUT}
    flat = _flatten(decisive)
    paths = {*PATHS, *(fingerprints or {})}
    for name, value in flat.items():
        if name in (fingerprints or {}) or (value is not None and (name in paths or _in_role(name) in PATHS)):
            flat[name] = (fingerprints or {}).get(name)
    for field, neutral in (added_later or {}).items():
        for name in [name for name in flat if name == field or _in_role(name) == field]:
            if _canonical(flat[name]) == _canonical(neutral):
                del flat[name]
    text = json.dumps({name: _canonical(value) for name, value in flat.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def _in_role(name: str) -> str:
    """recipe.mixup of baseline.recipe.mixup; a method's own section may use such names for something else."""
    section, _, rest = name.partition(".")
    return "" if section == "method" else rest


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        flat: dict[str, Any] = {}
        for name, item in value.items():
            flat |= _flatten(item, f"{prefix}.{name}" if prefix else str(name))
        return flat
    return {prefix: value}


def _canonical(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _canonical(item) for name, item in value.items()}
    return value
