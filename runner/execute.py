"""One experiment from a composed config to the path of its result."""

from __future__ import annotations

import contextlib
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import StopRequested, UserError
from runner.plan import Plan, plan

if TYPE_CHECKING:
    from runner.compose import Composed

_RUNNING = threading.Lock()  # two runs at once would draw from the same generators


def execute(composed: Composed) -> Path:
    """Answers from the stored result, resumes, or runs; returns the path of result.json.

    Raises:
        UserError, RunFailed, StopRequested: see ``runner.errors``.
    """
    planned = plan(composed.config, composed.origin)
    demonstration = demonstration_line(composed)
    stored = planned.folder.result()
    if stored is not None and not planned.config["force"]:
        say(demonstration)
        answer_stored(planned, stored)
    else:
        run_planned(planned, demonstration, composed.search_path)
    say(demonstration)
    return planned.folder.result_path


def run_planned(planned: Plan, first_line: str, search_path: Sequence[Path]) -> dict[str, Any]:
    """Runs a plan in this process: checks it, locks its folder, shows its progress and closing table."""
    with _alone(), stop_signals() as stop_requested:
        from runner import randomness
        from runner.cells import check, run_locked
        from runner.context import Launch
        from runner.environment import hardware_summary, resolve_device
        from runner.progress import Progress, closing_table

        checked = check(planned)
        device = resolve_device(checked.settings.hardware.device)
        folder = planned.folder
        folder.create()
        say(first_line)
        progress = Progress()
        try:
            with folder.lock(), randomness.preserved():
                if planned.config["force"] and folder.result() is not None:
                    folder.clear()
                progress.say(f"{planned.name}/{planned.key} in {folder.path}")
                progress.say(f"hardware: {hardware_summary(device)}")
                result = run_locked(checked, Launch(device, progress, stop_requested, search_path))
        except StopRequested as stop:
            raise StopRequested(f"stopped {stop}; the state is saved, the same command goes on") from None
        finally:
            progress.close()
    say(closing_table(result))
    return result


def answer_stored(planned: Plan, result: dict[str, Any]) -> None:
    """Shows a stored result; says when it came from other code."""
    from runner.progress import closing_table

    planned.folder.settle()
    say(f"already done: {planned.folder.path} (force=true runs it again)")
    if result.get("code") != planned.code():
        say("stale: the code of this method changed since; force=true recomputes")
    host = result.get("hardware", {}).get("host")
    if host != socket.gethostname():
        say(f"measured on another machine ({host}): its latency, not this one's (`runner profile` measures here)")
    say(closing_table(result))


def demonstration_line(composed: Composed) -> str:
    """At desk and smoke scale: that this is not the paper's protocol, and the command that is."""
    scale = composed.config["scale"]["name"]
    if scale == "paper":
        return "scale=paper: the paper's own recipe"
    folders = [f"--config-dir {shlex.quote(str(folder))}" for folder in composed.search_path[1:]]
    words = [shlex.quote(word) for word in composed.overrides if not word.startswith("scale=")]
    command = " ".join(["runner", *folders, *words, "scale=paper"])
    return f"scale={scale}: a demonstration, not the paper's protocol; the paper's own recipe: {command}"


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    if not _RUNNING.acquire(blocking=False):
        raise UserError("another thread of this process runs an experiment; one beside it needs a process of its own")
    try:
        yield
    finally:
        _RUNNING.release()


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM, SIGUSR1 and Ctrl-C ask for a stop at the next step; a second Ctrl-C stops at once."""
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        if asked and number == signal.SIGINT:
            raise StopRequested("at once, on a second Ctrl-C; the last saved state is kept")
        asked.append(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
    try:
        before = {number: signal.signal(number, ask) for number in numbers}
    except ValueError:  # not the main thread (a notebook): the host handles signals
        before = {}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(text: str) -> None:
    """A line to standard error; standard output belongs to the path of the result."""
    print(text, file=sys.stderr, flush=True)
