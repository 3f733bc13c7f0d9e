"""runner table NAME [OVERRIDES] [scale=smoke|desk|paper] [seed=0,1,2] [hydra/launcher=...]

A paper's table: runs the cells that are missing, prints measured beside reported, and the verdicts. What is stored is
not run again. At scale=desk (the default) and smoke claims are judged and nothing is said to reproduce the paper; at
scale=paper every cell gets a verdict. Overrides change all cells. Names: runner table --list
  --dry                 the plan instead: cells, what is stored, what would run, what it costs by past runs
  --only ROW,COLUMN     run these cells alone (wildcards in quotes; repeatable); the others are shown as they stand
  --format FORMAT       markdown, csv, latex or html on standard output; with --dry as it stands, nothing is run
  --output FILE         the export goes to a file (with --record: the record's file)
  --analyse             a mixed-effects analysis over seeds and test examples, a column at a time
  --record              writes the table's section of RESULTS.md, with date, commit, machine and n
Without --format the last line on standard output is the path of the table as JSON. Exit code 1 if a cell failed.
The format of table files is told in runner/tables/schema.py; your own stand in table/<paper>/ of a --config-dir.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.commands import Parser
from runner.errors import StopRequested, UserError, did_you_mean

FORMATS = ("markdown", "csv", "latex", "html")
RECORD = "RESULTS.md"
_SEEDS = re.compile(r"\d+(,\d+)*")


def parser() -> Parser:
    found = Parser("table")
    found.add_argument("--list", action="store_true")
    found.add_argument("--dry", action="store_true")
    found.add_argument("--only", action="append", default=[])
    found.add_argument("--format", choices=FORMATS)
    found.add_argument("--output", type=Path)
    found.add_argument("--analyse", action="store_true")
    found.add_argument("--record", action="store_true")
    return found


def main(arguments: Sequence[str], config_dirs: Sequence[Path]) -> int:
    options = parser().read(arguments)
    if options.list:
        from runner.commands.list import main as show

        return show(["tables", *options.words], config_dirs)
    names = [word for word in options.words if "=" not in word and word[:1] not in "+~"]
    if len(names) != 1:
        got = f"got {', '.join(names)}" if names else "no name was given"
        raise UserError(f"table takes one name, as PAPER/TABLE: {got}; `runner table --list` shows all")
    if options.output and not (options.format or options.record):
        raise UserError(f"--output {options.output} needs a --format ({', '.join(FORMATS)}) or --record")
    if options.dry and (options.record or options.analyse):
        raise UserError("--dry runs and stores nothing: leave out --record and --analyse")
    words = [word for word in options.words if word != names[0]]
    return _answer(names[0], words, options, [Path(folder) for folder in config_dirs])


def _answer(name: str, words: list[str], options: Any, config_dirs: list[Path]) -> int:
    from runner.sweep import SweepOptions
    from runner.tables.document import document
    from runner.tables.fill import Filled, fill, pending, plan_lines, runs_folder, store
    from runner.tables.grid import make_grid, parse_only
    from runner.tables.schema import read_table

    table = read_table(name, config_dirs)
    launch, words = SweepOptions.split(words)
    scale, seeds, changes = _request(words)
    grid = make_grid(name, table, scale, changes, seeds, config_dirs)
    only = parse_only(options.only, grid) if options.only else None
    folder = runs_folder(grid)
    filled = Filled()
    if options.dry:
        lines = plan_lines(grid, pending(grid, only), folder)
        print("\n".join(lines), file=sys.stderr if options.format and not options.output else sys.stdout)
    else:
        filled = fill(grid, only, launch)
    found = document(grid, folder)
    if options.analyse:
        from runner.tables.analysis import analysis

        found["analysis"] = analysis(grid)
    if options.format:
        from runner.tables.formats import export

        text = export(found, options.format)
        if options.output and not options.record:
            _write(options.output, text)
        else:
            sys.stdout.write(text)
    if options.dry:
        return 0
    path = store(found, folder)
    if filled.ran:
        from runner.tables.track import track

        track(found, grid, folder)
    if options.record:
        from runner.tables.record import record

        target = options.output or Path(RECORD)
        record(found, target)
        print(f"recorded in {target}", file=sys.stderr)
    if not options.format:
        _show(found)
        print(path)
    if filled.stopped:
        raise StopRequested(f"stopped: {filled.stopped} runs of the table are not done; the same command goes on")
    return 1 if filled.failed or any(cell["error"] for cell in found["cells"]) else 0


def _request(words: list[str]) -> tuple[str, list[int] | None, list[str]]:
    """(scale, seeds instead of the table's, overrides of every cell)."""
    from runner.tables.schema import SCALES

    scale, seeds, changes = "desk", None, []
    for word in words:
        key, _, value = word.partition("=")
        if key == "scale":
            if value not in SCALES:
                raise UserError(f"unknown scale '{value}' (set on the command line); {did_you_mean(value, SCALES)}")
            scale = value
        elif key == "seed":
            if not _SEEDS.fullmatch(value):
                raise UserError(f"'{word}': expected whole numbers with commas, such as seed=0,1,2")
            seeds = sorted({int(number) for number in value.split(",")})
        else:
            changes.append(word)
    return scale, seeds, changes


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console

    from runner.tables.formats import screen

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:  # never cut or folded when piped
        console = Console(stderr=True, highlight=False, width=60 * (len(found["columns"]) + 1), soft_wrap=True)
    console.print(screen(found))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output: {path} cannot be written: {error.strerror}") from None
