"""Durable execution: a method is run again from its first line after a kill, and its verbs skip what is done.

`once` returns its stored result; a finished `loop` yields nothing and restores the tracked state with which it ended;
an interrupted loop restores tracked and random state and goes on. Every verb runs in a random stream derived from
(seed, phase name) and leaves the surrounding random state as it found it, so a skipped verb leaves nothing behind.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from runner import randomness
from runner.checkpoints import Checkpoints, decode, encode
from runner.errors import RunFailed, StopRequested
from runner.loop import Loop
from runner.schema import Seeds
from runner.tracked import check_trackable, read_state, write_state

if TYPE_CHECKING:
    from runner.ranks import Ranks
    from runner.trace import Trace

Result = TypeVar("Result")


class Observer(Protocol):
    """Who is told how a run goes: the display, metrics.jsonl and Weights & Biases behind one face."""

    def phase(self, name: str, total: int | None) -> None: ...
    def advance(self, step: int, values: dict[str, float]) -> None: ...
    def end_phase(self, seconds: float) -> None: ...
    def say(self, text: str) -> None: ...
    def write(self, phase: str, step: int, values: dict[str, float]) -> None: ...
    def position(self) -> int: ...
    def rewind(self, position: int) -> None: ...


class Durable:
    """The verbs ``loop``, ``once``, ``track`` and ``log`` of one run."""

    def __init__(
        self,
        *,
        seed: int,
        device: torch.device,
        checkpoints: Checkpoints,
        observer: Observer,
        every_seconds: float,
        log_every: int,
        seeds: Seeds | None = None,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
        ranks: Ranks | None = None,
    ) -> None:
        self.seed = seed
        self.seeds = (seeds or Seeds()).filled(seed)
        self.device = device
        self.checkpoints = checkpoints
        self.observer = observer
        self.every_seconds = every_seconds
        self.log_every = log_every
        self.max_epochs = max_epochs
        self.max_steps = max_steps
        self.stop_requested = stop_requested
        self.ranks = ranks  # None: one process
        self.trace: Trace | None = None
        self.phases: dict[str, dict[str, Any]] = {}  # of the outermost verbs: seconds over all attempts
        self._tracked: dict[str, Any] = {}
        self._stack: list[Loop | str] = []
        self._names: set[str] = set()
        self._replayed_logs: list[tuple[str, int, dict[str, float]]] | None = []
        self._last_save = time.monotonic()

    # ---- the verbs -------------------------------------------------------------------------------------------------

    def track(self, **objects: Any) -> None:
        """Names the state that loops save and restore. A cut or swapped object is tracked again under its name.

        ``name=None`` ends the tracking of an object that no later loop changes, so that they need not save it.
        """
        for name, item in objects.items():
            if item is None:
                self._tracked.pop(name, None)
            else:
                check_trackable(name, item)
                self._tracked[name] = item

    def loop(
        self,
        name: str,
        source: Any = None,
        *,
        epochs: int | None = None,
        until: Callable[[], bool] | None = None,
    ) -> Loop:
        """Resumable iteration; see ``Loop``. ``source``: a number of steps, batches, or None with ``until``."""
        return Loop(self, name, source, epochs=epochs, until=until)

    def once(self, name: str, compute: Callable[[], Result], *, on_all_ranks: bool = False) -> Result:
        """Runs ``compute`` in its own random stream and stores the result; after a kill it is read, not computed.

        The result holds tensors, numbers, text and plain containers. ``compute`` must not change tracked state.
        Among several ranks rank 0 computes, as if it were alone, and the others get its result; with ``on_all_ranks``
        all compute it together, to one result.
        """
        path = self.enter_name(name)
        stored = self.stored(self.checkpoints.load_phase, path)
        if stored is not None:
            self.skipped(stored)
            self.note_seconds(path, stored["seconds"])
            return decode(stored["value"])
        self.going_live()
        started = time.monotonic()
        self.observer.phase(path, None)
        ranks = self.ranks
        if ranks is None or on_all_ranks:
            value = self._compute(path, compute)
        elif ranks.main:
            self.ranks = None  # inside, every verb is one process's
            try:
                value = self._compute(path, compute)
            finally:
                self.ranks = ranks
        else:
            return self._result_of_main(path)
        seconds = time.monotonic() - started
        payload = {"value": value, "seconds": seconds, "metrics_position": self.observer.position()}
        if ranks is None or ranks.main:
            self.checkpoints.save_phase(path, payload)
        self.note_seconds(path, seconds)
        self.observer.end_phase(seconds)
        self._stop_after(path)
        return decode(value)

    def _compute(self, path: str, compute: Callable[[], Any]) -> Any:
        self._stack.append(path)
        try:
            with randomness.stream(self.seed, path):
                return encode(compute(), f"the result of '{path}'")
        finally:
            self._stack.pop()

    def _result_of_main(self, path: str) -> Any:
        self._stop_after(path)  # rank 0 comes here when the result is stored
        return decode(self.checkpoints.load_phase(path)["value"])

    def _stop_after(self, path: str) -> None:
        stop = self.stop_requested()
        if self.ranks is not None:
            stop, _ = self.ranks.agree(stop, False)
        if stop:
            raise StopRequested(f"after phase '{path}'")

    def log(self, **values: float | torch.Tensor) -> None:
        """Records values of the current step; tensors are read only when they are written or checked."""
        loop = self._innermost_loop()
        if loop is not None:
            loop.pending.update(values)
            return
        entry = (self._stack[-1] if self._stack else "run", 0, _floats(values))
        if self._replayed_logs is None:
            self.observer.write(*entry)
        else:  # written only if no stored phase follows: else it stands in the file already
            self._replayed_logs.append(entry)

    def finish(self) -> None:
        """The method returned: what it logged last is written."""
        self.going_live()

    @property
    def busy(self) -> bool:
        """Whether a verb is under way."""
        return bool(self._stack)

    # ---- what Loop needs -------------------------------------------------------------------------------------------

    def enter_name(self, name: str) -> str:
        """The full name of a verb: inside a loop it carries the step. Each name is used once a run."""
        loop = self._innermost_loop()
        path = name if loop is None else f"{loop.path}[{loop.step}]/{name}"
        if path in self._names:
            raise ValueError(f"two phases are named '{path}'; every loop and once needs a name of its own")
        self._names.add(path)
        return path

    @contextmanager
    def inside(self, loop: Loop) -> Iterator[None]:
        """The time between a loop's first and last step."""
        depth = len(self._stack)
        self._stack.append(loop)
        state = randomness.capture()
        if self.trace is not None:
            self.trace.begin(loop)
        try:
            yield
        finally:
            if self.trace is not None:
                self.trace.end(loop)
            del self._stack[depth:]
            randomness.restore(state)

    def stored(self, read: Callable[[str], dict[str, Any] | None], path: str) -> dict[str, Any] | None:
        """What ``read`` finds under ``path``; all ranks take what rank 0 found."""
        if self.ranks is None:
            return read(path)
        record = read(path) if self.ranks.main else None
        found = self.ranks.share(record is not None)
        return record if self.ranks.main or not found else read(path)

    def restore_random(self, loop: Loop, state: dict[str, Any]) -> None:
        """Puts back the random state of a loop's record, each rank its own."""
        if loop.parts is not None:
            loop.parts.restore_random(state)
        else:
            randomness.restore(state)

    def save(self, loop: Loop, *, finished: bool) -> None:
        """Stores where ``loop`` stands, all tracked and random state."""
        self._check_finite(loop)
        loop.saved, loop.saved_inside = True, False
        for outer in self._stack:
            if outer is not loop and isinstance(outer, Loop):
                outer.saved_inside = True
        random = randomness.capture() if loop.parts is None else loop.parts.random_state()
        pending = self._read(loop, loop.pending)
        if self.ranks is not None:
            for name, item in self._tracked_modules():
                self.ranks.check_equal(name, item)
            if not self.ranks.main:
                self._last_save = time.monotonic()
                return
        self.checkpoints.save_loop(
            loop.path,
            {
                "finished": finished,
                "position": loop.position,
                "epoch": loop.epoch,
                "offset": loop.offset,
                "seconds": loop.seconds(),
                "state": {name: read_state(name, item) for name, item in self._tracked.items()},
                "random": random,
                "pending": pending,
                "metrics_position": self.observer.position(),
            },
        )
        self.checkpoints.forget_inside(loop.path)
        self._last_save = time.monotonic()

    def restore(self, record: dict[str, Any]) -> None:
        """Puts back the tracked state of a loop's record."""
        for name, state in record["state"].items():
            if name in self._tracked:
                write_state(self._tracked[name], state)

    def after_step(self, loop: Loop, *, write: bool) -> None:
        """The end of every step: metrics, display, saving by time, the stop signal."""
        if self._replayed_logs is not None:
            self.going_live()
        if loop.pending and (write or loop.position % self.log_every == 0):
            self.write_pending(loop)
        self.observer.advance(loop.position, loop.shown)
        if self.trace is not None:
            self.trace.after_step(loop)
        stop = self.stop_requested()
        # A loop inside is the first to find saving due, step after step: what it saved belongs to a step that is over.
        due = loop.saved_inside or time.monotonic() - self._last_save >= self.every_seconds
        if self.ranks is not None:
            stop, due = self.ranks.agree(stop, due)
        if stop or due:
            self.save(loop, finished=False)
        if stop:
            raise StopRequested(f"in '{loop.path}' at step {loop.position}")

    def write_pending(self, loop: Loop) -> None:
        """Writes the values logged in the last step."""
        loop.shown = self._read(loop, loop.pending)
        loop.pending = {}
        self.observer.write(loop.path, loop.position, loop.shown)
        self._check_finite(loop)

    def end(self, loop: Loop) -> None:
        """A loop ran to its end: its final state is stored, inner loops only when saving is due anyway.

        Or when a state of its middle is stored: a resume from it would write its lines again, over those of what came
        after it and was stored.
        """
        if loop.pending:
            self.write_pending(loop)
        outermost = len(self._stack) == 1
        due = outermost or loop.saved or time.monotonic() - self._last_save >= self.every_seconds
        if self.ranks is not None:
            _, due = self.ranks.agree(False, due)
            for _, item in self._tracked_modules() if loop.parts is not None else ():
                self.ranks.same_buffers(item)  # a resume finds rank 0's too
        if due:
            self.save(loop, finished=True)
        if outermost:
            self.phases[loop.path] = {"seconds": round(loop.seconds(), 3)}
        self.observer.end_phase(loop.seconds())

    def skipped(self, record: dict[str, Any]) -> None:
        """Stored state was found: all that was logged before it stands in the metrics file already."""
        self.observer.rewind(record["metrics_position"])
        self._replayed_logs = []

    def going_live(self) -> None:
        """Something is computed that no stored state holds: what was logged since the last stored state is written."""
        logs, self._replayed_logs = self._replayed_logs, None
        for entry in logs or ():
            self.observer.write(*entry)

    def _innermost_loop(self) -> Loop | None:
        return self._stack[-1] if self._stack and isinstance(self._stack[-1], Loop) else None

    def note_seconds(self, path: str, seconds: float) -> None:
        """Records an outermost phase's time for the result."""
        if not self._stack:
            self.phases[path] = {"seconds": round(seconds, 3)}

    def _tracked_modules(self) -> list[tuple[str, torch.nn.Module]]:
        return [(name, item) for name, item in self._tracked.items() if isinstance(item, torch.nn.Module)]

    def _read(self, loop: Loop, values: dict[str, Any]) -> dict[str, float]:
        """Logged values as numbers: of parts of a batch, those of the whole batch."""
        return _floats(values) if loop.parts is None else self.ranks.averages(values, loop.share)

    def _check_finite(self, loop: Loop) -> None:
        for values in (loop.pending, loop.shown):
            loss = values.get("loss")
            if loss is None:
                continue
            loss = self._read(loop, {"loss": loss})["loss"]
            if not math.isfinite(loss):
                raise RunFailed(
                    f"the loss of '{loop.path}' is {loss} at step {loop.position}; the last good state is kept. "
                    "A smaller recipe.optimizer.learning_rate or recipe.gradient_clip is the usual cure"
                )


def _floats(values: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
