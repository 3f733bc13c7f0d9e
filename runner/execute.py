"""One experiment from a composed config to the path of its result."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import LAST_STATE, RunFailed, StopRequested, UserError
from runner.plan import Plan, plan
from runner.storage import write_atomic

if TYPE_CHECKING:
    import torch

    from runner.cells import Checked
    from runner.compose import Composed
    from runner.ranks import Ranks

_RUNNING = threading.Lock()  # two runs at once would draw from the same generators


def execute(composed: Composed, *, group: str | None = None) -> Path:
    """Answers from the stored result, resumes, or runs; returns the path of result.json.

    ``group`` is the W&B group of a sweep that this run is a cell of.

    Raises:
        UserError, RunFailed, StopRequested: see ``runner.errors``.
    """
    config = composed.config
    planned = plan(throw_away(config) if config["debug"] is True else config, composed.origin)
    demonstration = demonstration_line(composed)
    stored = planned.folder.result()
    if stored is not None and not planned.config["force"]:
        say(demonstration)
        answer_stored(planned, stored)
    else:
        run_planned(planned, demonstration, composed.search_path, group=group)
    say(demonstration)
    return planned.folder.result_path


def run_planned(
    planned: Plan, first_line: str, search_path: Sequence[Path], *, group: str | None = None
) -> dict[str, Any]:
    """Runs a plan in this process: checks it, locks its folder, shows its progress and closing table."""
    if planned.config["hardware"].get("processes", 1) != 1:
        # before torch is loaded: it would warn of what is meant so
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with _alone(), stop_signals() as stop_requested:
        from runner import randomness
        from runner.cells import check, run_locked
        from runner.context import Launch
        from runner.environment import hardware_summary, resolve_device
        from runner.progress import Progress, closing_table

        checked = check(planned)
        device = resolve_device(checked.settings.hardware.device)
        folder = planned.folder
        beside, note = _beside(checked, device, search_path)
        folder.create()
        say(first_line)
        debug = planned.config["debug"]
        progress = Progress(plain=True if debug else None)  # a live line would get between breakpoint() and the screen
        try:
            named = anomalies_named() if debug else contextlib.nullcontext()
            with beside as ranks, folder.lock(), randomness.preserved(), named:
                if planned.config["force"] and folder.result() is not None:
                    folder.clear()
                progress.say(f"{planned.name}/{planned.key} in {folder.path}")
                progress.say(f"hardware: {hardware_summary(device)}{note}")
                if ranks is not None:
                    ranks.connect()
                launch = Launch(device, progress, stop_requested, search_path, ranks=ranks, group=group)
                result = run_locked(checked, launch)
        except StopRequested as stop:
            raise StopRequested(f"stopped {stop}; the state is saved, the same command goes on") from None
        except RunFailed:
            if debug and (folder.path / "error.txt").exists():
                say((folder.path / "error.txt").read_text().rstrip())
            raise
        finally:
            progress.close()
    say(closing_table(result))
    return result


def _beside(
    checked: Checked, device: torch.device, search_path: Sequence[Path]
) -> tuple[AbstractContextManager[Ranks | None], str]:
    """What starts the other processes of a run, and what to say about them."""
    hardware = checked.settings.hardware
    if hardware.processes == 1:
        return contextlib.nullcontext(), ""
    from runner.followers import process_count, started

    count = process_count(checked, device)
    if count == 1:
        name, alone = checked.plan.config["method"]["name"], not getattr(checked.method, "distributed", True)
        return contextlib.nullcontext(), f"; method {name} cannot share its batches: one process" if alone else ""

    def ended(message: str) -> None:
        say(f"runner: {message}; {LAST_STATE} ({checked.plan.folder.path / 'error.txt'})")
        write_atomic(checked.plan.folder.path / "error.txt", message + "\n")
        checked.plan.folder.update_status(state="failed")

    return started(checked, device, count, search_path, ended), f"; {count} processes"


def throw_away(config: dict[str, Any]) -> dict[str, Any]:
    """The same run for debug=true: in a new folder that nothing reads again, one process and no workers, untracked."""
    folder = tempfile.mkdtemp(prefix="runner-debug-")
    say(f"debug=true: no stored result is read, all cells run anew in {folder}, to be thrown away")
    changes = {"paths": {"runs": folder}, "hardware": {"processes": 1, "workers": 0}, "tracking": {"mode": "none"}}
    return {**config, **{name: {**config[name], **values} for name, values in changes.items()}}


def anomalies_named() -> AbstractContextManager:
    """Inside, a backward pass that fails or yields NaN shows the forward operation that it belongs to."""
    import torch

    return torch.autograd.set_detect_anomaly(True)


def answer_stored(planned: Plan, result: dict[str, Any]) -> None:
    """Shows a stored result; says when it came from other code."""
    from runner.progress import closing_table

    planned.folder.settle()
    say(f"already done: {planned.folder.path} (force=true runs it again)")
    if planned.config["profile"]:
        say("profile=true: there is no step to trace; force=true runs it again")
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
