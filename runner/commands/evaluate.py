"""runner evaluate RUN [dataset=NAME] [hardware=NAME] [OVERRIDES]

The test metrics of a run's network on the run's own data set or another one; nothing is trained. RUN is a run folder,
a key or a unique beginning of one. Images are normalised as the network was trained. It is a run of the method
`evaluate` with a folder and a key of its own: the same command again answers from the stored result.
  runner evaluate 3f2a
  runner evaluate runs/ekg-resnet20-digits/3f2a09c1d2e4 dataset=fashion_mnist scale=paper
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.commands.compare import find_all
from runner.errors import UserError
from runner.models.weights import find_product
from runner.records import Record, choice_words
from runner.registry import flatten

# Of the run's own settings, what a test depends on; stem and padding follow the network at 'auto'.
NOT_NEEDED = (
    "model.weights",
    "model.head",
    "model.stem",
    "model.padding",
    "dataset.train_size",
    "dataset.validation_fraction",
    "dataset.normalisation",
    "dataset.augmentation",
)
NEEDED = ("model.", "dataset.", "scale.max_test_examples", "precision")


def main(arguments: Sequence[str], config_dirs: Sequence[Path]) -> int:
    from runner import cli

    record, words = run_and_overrides("evaluate", arguments)
    overrides = translation(record, words, config_dirs)
    folders = [f"--config-dir {shlex.quote(str(folder))}" for folder in config_dirs]
    print(" ".join(["runner", *folders, *map(shlex.quote, overrides)]), file=sys.stderr)
    return cli.run(overrides, config_dirs)


def run_and_overrides(command: str, arguments: Sequence[str]) -> tuple[Record, list[str]]:
    """The run with a network that ``arguments`` name, and the overrides among them.

    Raises:
        UserError: no run, several, or one without a network.
    """
    names = [word for word in arguments if "=" not in word and word[:1] not in "+~"]
    if len(names) != 1:
        raise UserError(f"{command} takes one run, got {len(names)}; `runner runs` shows the keys")
    (record,) = find_all(names, arguments)
    find_product(record.path)
    return record, [word for word in arguments if word not in names]


def translation(record: Record, words: Sequence[str], config_dirs: Sequence[Path]) -> list[str]:
    """The overrides of method ``evaluate`` for the network of a run; the user's ``words`` come last and win."""
    from runner.compose import compose

    given = {word.partition("=")[0] for word in words}
    groups = [group for group in ("model", "dataset", "scale") if group not in given]
    start = ["method=evaluate", *choice_words(record.config, groups, config_dirs)]
    chosen = [word for word in words if word.partition("=")[0] in ("model", "dataset", "scale")]
    composed = dict(flatten(compose([*start, *chosen], config_dirs).config))
    for key, value in flatten(record.config):
        if key.partition(".")[0] in given or not key.startswith(NEEDED) or key.startswith(NOT_NEEDED):
            continue
        if key not in composed and value != {}:
            start.append(f"+{key}={quoted(value)}")
        elif composed.get(key, value) != value:
            start.append(f"{key}={quoted(value)}")
    return [*start, f"model.weights={quoted(str(record.path))}", *words]


def quoted(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(quoted, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}:{quoted(item)}' for name, item in value.items())}}}"
    if not isinstance(value, str) or re.fullmatch(r"/[\w./-]+", value):
        return str(value)
    return "'{}'".format(value.replace("'", r"\'"))
