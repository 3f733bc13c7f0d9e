"""What a step of ``fit`` costs beyond a bare PyTorch loop, with display, metrics and checkpoints on.

A small convolutional network is trained on the same batches by a bare loop, by ``fit``, by Lightning Fabric and by the
Lightning Trainer as it comes. The contestants take turns, in another order each round; compared is the CPU time of
the process, and of that each contestant's least over the rounds: what others do on the machine only ever adds to it.
Aim: fit at 0.95 of the bare speed or better, at most 100 us a step more.

    OMP_NUM_THREADS=1 python scripts/bench_loop.py [--rounds 15] [--steps 500] [--side 16] [--only bare,fit]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from time import process_time

import torch
from torch import nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parent.parent))

BATCH, CHANNELS, CLASSES, RATE = 32, 16, 10, 0.01
Batches = list[tuple[torch.Tensor, torch.Tensor]]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(CHANNELS, CLASSES),
    )


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)


def bare(batches: Batches, folder: Path) -> Callable[[], None]:
    model = network()
    optimizer = sgd(model)

    def train() -> None:
        model.train()
        for images, labels in batches:
            loss = cross_entropy(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return train


class ScreenOfNobody(io.StringIO):
    """A terminal for the live display, so that drawing it is part of the price."""

    def isatty(self) -> bool:
        return True


def with_fit(batches: Batches, folder: Path) -> Callable[[], None]:
    from runner.compose import compose
    from runner.context import Context, Launch
    from runner.fit import fit
    from runner.folder import RunFolder
    from runner.metrics import MetricsFile
    from runner.observer import RunObserver
    from runner.progress import Progress
    from runner.settings import validate

    overrides = ["method=supervised", "model=resnet20", "scale=paper", "tracking=none", f"paths.data={folder}"]
    overrides += ["recipe.epochs=1", f"recipe.batch_size={BATCH}", "recipe.channels_last=false"]
    overrides += [f"recipe.optimizer.learning_rate={RATE}", "recipe.optimizer.weight_decay=0"]
    overrides += ["recipe.optimizer.nesterov=false"]
    config = compose(overrides).config
    run_folder = RunFolder(folder)
    run_folder.create()
    os.environ["TERM"] = "xterm"
    progress = Progress(ScreenOfNobody())
    metrics = MetricsFile(folder / "metrics.jsonl")
    observer = RunObserver(progress, metrics, folder / "log.txt")
    launch = Launch(torch.device("cpu"), progress, lambda: False, [])
    ctx = Context(config, validate(config), run_folder, launch, observer)
    assert len(ctx.data.validation) == 0  # loaded here, so that it is not timed
    model = network()

    def train() -> None:
        fit(ctx, model, lambda images, labels: cross_entropy(model(images), labels), batches=batches)
        metrics.close()
        progress.close()

    return train


def with_fabric(batches: Batches, folder: Path) -> Callable[[], None]:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    model = network()
    model, optimizer = fabric.setup(model, sgd(model))
    loader = fabric.setup_dataloaders(torch.utils.data.DataLoader(batches, batch_size=None, shuffle=False))

    def train() -> None:
        model.train()
        for images, labels in loader:
            loss = cross_entropy(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(loss)
            optimizer.step()

    return train


def with_trainer(batches: Batches, folder: Path) -> Callable[[], None]:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
            images, labels = batch
            loss = cross_entropy(self.network(images), labels)
            self.log("loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self)

    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", devices=1, default_root_dir=folder)
    loader = torch.utils.data.DataLoader(batches, batch_size=None, shuffle=False)
    module = Module()
    return lambda: trainer.fit(module, loader)


CONTESTANTS = {"bare": bare, "fit": with_fit, "fabric": with_fabric, "trainer": with_trainer}


def main() -> int:
    """Prints the table; 1 when fit misses its aims."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=500, help="of each contestant in each round")
    parser.add_argument("--side", type=int, default=16, help="of the images in pixels")
    parser.add_argument("--only", default=",".join(CONTESTANTS), help="contestants; bare is always in")
    options = parser.parse_args()
    try:
        import lightning  # noqa: F401 - an extra
    except ImportError:
        for name in ("fabric", "trainer"):
            CONTESTANTS.pop(name)
    names = [name for name in CONTESTANTS if name == "bare" or name in options.only.split(",")]
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    # A few batches over and over: what is measured is the loop, not memory.
    some = [(torch.randn(BATCH, 3, options.side, options.side), torch.randint(CLASSES, (BATCH,))) for _ in range(20)]
    batches = [some[index % len(some)] for index in range(options.steps)]
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-1, options.rounds):  # the first one warms up
        order.shuffle(names)
        for name in names:
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                train = CONTESTANTS[name](batches[:100] if turn < 0 else batches, Path(folder) / "run")
                begin = process_time()
                train()
                if turn >= 0:
                    seconds[name].append(process_time() - begin)
    print(f"{options.rounds} rounds of {options.steps} steps, {torch.get_num_threads()} thread(s); CPU time of a step")
    print(f"{'':8}  {'least':>9}  {'more than bare':>14}  {'speed of bare':>13}  {'median':>9}  {'speed of bare':>13}")
    verdict = 0
    least = {name: min(own) / options.steps * 1e6 for name, own in seconds.items()}
    median = {name: statistics.median(own) / options.steps * 1e6 for name, own in seconds.items()}
    for name in CONTESTANTS:
        if name not in seconds:
            continue
        more, speed = least[name] - least["bare"], least["bare"] / least[name]
        print(
            f"{name:8}  {least[name]:6.0f} us  {more:11.0f} us  {speed:13.3f}  {median[name]:6.0f} us"
            f"  {median['bare'] / median[name]:13.3f}"
        )
        if name == "fit" and (speed < 0.95 or more > 100):
            verdict = 1
    return verdict


if __name__ == "__main__":
    sys.exit(main())
