"""runner clean [FILTERS] [--older-than DAYS] [--yes] [paths.runs=DIR]

Lists what could go, with sizes; deletes it only with --yes:
  - checkpoints of finished runs
  - whole runs that failed or were interrupted more than DAYS days ago (default 30); stopped ones are kept
  - leftovers: half-written files, stale locks, folders in which no run ever began
A finished run's results and network are never touched, nor a run that is going on. Filters are those of `runner runs`.
Exit code 1 when something resisted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.commands import Parser
from runner.commands.runs import Filter, age, fitting, print_columns, size
from runner.errors import UserError
from runner.folder import Locked
from runner.records import Record, disk_bytes, find_runs, runs_folder
from runner.storage import PARTIAL

UNFINISHED = ("failed", "interrupted")
BEGINNING_SECONDS = 3600.0  # so long a folder without a state may belong to a run that is about to begin


def parser() -> Parser:
    found = Parser("clean")
    found.add_argument("--older-than", type=float, default=30.0, metavar="DAYS")
    found.add_argument("--yes", action="store_true")
    return found


@dataclass(frozen=True)
class Candidate:
    """Something that could go: ``path`` is the run folder or in it (or a remainder of one, without a record)."""

    path: Path
    reason: str
    record: Record | None

    @property
    def disk_bytes(self) -> int:
        return disk_bytes(self.path)

    def remove(self) -> None:
        """Deletes it; raises Locked when a process has taken the run meanwhile."""
        if self.record is None:
            _delete(self.path)
        elif self.path == self.record.path:
            self.record.folder.remove()
            with contextlib.suppress(OSError):  # other runs stand in it
                self.path.parent.rmdir()
        else:
            with self.record.folder.lock():
                _delete(self.path)


def main(arguments: Sequence[str], config_dirs: Sequence[Path]) -> int:
    options = parser().read(arguments)
    if not options.older_than >= 0:  # nan too
        raise UserError(f"--older-than {options.older_than:g}: expected days, 0 or more")
    folder, words = runs_folder(options.words)
    filters = [Filter.read(word) for word in words]
    found = list(candidates(folder, filters, options.older_than))
    if not found:
        print("nothing to clean")
        return 0
    sizes = [candidate.disk_bytes for candidate in found]
    print_columns(
        [
            (size(count), str(candidate.path.relative_to(folder)), candidate.reason)
            for count, candidate in zip(sizes, found, strict=True)
        ]
    )
    if not options.yes:
        print(f"{size(sum(sizes))} in {len(found)} places; nothing was deleted: --yes does it")
        return 0
    freed = failures = 0
    for count, candidate in zip(sizes, found, strict=True):
        try:
            candidate.remove()
            freed += count
        except Locked:
            print(f"runner: kept {candidate.path}: a run began there", file=sys.stderr)
        except FileNotFoundError:
            continue  # somebody else was faster
        except OSError as error:
            failures += 1
            print(f"runner: kept {candidate.path}: {error.strerror}", file=sys.stderr)
    print(f"deleted {size(freed)}")
    return 1 if failures else 0


def candidates(folder: Path, filters: Sequence[Filter], older_than_days: float) -> Iterator[Candidate]:
    """What could go at or below ``folder``; nothing of a run whose lock is alive."""
    records = list(find_runs(folder))
    for record in fitting(records, filters) if filters else records:
        if record.folder.in_use():
            continue
        if not record.status and not record.result:
            if time.time() - record.path.stat().st_mtime > BEGINNING_SECONDS:
                yield Candidate(record.path, "no run ever began here", record)
        elif record.state in UNFINISHED and record.age_days >= older_than_days:
            yield Candidate(record.path, f"{record.state} {age(record.age_days * 86400)} ago", record)
        else:
            yield from _in_run(record)
    if not filters:
        yield from (Candidate(path, "remainder of a deleted run", None) for path in _remainders(folder))


def _in_run(record: Record) -> Iterator[Candidate]:
    """What a run can do without: a finished one its checkpoints, any its half-written files and a dead lock."""
    checkpoints = record.path / "checkpoints"
    if record.state == "done" and checkpoints.is_dir():
        yield Candidate(checkpoints, "checkpoints of a finished run", record)
    if record.state == "done" and (previous := record.path / "result.previous.json").is_file():
        yield Candidate(previous, "result before the last forced run", record)
    for path in sorted(record.path.rglob(f".*{PARTIAL}")):
        if not (record.state == "done" and checkpoints in path.parents):
            yield Candidate(path, "half-written", record)
    lock = record.path / "lock.json"
    if lock.exists():
        yield Candidate(lock, "lock of a dead process", record)


def _remainders(folder: Path) -> Iterator[Path]:
    for place, folders, _ in os.walk(folder):
        yield from (Path(place) / name for name in sorted(folders) if name.endswith(PARTIAL) and name[0] == ".")
        if len(Path(place).relative_to(folder).parts) >= 1:
            folders.clear()


def _delete(path: Path) -> None:
    """What is gone already is no error: taking a run's lock removes half-written files, too."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
