"""Small methods that use every verb, for the tests of the durable core."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from runner.checkpoints import Checkpoints, encode
from runner.durable import Durable
from runner.schema import Recipe
from runner.tracked import read_state


class Noisy(Dataset):
    """Examples whose augmentation draws from the global generators."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((4,), float(index)) + 0.1 * torch.randn(4) + 0.01 * float(numpy.random.rand()), index % 3


class SeededBatches:
    """The protocol of the image batches: the order is a function of the seed, noise comes from the global generator."""

    def __len__(self) -> int:
        return 3

    def iterate(self, seed: int, start: int = 0):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
        for rows in order.split(4)[start:]:
            yield rows.float()[:, None].repeat(1, 4) + 0.1 * torch.randn(4, 4), rows % 3


class Widths:
    """State of a search: a history and widths that change."""

    def __init__(self) -> None:
        self.width, self.history = 8, []

    def state_dict(self) -> dict:
        return {"width": self.width, "history": self.history}

    def load_state_dict(self, state: dict) -> None:
        self.width, self.history = state["width"], state["history"]


def network(width: int) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 3))


def every_verb(ctx: Durable, event) -> dict[str, float]:
    """Train, search, bank, cut, nested rounds, fine-tune; ``event()`` marks every place where a kill may come."""
    event()
    model = network(8)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    ctx.track(model=model, optimizer=optimizer)
    ctx.log(begun=1.0)
    for inputs, labels in ctx.loop("train", DataLoader(Noisy(), 4, shuffle=True), epochs=2):
        event()
        value = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        ctx.log(loss=value.detach())
        event()
    event()
    search, scores = Widths(), torch.zeros(3)
    ctx.track(search=search, scores=scores, optimizer=None)
    for step in ctx.loop("search", until=lambda: search.width <= 4):
        event()
        search.width -= 1
        search.history.append((step, float(torch.rand(()))))
        scores += torch.rand(3)
        ctx.log(width=search.width)
    event()

    def bank():
        event()
        return {"logits": torch.randn(5), "noise": numpy.random.rand(2), "pair": (1, "a")}

    stored = ctx.once("bank", bank)
    event()
    slim = network(search.width)
    with torch.no_grad():
        slim[0].weight.copy_(model[0].weight[: search.width])
    ctx.track(model=slim, optimizer=(optimizer := torch.optim.SGD(slim.parameters(), 0.1, momentum=0.9)))
    ctx.log(cut=search.width)
    total = {"sum": 0.0}
    ctx.track(total=total)
    for round_number in ctx.loop("rounds", 3):
        event()
        client = network(5)
        ctx.track(client=client)
        for inputs, _ in ctx.loop("client", SeededBatches()):
            event()
            total["sum"] += float(client(inputs).sum().detach()) + float(torch.rand(()))
        total["sum"] += ctx.once("round score", lambda number=round_number: float(torch.rand(())) + number)
        event()
    for inputs, labels in ctx.loop("fine tune", SeededBatches(), epochs=2):
        event()
        value = nn.functional.cross_entropy(slim(inputs), labels) + 0.01 * stored["logits"].sum()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        ctx.log(loss=value.detach())
        if len(search.history) > 100:
            break
    event()
    ctx.log(ended=1.0)
    parts = [slim.state_dict(), search.state_dict(), scores, total, stored]
    digest = hashlib.sha256()
    for part in parts:
        _digest(digest, encode(part))
    return {"digest": digest.hexdigest(), "sum": total["sum"], "optimizer": len(read_state("o", optimizer)["state"])}


class FitContext:
    """What ``fit`` asks of a context, around the real verbs: three classes, no validation, no autocast."""

    def __init__(self, durable: Durable, recipe: Recipe) -> None:
        self.durable, self.recipe = durable, recipe
        self.loop, self.track, self.log = durable.loop, durable.track, durable.log
        self.data = SimpleNamespace(validation=(), num_classes=3)
        self.autocast = nullcontext
        self.ranks = None


class SeededImages:
    """Seven batches of noisy images (4,3,6,6), labels (4,)."""

    def __len__(self) -> int:
        return 7

    def iterate(self, seed: int, start: int = 0):
        order = torch.randperm(28, generator=torch.Generator().manual_seed(seed))
        for rows in order.split(4)[start:]:
            yield rows.float().view(-1, 1, 1, 1) / 28 + torch.randn(len(rows), 3, 6, 6), rows % 3


ALL_OPTIONS = {
    "epochs": 2,
    "gradient_clip": 1.0,
    "accumulation": 3,
    "ema_decay": 0.9,
    "mixup": 0.4,
    "cutmix": 1.0,
    "schedule": {"name": "one_cycle"},
}


def recipe_of(**options) -> Recipe:
    """A recipe of plain SGD with momentum with the given fields changed."""
    from runner.settings import build_section

    fields = {
        "name": "test",
        "epochs": 1,
        "batch_size": 4,
        "drop_last": False,
        "evaluation_batch_size": 4,
        "channels_last": False,
        "gradient_clip": None,
        "label_smoothing": 0.0,
        "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9},
        "schedule": {"name": "constant"},
    }
    return build_section("recipe", fields | options)


def every_option(ctx: Durable, event) -> dict[str, float]:
    """``fit`` with every option of a recipe that keeps state or draws, in two layouts."""
    from runner.fit import fit

    digest = hashlib.sha256()
    for channels_last in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3))

        def loss(images, labels, model=model):
            event()
            return nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)

        recipe = recipe_of(**ALL_OPTIONS, channels_last=channels_last)
        fitted = fit(FitContext(ctx, recipe), model, loss, name=f"train {channels_last}", batches=SeededImages())
        event()
        for network in (model, fitted.averaged):
            _digest(digest, encode(dict(network.state_dict())))
    return {"digest": digest.hexdigest()}


def _digest(digest, value) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(value.contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for name, item in value.items():
            digest.update(str(name).encode())
            _digest(digest, item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _digest(digest, item)
    else:
        digest.update(repr(value).encode())


class FileObserver:
    """Keeps the record in a file as the real one does; nothing on the screen."""

    def __init__(self, path: Path) -> None:
        from runner.metrics import MetricsFile

        self.metrics = MetricsFile(path)
        self.said: list[str] = []

    def phase(self, name, total): ...
    def advance(self, step, values): ...
    def end_phase(self, seconds): ...

    def say(self, text):
        self.said.append(text)

    def write(self, phase, step, values):
        self.metrics.write(phase, step, values)

    def position(self):
        return self.metrics.position()

    def rewind(self, position):
        self.metrics.rewind(position)


def run_toy(
    folder: str,
    kill_at: int | None,
    every_seconds: float,
    stop_at: int | None = None,
    snapshots: str | None = None,
    method: Callable = every_verb,
) -> int:
    """Runs ``method`` in ``folder``; kills itself with signal 9 at event number ``kill_at``; counts events.

    With ``snapshots`` it copies its folder to snapshots/EVENT at every event: what a kill there would leave behind.
    """
    from runner.errors import StopRequested

    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    events = 0

    def event() -> None:
        nonlocal events
        events += 1
        if snapshots is not None:
            shutil.copytree(path, f"{snapshots}/{events}")
        if events == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    observer = FileObserver(path / "metrics.jsonl")
    ctx = Durable(
        seed=3,
        device=torch.device("cpu"),
        checkpoints=Checkpoints(path / "checkpoints", observer.say),
        observer=observer,
        every_seconds=every_seconds,
        log_every=1,
        stop_requested=lambda: stop_at is not None and events >= stop_at,
    )
    try:
        result = method(ctx, event)
    except StopRequested:
        return 75
    ctx.finish()
    observer.metrics.close()
    (path / "result.json").write_text(json.dumps({**result, "events": events, "said": observer.said}))
    return 0


def resume_each(folder: str, every_seconds: float, method: Callable = every_verb) -> int:
    """Goes on from every snapshot in ``folder``, in one process whose random state is never the same."""
    torch.seed()
    for snapshot in sorted(Path(folder).iterdir()):
        numpy.random.seed(torch.randint(2**31, ()).item())
        run_toy(str(snapshot), None, every_seconds, method=method)
    return 0


def kill_at_every_event(folder: str, every_seconds: float, events: int) -> int:
    """For each event: a process that is killed there, and one that goes on from what it left, in ``folder``/EVENT.

    Returns 0, or the event where the first did not die by signal 9 or the second did not end well. Processes are
    forked from this one, which has not computed anything.
    """
    for event in range(1, events + 1):
        for kill_at, expected in ((event, -signal.SIGKILL), (None, 0)):
            process = os.fork()
            if process == 0:
                code = 1
                try:
                    code = run_toy(f"{folder}/{event}", kill_at, every_seconds)
                finally:
                    os._exit(code)
            if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != expected:
                return event
    return 0
