"""The resumable iteration behind ``ctx.loop``."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any

import torch

from runner import randomness

if TYPE_CHECKING:
    from runner.durable import Durable
    from runner.ranks import Parts

    Part = Callable[[int], tuple[slice, float]]


class Loop:
    """Iterates over steps, saves by time, and after a kill goes on where it was.

    While iterating: ``step`` (0-based, over all epochs), ``epoch``, ``epoch_ends`` (this is the epoch's last step),
    ``total`` (planned steps, or None).

    The source is one of
    - an int: yields 0, 1, ...;
    - None with ``until``: yields 0, 1, ... as long as ``until()`` is false, asked before every step;
    - batches: an object with ``iterate(seed, start)`` (order is a function of the seed), or any re-iterable such as a
      DataLoader; tensors are moved to the device. Every epoch starts from a random stream of its own, so skipping to
      the middle of one after a kill gives the batches that would have come. A re-iterable draws its order from that
      stream too, so ``seeds.order`` varies only what has ``iterate``.

    Among several ranks a loop over batches yields this rank's part of each, and ``share`` is its size in units of
    batch size / ranks (1.0 where it divides): a mean over the part, times ``share``, averaged over the ranks, is the
    mean over the batch. A re-iterable is read whole by every rank. Loops over numbers run alike on all ranks.

    Leaving by ``break`` is allowed: after a kill the steps since the last saved state are run again, to the same end.
    """

    def __init__(
        self,
        durable: Durable,
        name: str,
        source: Any,
        *,
        epochs: int | None,
        until: Callable[[], bool] | None,
    ) -> None:
        if source is None and until is None:
            raise ValueError(f"loop '{name}' has neither batches, a number of steps nor until=")
        self.durable = durable
        self.name = name
        self.path = name
        self.source = source
        self.until = until
        self.epochs = _capped(1 if epochs is None else epochs, durable.max_epochs) if source is not None else 1
        self.epoch_length = self._epoch_length()
        self.total = None if self.epoch_length is None else self.epoch_length * self.epochs
        self.step = self.position = self.epoch = self.offset = 0
        self.epoch_ends = False
        self.pending: dict[str, Any] = {}  # logged in this step, not yet read
        self.shown: dict[str, float] = {}  # last values read
        self.parts: Parts | None = None  # of batches that ranks share
        self.saved = False  # a state of it is stored
        self.saved_inside = False  # a loop inside saved in the current step
        self._seconds_before = 0.0
        self._started = 0.0

    @property
    def share(self) -> float:
        """Of the last batch, what this rank has."""
        return 1.0 if self.parts is None else self.parts.share

    def seconds(self) -> float:
        """Time spent in the loop over all attempts."""
        return self._seconds_before + time.monotonic() - self._started

    def __iter__(self) -> Iterator[Any]:
        durable = self.durable
        self.path = durable.enter_name(self.name)
        record = durable.stored(durable.checkpoints.load_loop, self.path)
        if record is not None:
            self.saved = True
            durable.skipped(record)
            durable.restore(record)
            self.epoch, self.offset, self.position = record["epoch"], record["offset"], record["position"]
            self._seconds_before = record["seconds"]
            self.pending = record.get("pending", {})
            if record["finished"]:
                durable.note_seconds(self.path, self._seconds_before)
                return
        self._started = time.monotonic()
        durable.observer.phase(self.path, self.total)
        with durable.inside(self):
            yield from self._steps(record)
            durable.end(self)

    def _steps(self, record: dict[str, Any] | None) -> Iterator[Any]:
        durable = self.durable
        while self.epoch < self.epochs:
            if self.epoch_length is not None and self.offset >= self.epoch_length:  # saved at the end of an epoch
                self.epoch, self.offset, record = self.epoch + 1, 0, None
                continue
            items = self._epoch_items()
            if record is not None:
                durable.restore_random(self, record["random"])
                record = None
            while self.epoch_length is None or self.offset < self.epoch_length:
                if self.until is not None and self._enough():
                    return
                item = next(items, _END)
                if item is _END:
                    break
                self.step = self.position
                self.epoch_ends = self.epoch_length is not None and self.offset + 1 == self.epoch_length
                yield item
                self.position += 1
                self.offset += 1
                durable.after_step(self, write=self.epoch_ends or self.source is None)
            self.epoch += 1
            self.offset = 0

    def _enough(self) -> bool:
        """What ``until`` says; among ranks what it says on rank 0."""
        ranks = self.durable.ranks
        return self.until() if ranks is None else ranks.agree(False, self.until())[1]

    def _epoch_items(self) -> Iterator[Any]:
        """What the current epoch yields from the current offset on; leaves the epoch's own random stream running."""
        seeds = self.durable.seeds
        numbers = self.source is None or isinstance(self.source, int)
        drawn = seeds.episodes if numbers else seeds.augmentation
        randomness.seed_everything(randomness.stream_seed(drawn, self.path, "epoch", self.epoch))
        if numbers:
            return count(self.position) if self.source is None else iter(range(self.offset, self.source))
        if self.durable.ranks is None:
            return self._batches(None)
        from runner.ranks import Parts

        own = randomness.stream_seed(seeds.augmentation, self.path, "epoch", self.epoch)
        self.parts = Parts(self.durable.ranks, own, self._batches)
        return self.parts

    def _batches(self, part: Part | None) -> Iterator[Any]:
        """The batches of the current epoch from the current offset on, or the part of each that a rank has."""
        order = randomness.stream_seed(self.durable.seeds.order, self.path, "order", self.epoch)
        if hasattr(self.source, "iterate"):
            if part is None:
                return iter(self.source.iterate(order, self.offset))
            if "part" in inspect.signature(self.source.iterate).parameters:
                return iter(self.source.iterate(order, self.offset, part=part))
            items = iter(self.source.iterate(order, self.offset))
        else:
            items = iter(self.source)
            for _ in range(self.offset):
                next(items, None)
        if part is not None:
            from runner.ranks import cut

            items = (cut(item, part) for item in items)
        if hasattr(self.source, "iterate"):
            return items
        device = self.durable.device
        return (_moved(item, device) for item in items)

    def _epoch_length(self) -> int | None:
        if self.source is None:
            return self.durable.max_steps
        length = self.source if isinstance(self.source, int) else _length(self.source)
        if length is None:
            return self.durable.max_steps
        return _capped(length, self.durable.max_steps)


_END = object()


def _capped(value: int, limit: int | None) -> int:
    return value if limit is None else min(value, limit)


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except TypeError:
        return None


def _moved(item: Any, device: torch.device) -> Any:
    if isinstance(item, torch.Tensor):
        return item.to(device, non_blocking=True)
    if isinstance(item, (list, tuple)):
        moved = [_moved(part, device) for part in item]
        return type(item)(*moved) if hasattr(item, "_fields") else type(item)(moved)
    if isinstance(item, dict):
        return {name: _moved(part, device) for name, part in item.items()}
    return item
