"""runner sync [RUN|FOLDER] [--dry] [paths.runs=DIR]

Sends finished runs to Weights & Biases from their record (metrics.jsonl): one run, all below FOLDER, or all of them.
What arrived is remembered in the run folder and not sent again. --dry lists what would be sent and sends nothing.
Runs with tracking=none have no record for W&B and are passed over. Exit code 1 when a run could not be sent.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from runner.commands import Parser
from runner.commands.runs import print_columns
from runner.errors import UserError
from runner.records import Record, find_run, find_runs, no_runs, runs_folder
from runner.storage import read_json


def parser() -> Parser:
    found = Parser("sync")
    found.add_argument("--dry", action="store_true")
    return found


def main(arguments: Sequence[str], config_dirs: Sequence[Path]) -> int:
    options = parser().read(arguments)
    done = [record for record in chosen(options.words) if record.state == "done" and not record.folder.in_use()]
    waiting = [record for record in done if state(record) == "not sent"]
    if options.dry:
        print_columns([(record.name, state(record)) for record in done])
        print(f"{len(waiting)} of {len(done)} finished runs would be sent")
        return 0
    if waiting:
        from runner.commands.doctor import logged_in

        if not logged_in():
            raise UserError("no W&B key is stored here: wandb login, or set WANDB_API_KEY (--dry needs none)")
    failures = sum(not _send(record) for record in waiting)
    print(f"{len(waiting) - failures} runs sent, {len(done) - len(waiting)} need nothing, {failures} failed")
    return 1 if failures else 0


def chosen(words: Sequence[str]) -> list[Record]:
    """The runs that the words name. Raises UserError: none, or more than one name."""
    names = [word for word in words if not word.startswith("paths.runs=")]
    if len(names) > 1:
        raise UserError(f"sync takes one run or folder, got {len(names)}")
    folder = Path(names[0]).expanduser().absolute() if names else runs_folder(words)[0]
    if folder.is_dir():
        records = list(find_runs(folder))
        if not records:
            raise no_runs(folder)
        return records
    return [find_run(names[0], None if folder.exists() else runs_folder(words)[0])]


def state(record: Record) -> str:
    """Whether the record of a finished run is on the server: 'sent', 'not sent' or 'not tracked'."""
    wandb = record.path / "wandb"
    if not (wandb / "run.json").is_file() or not (record.path / "metrics.jsonl").is_file():
        return "not tracked"
    sent = read_json(wandb / "forwarded")  # rows; written when they and the summary have arrived
    if not isinstance(sent, int) or (wandb / "forwarded").stat().st_mtime < (wandb / "run.json").stat().st_mtime:
        return "not sent"
    with (record.path / "metrics.jsonl").open("rb") as file:
        return "sent" if sent >= sum(1 for _ in file) else "not sent"


def _send(record: Record) -> bool:
    from runner import tracking

    messages = tracking.replay(record.path, "online")
    failed = "error" in messages
    text = messages["error"] if failed else messages.get("url", "sent")
    print(f"{record.name}  {text}", file=sys.stderr if failed else sys.stdout, flush=True)
    return not failed
