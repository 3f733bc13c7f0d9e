"""The user's sequences: a folder of train.tsv and test.tsv, where there is one validation.tsv; a sequence a line.

A line is tokens with spaces between them, a tab, and the class. Files of the Long Range Arena are read as they are:
*train.tsv, *val.tsv and *test.tsv with a heading Source, Target. The vocabulary is that of the training file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from runner.datasets import files
from runner.datasets.sequences import KIND as KIND
from runner.datasets.sequences import SequenceSettings, examples, split
from runner.errors import UserError
from runner.schema import Positive

if TYPE_CHECKING:
    from runner.datasets.examples import ExampleData
    from runner.datasets.images import Limits

FORMAT = "a folder with train.tsv and test.tsv: in every line tokens with spaces between them, a tab, the class"
HEADING = ("Source", "Target")
UNKNOWN = 1  # a token that the training file lacks


@dataclass(kw_only=True)
class Settings(SequenceSettings):
    """Of text files."""

    length: Positive | None = None  # tokens that are kept of a sequence; null: all of the longest in training
    dropped: list[str] = field(default_factory=list)  # tokens left out, such as the parentheses of ListOps


def check(settings: Settings, data_root: Path, offline: bool) -> None:
    if settings.path is None:
        raise UserError(f"dataset=token_file: needs dataset.path={FORMAT}")
    for name in ("train", "test"):
        if _file(settings, name) is None:
            raise UserError(f"dataset.path={settings.path}: there is no {name}.tsv; needs {FORMAT}")


def load(settings: Settings, limits: Limits, data_root: Path) -> ExampleData:
    read = {name: _read(settings, name) for name in ("train", "validation", "test")}
    train = read["train"]
    vocabulary = {token: number for number, token in enumerate(sorted({t for line, _ in train for t in line}), start=2)}
    names = sorted({label for part in read.values() for _, label in part or ()})
    length = settings.length or max(len(line) for line, _ in train)
    parts = {
        name: examples(
            [[vocabulary.get(token, UNKNOWN) for token in line[:length]] for line, _ in part],
            [names.index(label) for _, label in part],
            length,
        )
        for name, part in read.items()
        if part is not None
    }
    title = Path(settings.path).name
    return split(
        settings, limits, title, parts["train"], parts["test"], names, len(vocabulary) + 2, parts.get("validation")
    )


def _file(settings: Settings, name: str) -> Path | None:
    folder = files.user_path(settings.path)
    endings = {"validation": ("validation", "val")}.get(name, (name,))
    found = sorted(path for ending in endings for path in folder.glob(f"*{ending}.tsv"))
    if len(found) > 1:
        raise UserError(f"dataset.path={settings.path}: {found[0].name} and {found[1].name} are both {name}; keep one")
    return found[0] if found else None


def _read(settings: Settings, name: str) -> list[tuple[list[str], str]] | None:
    file = _file(settings, name)
    if file is None:
        return None
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        text, tab, label = line.rpartition("\t")
        tokens = [token for token in text.split() if token not in settings.dropped]
        if (text, label) == HEADING or not line.strip():
            continue
        if not (tab and tokens and label.strip()):
            raise UserError(f"dataset.path={settings.path}: {file.name}, line {number}: no tokens, tab and class")
        found.append((tokens, label.strip()))
    if not found:
        raise UserError(f"dataset.path={settings.path}: {file.name} has no sequence")
    return found
