"""The queue of a sweep: starts cells as slots come free, goes on when one fails, shares the grid with other processes.

Light: no torch. Cells run in processes of their own (``runner.sweep.launchers``); what they computed is read from
their run folders, so nothing is lost with this process.
"""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from runner.errors import StopRequested, UserError
from runner.execute import stop_signals
from runner.sweep import Job, Outcome, SweepOptions
from runner.sweep.cell import IN_USE, last_line, settle, specification
from runner.sweep.launchers import Fork, Fresh, Launcher, make_launcher
from runner.sweep.layout import Layout, layout
from runner.sweep.planning import Cell, in_cell
from runner.sweep.remote import killed_by
from runner.sweep.screen import Screen
from runner.sweep.summary import sweep_folder, write_summary

TICK_SECONDS = 0.2
LOOK_SECONDS = 1.0  # between two looks at what another process runs
CHECK = "check"
OPEN = ("queued", "running", "waiting")


class Sweep:
    """One sweep, from planned cells to their outcomes."""

    def __init__(self, jobs: Sequence[tuple[Job, Cell]], options: SweepOptions, group: str, name: str) -> None:
        self.jobs = list(jobs)
        self.cells = list(dict.fromkeys(cell for _, cell in jobs))
        config = self.cells[0].composed.config
        self.launcher_name, self._words = options.launcher, options.launcher_overrides
        self.retries = config["retries"] if options.retries is None else options.retries
        self.fail_fast = config["fail_fast"] if options.fail_fast is None else options.fail_fast
        self.stop_after = config["stop_after"] if options.stop_after is None else options.stop_after
        self.folder = sweep_folder(self.cells, name)
        self.group = group or self.folder.name
        self.layout: Layout = layout(self.cells, options.slots, launcher=self.launcher_name)
        self.summary_path = self.folder / "summary.json"
        self.stopping = ""  # why no further cell starts
        self.begun = time.time()
        self._asked_to_stop = False
        self._slots: list[int | None] = list(self.layout.slots)
        self._looked = 0.0
        self._tracebacks: dict[str, set[int]] = {}  # where and what -> cells, once each however often they are tried

    @property
    def exit_code(self) -> int:
        """1 when a cell failed, 75 when some were stopped, else 0."""
        states = {cell.state for cell in self.cells}
        return 1 if "failed" in states else StopRequested.exit_code if states & {"stopped", "waiting"} else 0

    def of(self, *states: str) -> list[Cell]:
        """The cells in any of these states."""
        return [cell for cell in self.cells if cell.state in states]

    def outcomes(self) -> list[Outcome]:
        """In the order of the jobs."""
        return [
            Outcome(job, cell.state, cell.folder.path, cell.result, cell.error, cell.seconds) for job, cell in self.jobs
        ]

    def run(self) -> None:
        """Runs all that has to run; writes the summary.

        Raises:
            UserError: a cell's request is wrong; nothing was run.
        """
        self._make_folder()
        if self.of("queued"):
            fresh = not self.layout.forks
            launcher = make_launcher(
                self.launcher_name,
                self._words,
                fresh=fresh,
                modules=self._modules(),
                environment=self.layout.environment,
                folder=self.folder,
            )
            with stop_signals() as stop_requested, Screen(self) as self.screen:
                try:
                    self._check(launcher if isinstance(launcher, (Fork, Fresh)) else Fresh(), stop_requested)
                    self._work(launcher, stop_requested)
                except StopRequested:  # the second Ctrl-C
                    self.stopping = "at once"
                finally:
                    self._close(launcher)
        write_summary(self.folder, self.jobs, self.begun, self.launcher_name)

    def _make_folder(self) -> None:
        try:
            (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write run folders in {self.folder.parent.parent}: {error.strerror}; "
                "give another place with paths.runs=DIR"
            ) from None

    def _modules(self) -> list[str]:
        """What the cells to run import beside what every run does; a user's own module is left to the cells."""
        from runner.datasets import MODULES

        found = ["runner.datasets.images"]
        for cell in self.of("queued"):
            config = cell.composed.config
            found.append(config["method"]["target"].partition(":")[0])
            found.append(MODULES.get(config["dataset"]["name"], ""))
            found += ["sklearn.datasets"] if config["dataset"]["name"] == "digits" else []
        ours = ("runner.", "sklearn.")
        return [name for name in dict.fromkeys(found) if name and name.startswith(ours)]

    def _check(self, launcher: Launcher, stop_requested) -> None:
        """Finds what only torch and the methods' classes can tell to be wrong."""
        queued = self.of("queued")
        told = [specification(cell.composed, cell.folder, group=self.group, threads=1) for cell in queued]
        log = self.folder / "logs" / "check.log"
        log.unlink(missing_ok=True)
        launcher.start(CHECK, {"check": told, "path": sys.path}, log, self.layout.environment)
        ended: list[tuple[str, int]] = []
        while not ended and not stop_requested():
            ended = launcher.poll(TICK_SECONDS)
        if not ended:
            launcher.signal(CHECK, signal.SIGKILL)
        elif ended[0][1] == UserError.exit_code:
            number, _, message = last_line(log).partition(" ")
            raise in_cell(queued[int(number)].job, message)

    def _work(self, launcher: Launcher, stop_requested) -> None:
        while self.of("running") or (not self.stopping and self.of(*OPEN)):
            if stop_requested() and not self._asked_to_stop:
                self._asked_to_stop = True
                self._stop(launcher, "on request; running cells save, a second Ctrl-C ends at once")
            if not self.stopping:
                self._look_at_others()
                self._fill(launcher)
            self.screen.update()
            for name, code in launcher.poll(TICK_SECONDS):
                cell = next((cell for cell in self.of("running") if cell.key == name), None)
                if cell is not None:
                    self._ended(cell, code)
                    if self.fail_fast and cell.state == "failed" and not self.stopping:
                        self._stop(launcher, f"fail_fast=true and {cell.label} failed")

    def _stop(self, launcher: Launcher, why: str) -> None:
        self.stopping = why
        self.screen.say(f"sweep: stops {why}")
        for cell in self.of("running"):
            launcher.signal(cell.key, signal.SIGTERM)

    def _close(self, launcher: Launcher) -> None:
        left = self.of("running")
        for cell in left:
            launcher.signal(cell.key, signal.SIGKILL)
        end = time.monotonic() + 5
        while self.of("running") and time.monotonic() < end:
            for name, _ in launcher.poll(TICK_SECONDS):
                for cell in left:
                    if cell.key == name:
                        self._free(cell, "stopped")
                        settle(cell.folder, "stopped", None)
        launcher.close()
        for cell in self.of("running", "queued"):
            cell.state = "stopped"

    # ---- starting ---------------------------------------------------------------------------------------------------

    def _fill(self, launcher: Launcher) -> None:
        while self._slots and (cell := self._next()) is not None:
            if not self._forced(cell) and cell.look_up():
                self._free(cell, "done")
                self.screen.ended(cell)
            elif cell.folder.in_use():
                self._wait_for(cell)
            else:
                cell.slot = self._slots.pop(0)
                cell.state, cell.started = "running", time.time()
                cell.attempts += 1
                told = specification(cell.composed, cell.folder, group=self.group, threads=self.layout.threads)
                environment = {**self.layout.environment, **self.layout.of_slot(cell.slot)}
                launcher.start(cell.key, told, self._log(cell), environment)

    def _next(self) -> Cell | None:
        """The first queued cell that no running one keeps waiting for a run that both need; else the first."""
        queued = self.of("queued")
        claimed = {folder.path for cell in self.of("running") for folder in (cell.folder, *cell.roles)}
        for cell in queued if claimed else ():
            needed = [folder for folder in (cell.folder, *cell.roles) if folder.path in claimed]
            if all(folder.result() is not None for folder in needed):
                return cell
        return queued[0] if queued else None

    def _forced(self, cell: Cell) -> bool:
        return cell.composed.config["force"]

    def _log(self, cell: Cell) -> Path:
        return self.folder / "logs" / f"{cell.key}.log"

    # ---- sharing with other processes -------------------------------------------------------------------------------

    def _wait_for(self, cell: Cell) -> None:
        cell.state, cell.waiting_since = "waiting", time.time()
        self.screen.say(f"waits for another process that runs it: {cell.label}")

    def _look_at_others(self) -> None:
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        for cell in self.of("waiting"):
            if cell.folder.in_use():
                continue
            if cell.look_up():
                cell.state = "done"
                self.screen.ended(cell)
                continue
            status = cell.folder.status()
            if status.get("state") == "failed" and status.get("updated", 0.0) >= cell.waiting_since:
                # the process that ran it tried as often as it was told to
                cell.error = f"failed in another process: {last_line(cell.folder.path / 'error.txt')}"
                cell.state = "failed"
                self.screen.ended(cell)
            else:
                cell.state = "queued"  # it was stopped or killed: it goes on here

    # ---- ending -----------------------------------------------------------------------------------------------------

    def _free(self, cell: Cell, state: str) -> None:
        if cell.state == "running":
            cell.seconds += time.time() - cell.started
            self._slots.append(cell.slot)
        cell.state = state

    def _ended(self, cell: Cell, code: int) -> None:
        self._free(cell, "done")
        if code == IN_USE:
            cell.attempts -= 1
            self._wait_for(cell)
            return
        if code == StopRequested.exit_code:
            cell.state = "stopped"
        elif code == -signal.SIGTERM and self.stopping:  # the stop came before the run could hear it
            cell.state = "stopped"
            settle(cell.folder, "stopped", None)
        elif code != 0 or not cell.look_up():
            self._failed(cell, code)
        if cell.state != "queued":
            self.screen.ended(cell)

    def _failed(self, cell: Cell, code: int) -> None:
        if code < 0:
            if cell.look_up():  # killed after its result was written
                return
            cell.error = killed_by(code)
            settle(cell.folder, "failed", f"{cell.error}\n\nOutput: {self._log(cell)}\n")
        else:
            cell.error = last_line(self._log(cell)) or "ended without a result"
            if cell.folder.status().get("state") == "running":
                settle(cell.folder, "failed", f"{cell.error}\n\nOutput: {self._log(cell)}\n")
            self._count_traceback(cell)
        cell.state = "failed"
        if cell.attempts <= self.retries and code != UserError.exit_code and not self.stopping:
            self.screen.say(f"failed, is tried again: {cell.label}: {cell.error}")
            cell.state = "queued"

    def _count_traceback(self, cell: Cell) -> None:
        mark = _traceback_mark(cell.folder.path / "error.txt") or cell.error
        failed = self._tracebacks.setdefault(mark, set())
        failed.add(id(cell))
        if self.stop_after and len(failed) >= self.stop_after and not self.stopping and self.of("queued"):
            self.stopping = f"{self.stop_after} failures with one traceback (stop_after={self.stop_after})"
            self.screen.say(f"sweep: no further cell starts: {self.stopping}")


def _traceback_mark(path: Path) -> str:
    """The places and the kind of an error, without its message, in which numbers differ."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ""
    places = [line.strip() for line in lines if re.match(r"\s+File ", line)]
    return "\n".join([*places, lines[-1].partition(":")[0]]) if places else ""
