"""Weights & Biases: gets what metrics.jsonl holds, from a process of its own (runner/wandb_forward.py).

Online, that process follows the file while the run goes on. Offline, it is started once, at the end, and writes the
whole record of all attempts as one offline run: pieces written by each attempt would overwrite each other when they
are synced. Nothing here can fail or hold up a run: an error is one line on the screen, an end has a time limit.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal

from runner.schema import Tracking

FINISH_SECONDS = 20.0
REPLAY_BYTES_PER_SECOND = 50_000  # of metrics.jsonl, on top of the limit: a third of what was measured

# Set by the user, each of these wins over our default but not over a changed setting.
ENVIRONMENT = {
    "mode": "WANDB_MODE",
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "group": "WANDB_RUN_GROUP",
    "name": "WANDB_NAME",
    "tags": "WANDB_TAGS",
    "notes": "WANDB_NOTES",
}
DEFAULTS = {"mode": "offline", "project": "paper-runner", "tags": []}  # of conf/tracking; null for the others
# W&B's process must not read again what was decided here, nor join the service of a W&B run around us.
NOT_INHERITED = (*ENVIRONMENT.values(), "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_DIR", "WANDB_SERVICE", "WANDB_SILENT")


class Tracker:
    """One run's side of W&B.

    Args:
        folder: the run folder; all files stay in its wandb/.
        settings: the config section ``tracking``.
        key: the run's key; begins the W&B id, which all attempts share.
        config: the resolved config.
        name: of the W&B run unless the user gives one; carries the scale.
        group: the sweep or table that this run is a cell of, or None. A cell takes no WANDB_RUN_ID, which all share.
        inner: started by another run of this process (its baseline, its search): the id and the name that the user
            gave are the other run's.
        attempt: 1 for a fresh start, which gets a new id; more for a resume.
        offline: no network access at all.
        say: shows one line.
    """

    def __init__(
        self,
        folder: Path,
        settings: Tracking,
        *,
        key: str,
        config: dict[str, Any],
        name: str,
        group: str | None = None,
        inner: bool = False,
        attempt: int = 1,
        offline: bool = False,
        say: Callable[[str], None],
    ) -> None:
        self._folder = Path(folder).absolute()
        self._say = say
        self._follower: subprocess.Popen[bytes] | None = None
        self._messages: dict[str, str] = {}
        self._reader: threading.Thread | None = None
        chosen = resolve(settings, dict(os.environ))
        self.mode: Literal["online", "offline", "none"] = chosen.pop("mode")
        if offline and self.mode == "online":
            self.mode = "offline"
            say("W&B: offline=true forbids the network; this run is recorded offline")
        self._about: dict[str, Any] = {
            **chosen,
            "name": (not inner and chosen["name"]) or name,
            "group": chosen["group"] or group,
            "config": {**config, "key": key, "attempt": attempt},
            "pid": os.getpid(),
            "state": "running",
        }
        self._attempt = attempt
        given = None if inner or group is not None else os.environ.get("WANDB_RUN_ID")
        self._new_id = given or f"{key}-{secrets.token_hex(3)}"

    def start(self) -> None:
        """Writes what a later sync needs; online, begins to forward. metrics.jsonl exists already, cut to its state."""
        if self.mode == "none":
            return
        with self._harmless("not started"):
            path = self._folder / "wandb" / "run.json"
            path.parent.mkdir(exist_ok=True)
            before = {}
            if self._attempt > 1 and path.exists():
                before = json.loads(path.read_text())
            else:
                for name in ("forwarded", "forwarded_figures.json"):
                    (path.parent / name).unlink(missing_ok=True)
            self._about["id"] = before.get("id") or self._new_id
            self._write_about()
            if self.mode == "online":
                self._follower = _start(self._folder, "online", "follow")
                self._reader = threading.Thread(target=self._read_messages, daemon=True)
                self._reader.start()

    def finish(
        self,
        summary: dict[str, Any],
        state: Literal["done", "failed", "stopped"],
        limit_seconds: float = FINISH_SECONDS,
    ) -> None:
        """Call it last, when metrics.jsonl is flushed and the results are on disk.

        Sends the rest, the figures and the summary (nested as given), or writes the offline run and shows the command
        that syncs it. A stopped run writes no offline run: its resume will. Takes ``limit_seconds`` at most, and 20 s
        more a MB to be written.
        """
        if self.mode == "none" or "id" not in self._about:
            return
        with self._harmless("not finished"):
            self._about |= {"summary": summary, "state": state}
            self._write_about()
            if self._follower is not None and self._finish_online(limit_seconds):
                return
            if state != "stopped":
                self._finish_offline(limit_seconds)

    def _finish_online(self, limit_seconds: float) -> bool:
        follower = self._follower
        follower.stdin.close()
        try:
            failed = follower.wait(limit_seconds) != 0
        except subprocess.TimeoutExpired:
            kill(follower)
            if "url" not in self._messages:
                self._say(f"W&B: no answer within {limit_seconds:.0f} s")
                return False
            self._say(f"W&B: did not finish within {limit_seconds:.0f} s and was left; `runner sync` sends the rest")
            return True
        self._reader.join(1.0)
        if failed and "url" in self._messages:
            self._say(f"W&B: {self._messages.get('error', 'stopped early')}; `runner sync` sends the rest")
            return True
        return not failed

    def _finish_offline(self, limit_seconds: float) -> None:
        messages = replay(self._folder, "offline", limit_seconds)
        if "folder" in messages:
            self._say(f"W&B: recorded offline; to upload: wandb sync {shlex.quote(messages['folder'])}")
        else:
            self._say(f"W&B: no offline record, {messages['error']}; metrics.jsonl has all values")

    def _read_messages(self) -> None:
        """In a thread: says where the run can be watched, or why not, as soon as it is known."""
        for message in _messages(self._follower.stdout):
            self._messages.update(message)
            if "url" in message:
                self._say(f"W&B: {message['url']}")
            if "error" in message and "url" not in self._messages:
                self._say(f"W&B: cannot go online ({message['error']}); this run is recorded offline")

    def _write_about(self) -> None:
        path = self._folder / "wandb" / "run.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(self._about, indent=2, default=str))
        new.replace(path)

    def _harmless(self, what: str) -> _Harmless:
        return _Harmless(lambda error: self._say(f"W&B: {what} ({error}); metrics.jsonl has all values"))


class _Harmless:
    """Turns an exception of its block into a line; stop requests pass."""

    def __init__(self, tell: Callable[[Exception], None]) -> None:
        self._tell = tell

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Exception):
            self._tell(error)
            return True
        return False


def resolve(settings: Tracking, environment: dict[str, str]) -> dict[str, Any]:
    """The settings in force: a changed setting, else a WANDB_ variable that is set, else our default."""
    chosen: dict[str, Any] = {}
    for name, variable in ENVIRONMENT.items():
        value = getattr(settings, name)
        given = environment.get(variable)
        if given and value == DEFAULTS.get(name):
            value = [tag.strip() for tag in given.split(",")] if name == "tags" else given
        chosen[name] = value
    modes = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "none": "none"}
    chosen["mode"] = modes.get(chosen["mode"], "none")  # W&B's "disabled"
    return chosen


def replay(folder: Path, mode: Literal["online", "offline"], limit_seconds: float = FINISH_SECONDS) -> dict[str, str]:
    """Sends (online) or writes (offline) the record of a run folder that holds wandb/run.json.

    Returns ``{"url": ...}`` or ``{"folder": ...}``, or ``{"error": ...}``.
    Rows that are on the server already are not sent again.
    """
    record = folder / "metrics.jsonl"
    if not record.exists() or not (folder / "wandb" / "run.json").exists():
        return {"error": "the run was never tracked"}
    limit_seconds += record.stat().st_size / REPLAY_BYTES_PER_SECOND
    worker = _start(folder, mode, "replay")
    try:
        output, _ = worker.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"W&B did not finish within {limit_seconds:.0f} s"}
    finally:
        if worker.poll() is None:
            kill(worker)
    found: dict[str, str] = {}
    for message in _messages(output.splitlines()):
        found |= message
    if worker.returncode != 0:
        found.setdefault("error", f"W&B's process ended with code {worker.returncode}")
    return found


def _start(folder: Path, mode: str, how: str) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("wandb_forward.py")
    try:
        log: IO[bytes] | int = (folder / "wandb" / "forward.log").open("wb")
    except OSError:
        log = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            # -P: the folder of the script stays off the path, its modules would hide others
            [sys.executable, "-P", str(script), str(folder), mode, how],
            stdin=subprocess.PIPE if how == "follow" else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env={name: value for name, value in os.environ.items() if name not in NOT_INHERITED},
            start_new_session=True,  # Ctrl-C and a scheduler's SIGTERM to the group are for the run
        )
    finally:
        if not isinstance(log, int):
            log.close()


def _messages(lines: Any) -> Any:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a process that this one started, with the service that W&B gave it."""
    import psutil

    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        children = []
    process.kill()
    for child in children:
        try:
            child.kill()
        except psutil.Error:
            continue
    process.wait()
