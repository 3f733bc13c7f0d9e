"""runner report [FOLDER] [FILTERS] [--table PAPER/NAME] [--output FILE] [--figures] [paths.runs=DIR]

One HTML page of the runs in FOLDER (default: paths.runs): counts, a table to filter and sort, learning curves, accuracy
against FLOPs and latency, tables of papers with their verdicts, and how the configs of two runs differ. The page is one
file that loads nothing from elsewhere; its links to run folders are relative, so it stays beside them. It is written
to FOLDER/report.html; the path is the last line. Filters are those of `runner runs`:
  runner report method=ekg dataset=digits
  --table NAME    only this stored table and the runs of its cells, in FOLDER/report-PAPER-NAME.html
  --figures       pictures for papers too, as PNG and PDF in a folder beside the page (needs paper-runner[figures])
Files are only read: unfinished, torn and foreign run folders stand in the table and say what could not be read.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.commands import Parser
from runner.commands.runs import Filter, fitting
from runner.errors import UserError, did_you_mean
from runner.records import find_runs, runs_folder
from runner.report.collect import collect, find_tables, is_readable, table_names, table_runs
from runner.report.page import page
from runner.storage import write_atomic


def parser() -> Parser:
    found = Parser("report")
    found.add_argument("--table", metavar="PAPER/NAME")
    found.add_argument("--output", type=Path, metavar="FILE")
    found.add_argument("--figures", action="store_true")
    return found


def main(arguments: Sequence[str], config_dirs: Sequence[Path]) -> int:
    options = parser().read(arguments)
    folder, filters = _place(options.words)
    if options.figures and importlib.util.find_spec("matplotlib") is None:
        raise UserError("--figures needs matplotlib, which is not installed: pip install 'paper-runner[figures]'")
    tables, unreadable = find_tables(folder)
    records = list(find_runs(folder))
    if [record.path for record in records] == [folder]:
        raise UserError(f"{folder} is a run folder; report takes a folder of runs (`runner compare A B` shows two)")
    name = "report"
    if options.table is not None:
        tables = _chosen(options.table, tables, folder)
        unreadable, wanted = [], table_runs(tables)
        records = [record for record in records if record.path.relative_to(folder).as_posix() in wanted]
        name = f"report-{table_names(tables[0])[0].replace('/', '-')}"
    if filters:
        records = fitting([record for record in records if is_readable(record)], filters)
    output = (options.output or folder / f"{name}.html").expanduser().absolute()
    values = collect(records, folder, tables, output, config_dirs)
    values |= _about(folder, filters, options.table, tables) | {"unreadable_tables": unreadable}
    _write(output, page(values))
    if options.figures:
        _write_figures(values, output.with_name(f"{output.stem}-figures"))
    print(output)
    return 0


def _place(words: Sequence[str]) -> tuple[Path, list[Filter]]:
    """The folder of the runs, and the filters."""
    folders = [word for word in words if not set("=<>") & set(word)]
    if len(folders) > 1:
        raise UserError(f"report takes one folder, got {len(folders)}: {', '.join(folders)}")
    settings = [word for word in words if word not in folders]
    folder, rest = runs_folder([*settings, *(f"paths.runs={word}" for word in folders)])
    return folder, [Filter.read(word) for word in rest]


def _chosen(name: str, tables: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    found = [table for table in tables if name in table_names(table)]
    if len({table_names(table)[0] for table in found}) == 1:
        return found
    names = sorted({table_names(table)[0] for table in found or tables})
    if found:
        raise UserError(f"--table {name} means several: {', '.join(names)}")
    cure = did_you_mean(name, names) if names else f"`runner table {name}` writes it"
    raise UserError(f"--table {name}: there is no such stored table in {folder / 'tables'}; {cure}")


def _about(folder: Path, filters: Sequence[Filter], table: str | None, tables: Sequence[dict]) -> dict[str, Any]:
    selected = [f"only runs with {' '.join(f'{one.name}{one.sign}{one.value}' for one in filters)}"] if filters else []
    if table is not None:
        selected.append(f"only the cells of table {table_names(tables[0])[0]}")
    title = f"Table {table_names(tables[0])[0]}" if table is not None else f"Runs in {folder.name}"
    return {"title": title, "folder": folder.name, "selected": ", ".join(selected)}


def _write_figures(values: dict[str, Any], folder: Path) -> None:
    from runner.report.figures import write_figures

    written = write_figures(values, folder)
    print(f"{len(written)} pictures in {folder}", file=sys.stderr)
    thinned = sum(len(curve["values"]) < curve["total"] for run in values["runs"] for curve in run["curves"])
    if thinned:
        print(f"{thinned} curves are thinned in them; filters that choose fewer runs keep more points", file=sys.stderr)


def _write(output: Path, text: str) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(output, text)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}; --output FILE names another place") from None
