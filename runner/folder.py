"""The run folder: its place, its state, its result and its lock. Light: no torch."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from runner.errors import UserError
from runner.storage import PARTIAL, read_json, remove_partial, write_json

_STATUS = threading.Lock()  # the run and its status writer share the file
HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 60.0  # a lock of another host without a heartbeat for so long is free


def process_start(pid: int) -> float | None:
    """What tells a live process of this host from a later one with its id: its start; None when there is none."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if sys.platform == "linux":  # ticks since boot: the wall clock's start moves whenever the clock is set
            return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        return round(process.create_time(), 2)
    except (psutil.Error, OSError):
        return None


class Locked(UserError):
    """The run folder belongs to a live process."""

    def __init__(self, folder: Path, owner: dict[str, Any]) -> None:
        super().__init__(
            f"{folder} is in use by process {owner['pid']} on {owner['host']}; "
            "wait for it, or stop it and repeat the command"
        )
        self.folder = folder


@dataclass
class RunFolder:
    """``path``: runs/<method>-<model>-<dataset>/<key>. Only the context writes in it."""

    path: Path

    @property
    def result_path(self) -> Path:
        return self.path / "result.json"

    def result(self) -> dict[str, Any] | None:
        """The stored result of a finished run; None when there is none or it cannot be read."""
        result = read_json(self.result_path)
        return result if isinstance(result, dict) and isinstance(result.get("metrics"), dict) else None

    def status(self) -> dict[str, Any]:
        """The content of status.json, empty before the first start and where it cannot be read."""
        status = read_json(self.path / "status.json")
        return status if isinstance(status, dict) else {}

    def update_status(self, **values: Any) -> None:
        """Merges ``values`` into status.json."""
        with _STATUS:
            write_json(self.path / "status.json", {**self.status(), **values, "updated": time.time()})

    def create(self) -> None:
        """Makes the folder; a read-only or impossible place is a wrong request."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise UserError(
                f"cannot write run folders in {self.path.parent.parent}: {error.strerror}; "
                "give another place with paths.runs=DIR"
            ) from None

    def clear(self) -> None:
        """Prepares a forced rerun: state goes, the old result waits as result.previous.json for the new one."""
        self.result_path.replace(self.path / "result.previous.json")
        for name in ("status.json", "metrics.jsonl", "error.txt"):
            (self.path / name).unlink(missing_ok=True)
        for name in ("checkpoints", "artifacts", "figures"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def interrupted(self) -> bool:
        """Whether there is stored state from which a run goes on."""
        return any((self.path / "checkpoints").glob("*.pt"))

    def settle(self) -> None:
        """Does what a kill after the result was written left undone: state says done, checkpoints and lock go."""
        left = (self.path / name for name in ("checkpoints", "lock.json"))
        if self.status().get("state") == "done" and not any(path.exists() for path in left):
            return
        try:
            with self.lock():
                shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
                self.update_status(state="done")
        except (Locked, OSError):
            return  # its process is still at it, or the folder is read-only: the result stands all the same

    def in_use(self) -> bool:
        """Whether a live process holds the lock."""
        path = self.path / "lock.json"
        owner = read_json(path)
        return bool(owner) and _alive(owner, path)

    def remove(self) -> None:
        """Deletes the folder with all that is in it.

        Raises:
            Locked: a live process holds it.
        """
        condemned = self.path.with_name(f".{self.path.name}{PARTIAL}")
        with _guard(self.path):
            if self.in_use():
                raise Locked(self.path, read_json(self.path / "lock.json"))
            shutil.rmtree(condemned, ignore_errors=True)
            self.path.rename(condemned)  # nobody meets half a run
        shutil.rmtree(condemned)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process.

        Raises:
            Locked: a live process of this host, or one of another host with a fresh heartbeat, holds it.
        """
        path = self.path / "lock.json"
        with _guard(self.path):
            if self.in_use():
                raise Locked(self.path, read_json(path))
            pid = os.getpid()
            mine = {"pid": pid, "start": process_start(pid), "host": socket.gethostname()}
            write_json(path, mine)
            remove_partial(self.path)
        stop = threading.Event()
        beat = threading.Thread(target=_heartbeat, args=(path, stop), daemon=True)
        beat.start()
        try:
            yield
        finally:
            stop.set()
            with _guard(self.path):
                if read_json(path) == json.loads(json.dumps(mine)):
                    path.unlink(missing_ok=True)


@contextmanager
def _guard(folder: Path) -> Iterator[None]:
    """Two processes never judge and take one lock at the same moment."""
    descriptor = os.open(folder / ".lock.guard", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _alive(owner: dict[str, Any], path: Path) -> bool:
    if owner.get("host") == socket.gethostname():
        return process_start(owner["pid"]) == owner["start"]
    try:
        return time.time() - path.stat().st_mtime < STALE_SECONDS
    except OSError:
        return False


def _heartbeat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        try:
            os.utime(path)
        except OSError:
            return
