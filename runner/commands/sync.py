"""runner sync [RUN|FOLDER] [--dry] [paths.runs=DIR]

Sends finished runs to Weights & Biases from their record (metrics.jsonl): one run, all below FOLDER, or all of them;
with runs of more than one, also the tables among them.
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
    records = chosen(options.words)
    finished = [record for record in records if record.state == "done" and not record.folder.in_use()]
    done = [(record.name, record.path) for record in finished] + tables(options.words)
    waiting = [(name, path) for name, path in done if state(path) == "not sent"]
    if options.dry:
        print_columns([(name, state(path)) for name, path in done])
        print(f"{len(waiting)} of {len(done)} finished runs would be sent")
        return 0
    if waiting:
        from runner.commands.doctor import logged_in

        if not logged_in():
            raise UserError("no W&B key is stored here: wandb login, or set WANDB_API_KEY (--dry needs none)")
    failures = sum(not _send(name, path) for name, path in waiting)
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


def tables(words: Sequence[str]) -> list[tuple[str, Path]]:
    """Name and folder of the tables below the folder that the words name, or below all runs."""
    names = [word for word in words if not word.startswith("paths.runs=")]
    folder = Path(names[0]).expanduser().absolute() if names else runs_folder(words)[0]
    found = sorted((folder / "tables").glob("*/*/wandb/run.json"))
    return [((read_json(path) or {}).get("name", path.parts[-3]), path.parents[1]) for path in found]


def state(path: Path) -> str:
    """Whether the record of a finished run folder is on the server: 'sent', 'not sent' or 'not tracked'."""
    wandb = path / "wandb"
    if not (wandb / "run.json").is_file() or not (path / "metrics.jsonl").is_file():
        return "not tracked"
    sent = read_json(wandb / "forwarded")  # rows; written when they and the summary have arrived
    if not isinstance(sent, int) or (wandb / "forwarded").stat().st_mtime < (wandb / "run.json").stat().st_mtime:
        return "not sent"
    with (path / "metrics.jsonl").open("rb") as file:
        return "sent" if sent >= sum(1 for _ in file) else "not sent"


def _send(name: str, path: Path) -> bool:
    from runner import tracking

    messages = tracking.replay(path, "online")
    failed = "error" in messages
    text = messages["error"] if failed else messages.get("url", "sent")
    print(f"{name}  {text}", file=sys.stderr if failed else sys.stdout, flush=True)
    return not failed
