"""Several processes that run one method together, each on a device of its own: what they share, and how a batch is cut.

Every rank executes the method's ``run``. Rank 0 alone writes, logs and prints. Gradients meet in torch's
DistributedDataParallel; all else that ranks tell each other goes over a group of CPU tensors, so it never waits for a
device.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from runner import randomness
from runner.errors import RunFailed

PATIENCE = timedelta(days=365)  # rank 0 may wait for another run's cell; a dead rank is noticed otherwise


class Ranks:
    """This process's place among ``count``. What ranks do together must be called by all of them, in one order."""

    def __init__(self, rank: int, count: int, meeting: Path, backend: str) -> None:
        self.rank, self.count, self.backend = rank, count, backend
        self.main = rank == 0
        self.lost: Callable[[], str | None] = lambda: None  # what is known of a rank that ended early
        self.thrown_away = meeting.parent / f"rank{rank}"  # of what a rank above 0 writes
        self._meeting = meeting
        self._control: Any = None

    def connect(self) -> None:
        """Waits until all ranks are there. ``meeting`` is a file that does not exist yet."""
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this machine, whatever its network is
        place = {"init_method": f"file://{self._meeting}", "rank": self.rank, "world_size": self.count}
        if self.backend == "gloo":
            dist.init_process_group("gloo", timeout=PATIENCE, **place)
            self._control = dist.group.WORLD
        else:
            dist.init_process_group(f"cpu:gloo,cuda:{self.backend}", **place)
            self._control = dist.new_group(backend="gloo", timeout=PATIENCE)

    def disconnect(self) -> None:
        """Leaves the group, if it was joined."""
        if self._control is not None:
            self._control = None
            dist.destroy_process_group()

    # ---- what ranks tell each other --------------------------------------------------------------------------------

    def share(self, value: Any = None) -> Any:
        """Rank 0's value, on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on every rank."""
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=self._control)
        return found

    def agree(self, stop: bool, save: bool) -> tuple[bool, bool]:
        """Whether any rank asks to stop, and whether rank 0 wants to save: the same on all ranks, at the same step."""
        votes = torch.tensor([stop, save and self.main], dtype=torch.uint8)
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._control)
        return bool(votes[0]), bool(votes[1])

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks, in place; on the ranks' device."""
        dist.all_reduce(values)
        return values

    def averages(self, values: dict[str, Any], share: float) -> dict[str, float]:
        """Tensors as means over the ranks, weighted by what each has of the batch; other values are rank 0's."""
        names = [name for name, value in values.items() if isinstance(value, torch.Tensor)]
        if names:
            own = torch.tensor([float(values[name]) if share else 0.0 for name in names], dtype=torch.float64)
            own *= share
            dist.all_reduce(own, group=self._control)
            values = {**values, **dict(zip(names, (own / self.count).tolist(), strict=True))}
        return {name: float(value) for name, value in values.items()}

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 does it while the others wait, then they: downloads and caches are written once."""
        if not self.main:
            self.share()
        yield
        if self.main:
            self.share()

    # ---- networks --------------------------------------------------------------------------------------------------

    def parallel(
        self, loss: Callable[..., torch.Tensor], model: nn.Module, parameters: Iterable[nn.Parameter]
    ) -> nn.Module:
        """``loss`` as a module whose backward pass leaves the mean gradient of all ranks in every parameter.

        The loss calls ``model`` itself, as often as it wants. Buffers are rank 0's before every call.
        """
        known = {id(item) for item in model.parameters()}
        wrapped = _Loss(loss, model, [item for item in parameters if id(item) not in known])
        # a loss need not use all of the model
        return nn.parallel.DistributedDataParallel(wrapped, find_unused_parameters=True)

    def same_buffers(self, model: nn.Module) -> None:
        """Puts rank 0's buffers (moving averages) in the place of each rank's own."""
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)

    def check_equal(self, name: str, model: nn.Module) -> None:
        """Raises RunFailed where the ranks' weights went apart."""
        sums = [item.detach().double().sum() for item in model.parameters()]
        if sums and len(set(map(tuple, self.gather([repr(value) for value in torch.stack(sums).tolist()])))) > 1:
            raise RunFailed(
                f"the weights of '{name}' differ between the {self.count} processes: a loop over batches changes them "
                "without `fit`; train by `fit`, or write `distributed = False` on the method's class"
            )

    # ---- batches ---------------------------------------------------------------------------------------------------

    def part(self, size: int) -> tuple[slice, float]:
        """This rank's rows of a batch of ``size``, and their number in units of size / count.

        The first ranks have one more where it does not divide. A rank that has none computes on the first row, with
        the weight 0: it must take part in what all ranks do.
        """
        each, more = divmod(size, self.count)
        start = self.rank * each + min(self.rank, more)
        end = start + each + (self.rank < more)
        if start == end:
            return slice(0, 1), 0.0
        return slice(start, end), (end - start) * self.count / size


class _Loss(nn.Module):
    def __init__(self, loss: Callable[..., torch.Tensor], model: nn.Module, others: list[nn.Parameter]) -> None:
        super().__init__()
        self.loss, self.model, self.others = loss, model, nn.ParameterList(others)

    def forward(self, *batch: torch.Tensor, **named: Any) -> torch.Tensor:
        return self.loss(*batch, **named)


class Parts:
    """This rank's parts of a loop's batches; ``share`` belongs to the last one (``Ranks.part``).

    ``start(part)`` gives the batches; it asks ``part`` once for each, in their order.
    Batches are drawn from a random stream that all ranks have in common, so that the views of an image do not depend
    on the number of ranks; what a step draws (dropout, mixing) comes from a stream of the rank's own.
    """

    def __init__(self, ranks: Ranks, seed: int, start: Callable[[Callable[[int], tuple[slice, float]]], Any]) -> None:
        self.share = 1.0
        self._shares: deque[float] = deque()  # of batches whose rows are known already; readers may look ahead
        self._ranks = ranks
        self._items = start(self._part)
        self._common = randomness.capture()
        randomness.seed_everything(randomness.stream_seed(seed, "rank", ranks.rank))

    def __iter__(self) -> Parts:
        return self

    def __next__(self) -> Any:
        own = randomness.capture()
        randomness.restore(self._common)
        try:
            item = next(self._items)
            self.share = self._shares.popleft() if self._shares else 1.0
            return item
        finally:
            self._common = randomness.capture()
            randomness.restore(own)

    def _part(self, size: int) -> tuple[slice, float]:
        rows, share = self._ranks.part(size)
        self._shares.append(share)
        return rows, share

    def random_state(self) -> dict[str, Any]:
        """Of all ranks; the same on every rank."""
        return {"common": self._common, "ranks": self._ranks.gather(randomness.capture())}

    def restore_random(self, state: dict[str, Any]) -> None:
        """Puts back what ``random_state`` returned."""
        self._common = state["common"]
        randomness.restore(state["ranks"][self._ranks.rank])


def cut(item: Any, part: Callable[[int], tuple[slice, float]]) -> Any:
    """A part of a batch of any shape: of all tensors that are as long as the first one."""
    size = next((len(tensor) for tensor in _tensors(item)), None)
    return item if not size else _cut(item, size, part(size)[0])


def _tensors(item: Any) -> Iterator[torch.Tensor]:
    if isinstance(item, torch.Tensor) and item.ndim:
        yield item
    elif isinstance(item, (list, tuple, dict)):
        for inner in item.values() if isinstance(item, dict) else item:
            yield from _tensors(inner)


def _cut(item: Any, size: int, rows: slice) -> Any:
    if isinstance(item, torch.Tensor):
        return item[rows] if item.ndim and len(item) == size else item
    if isinstance(item, dict):
        return {name: _cut(inner, size, rows) for name, inner in item.items()}
    if isinstance(item, (list, tuple)):
        inner = [_cut(part, size, rows) for part in item]
        return type(item)(*inner) if hasattr(item, "_fields") else type(item)(inner)
    return item
