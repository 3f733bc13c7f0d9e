"""The ranks above 0 of a run: started beside the process of the command, which is rank 0, and never left behind.

torch.multiprocessing starts and watches them; they end with rank 0, however it ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes

from runner.errors import RunFailed, StopRequested, UserError
from runner.ranks import Ranks

if TYPE_CHECKING:
    from runner.cells import Checked

STOP_SIGNALS = {getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)}
NOTICE_SECONDS = 5.0  # a rank's end is known this soon after others stumble over it
HANG_SECONDS = 15.0  # rank 0 may wait for a dead rank in a call that cannot be interrupted (NCCL): then it is ended


@dataclass(frozen=True)
class Place:
    """What a rank must know to take part; plain values, for a fresh process."""

    config: dict[str, Any]
    search_path: list[Path]
    device: str
    backend: str
    count: int
    meeting: Path


def process_count(checked: Checked, device: torch.device) -> int:
    """How many processes run this: ``hardware.processes``, or as many as there are GPUs.

    A run that was interrupted goes on with the number that it was begun with, where none is asked for: it decides the
    bits of the result. 1 for a method that cannot share its batches.

    Raises:
        UserError: there are too few GPUs.
    """
    hardware, folder = checked.settings.hardware, checked.plan.folder
    gpus = torch.cuda.device_count() if device.type == "cuda" else 1
    if not getattr(checked.method, "distributed", True):
        return 1
    begun = folder.status().get("processes", 1) if folder.interrupted() else None
    wanted = hardware.processes or begun or gpus
    if wanted > 1 and device.type == "mps":
        raise UserError(f"hardware.processes={wanted}: there is one Apple GPU; set hardware.processes=1")
    if wanted > gpus and device.type == "cuda" and hardware.backend != "gloo":
        raise UserError(f"hardware.processes={wanted}: there {'is' if gpus == 1 else 'are'} {gpus} CUDA device(s) here")
    return wanted


@contextlib.contextmanager
def started(
    checked: Checked, device: torch.device, count: int, search_path: Sequence[Path], ended: Callable[[str], None]
) -> Iterator[Ranks]:
    """Starts ranks 1 .. count-1 and is rank 0 inside; whatever happens, they are gone afterwards.

    Args:
        ended: called with a message from another thread when a rank died and this process hangs because of it; the
            process is ended then.
    """
    backend = checked.settings.hardware.backend
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory(prefix="runner-ranks-") as folder:
        place = Place(checked.plan.config, list(search_path), device.type, backend, count, Path(folder) / "meeting")
        followers = Followers(place, ended)
        ranks = Ranks(0, count, place.meeting, backend)
        ranks.lost = followers.lost
        try:
            yield ranks
            followers.closing = True
            ranks.share()  # the others wait for this: nobody leaves while another still talks to it
            followers.thread.join(HANG_SECONDS)
            ranks.disconnect()
        finally:
            followers.end()
            if backend == "gloo":  # NCCL would wait for those that are gone
                ranks.disconnect()


class Followers:
    """The processes of the ranks above 0, with a thread that watches them."""

    def __init__(self, place: Place, ended: Callable[[str], None]) -> None:
        self.closing = False
        self._count = place.count
        self._ended = ended
        self._message: str | None = None
        self._known, self._over = threading.Event(), threading.Event()
        # a process that computes on threads or a GPU cannot be forked; otherwise a fork saves loading all modules
        method = "fork" if place.device == "cpu" and _single_threaded() else "spawn"
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # they wait until the new process can take them
        try:
            self._context = start_processes(follow, (place,), place.count - 1, join=False, start_method=method)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def lost(self) -> str | None:
        """Which rank ended early and why, when one did."""
        self._known.wait(NOTICE_SECONDS)
        return self._message

    def end(self) -> None:
        """Kills what is left of them."""
        self.closing = True
        self._over.set()
        for process in self._context.processes:
            process.kill()
        self.thread.join(NOTICE_SECONDS)

    def _watch(self) -> None:
        try:
            while not self._context.join(grace_period=0.5):
                pass
        except (ProcessExitedException, ProcessRaisedException) as error:
            if self.closing:
                return
            if isinstance(error, ProcessRaisedException):
                how = "failed:\n" + error.msg.partition("error:\n")[2].strip()
            else:
                how = f"was killed by {error.signal_name}" if error.signal_name else f"ended with {error.exit_code}"
            self._message = f"rank {error.error_index + 1} of {self._count} {how}"
            self._known.set()
            if not self._over.wait(HANG_SECONDS):
                self._ended(self._message)
                os._exit(RunFailed.exit_code)


def _single_threaded() -> bool:
    try:
        return len(list(Path("/proc/self/task").iterdir())) == 1
    except OSError:
        return False


def follow(index: int, place: Place) -> None:
    """Rank ``index`` + 1, in a process of its own, to the end of the run."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from runner.cells import check, follow_cell
    from runner.context import Launch
    from runner.environment import resolve_device
    from runner.execute import stop_signals
    from runner.observer import Silent
    from runner.plan import plan

    with stop_signals() as stop_requested, contextlib.suppress(StopRequested):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        device = resolve_device(place.device)
        if device.type == "cuda":
            device = torch.device("cuda", (index + 1) % torch.cuda.device_count())
            torch.cuda.set_device(device)
        ranks = Ranks(index + 1, place.count, place.meeting, place.backend)
        ranks.connect()
        follow_cell(check(plan(place.config)), Launch(device, Silent(), stop_requested, place.search_path, ranks=ranks))
        ranks.share()
        ranks.disconnect()


def _end_with_parent() -> None:
    """A rank cannot outlive rank 0, whatever it waits for."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(RunFailed.exit_code)
