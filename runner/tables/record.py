"""The published record: one section a table and scale in a Markdown file, written by the command and never by hand."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runner.errors import UserError
from runner.storage import write_atomic
from runner.tables.formats import markdown

HEAD = """\
# Results

Written by `runner table NAME --record`, a section a table: date, commit, machine and number of seeds stand in each.
What the tables do not show is not hidden: a claim that does not hold is printed as it came out.
"""


def record(document: dict[str, Any], path: Path) -> None:
    """Adds the section of a table, or replaces it.

    Raises:
        UserError: nothing of the table was measured, or the file cannot be written.
    """
    if not any(cell["n"] for cell in document["cells"]):
        raise UserError(f"{document['name']} has no measured cell at scale={document['scale']}: nothing to record")
    document = _without_places(document)
    name = f"{document['name']} at scale={document['scale']}"
    begin, end = f"<!-- table {name} -->", f"<!-- end of {name} -->"
    text = markdown(document, level=2).rstrip()
    section = f"{begin}\n{text}\n\nCommand: `{document['command']}`\n{end}"
    try:
        content = path.read_text(encoding="utf-8") if path.is_file() else HEAD
        before, found, rest = content.partition(begin)
        if found and end in rest:
            content = before + section + rest.partition(end)[2]
        else:
            content = f"{content.rstrip()}\n\n{section}\n"
        write_atomic(path, content)
    except OSError as error:
        raise UserError(f"--record: {path} cannot be written: {error.strerror}") from None


def _without_places(document: dict[str, Any]) -> dict[str, Any]:
    """Where somebody keeps their runs and data says nothing about a result."""

    def without(words: Iterable[str]) -> list[str]:
        return [word for word in words if not word.startswith("paths.")]

    def command(text: str | None) -> str | None:
        return text and shlex.join(without(shlex.split(text)))

    cells = [cell | {"command": command(cell["command"])} for cell in document["cells"]]
    overrides = without(document["overrides"])
    return document | {"overrides": overrides, "command": command(document["command"]), "cells": cells}
