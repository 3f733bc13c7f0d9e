"""Images a second of distillation on one machine: ours against the loops of mdistiller and RepDistiller.

All train the same student under the same teacher on the same batches in memory, by softened logits. ``plain`` is two
forward passes, one backward pass and the optimizer's step, nothing else. ``repdistiller`` and ``mdistiller`` are that
loop with what those code bases do in every step, written anew from what they do: features of all stages returned,
the loss read, top-1 and top-5 accuracy, meters, and in mdistiller a progress bar with a message. ``ours`` is fit with
display, metrics and checkpoints. The contestants take turns, in another order each round; compared is the CPU time of
the process, of that each contestant's least over the rounds. Aim: ours at 1 / 1.05 of the plain speed or better.

mdistiller's bar needs tqdm; without it that loop is left out.

    OMP_NUM_THREADS=1 python scripts/bench_distillation.py [--teacher resnet32] [--student resnet8] [--rounds 7]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from time import process_time

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

sys.path.insert(0, str(Path(__file__).parent.parent))

from runner.methods.distillation.features import Reader
from runner.methods.distillation.losses import kl_divergence
from runner.methods.distillation.pair import Pair
from runner.models import build_model
from runner.schema import ModelSettings

BATCH, SIDE, CLASSES, RATE, TEMPERATURE = 64, 32, 10, 0.01, 4.0
Batches = list[tuple[Tensor, Tensor, Tensor]]


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_model(
        ModelSettings(name=name), num_classes=CLASSES, image_size=SIDE, channels=3, small_image_stem="cifar"
    )


def pair_of(teacher: str, student: str) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    learner = network(student).train()
    optimizer = torch.optim.SGD(learner.parameters(), lr=RATE, momentum=0.9)
    return network(teacher).eval().requires_grad_(False), learner, optimizer


def softened(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    divergence = kl_div(
        (student / TEMPERATURE).log_softmax(1), (teacher / TEMPERATURE).softmax(1), reduction="batchmean"
    )
    return 0.1 * cross_entropy(student, labels) + 0.9 * TEMPERATURE**2 * divergence


def plain(batches: Batches, names: tuple[str, str], folder: Path) -> Callable[[], None]:
    teacher, student, optimizer = pair_of(*names)

    def train() -> None:
        for images, labels, _ in batches:
            with torch.no_grad():
                target = teacher(images)
            loss = softened(student(images), target, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return train


class Meter:
    """A running mean."""

    def __init__(self) -> None:
        self.value = self.sum = self.count = 0.0

    def update(self, value: float, count: int = 1) -> None:
        self.value = value
        self.sum += value * count
        self.count += count

    @property
    def mean(self) -> float:
        return self.sum / max(self.count, 1)


def top(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Top-1 and top-5 accuracy in percent."""
    correct = logits.topk(5, 1).indices.eq(labels[:, None])
    return correct[:, :1].float().sum() * 100 / len(labels), correct.float().sum() * 100 / len(labels)


def repdistiller(batches: Batches, names: tuple[str, str], folder: Path) -> Callable[[], None]:
    teacher, student, optimizer = pair_of(*names)
    read_teacher, read_student = Reader(teacher, "output", stem=True), Reader(student, "output", stem=True)
    meters = [Meter() for _ in range(5)]

    def train() -> None:
        began = time.time()
        for number, (images, labels, _) in enumerate(batches):
            meters[0].update(time.time() - began)
            images = images.float()
            found = read_student(images)
            with torch.no_grad():
                target = read_teacher(images)
            loss = softened(found.logits, target.logits, labels)
            first, fifth = top(found.logits, labels)
            meters[1].update(loss.item(), len(images))
            meters[2].update(first.item(), len(images))
            meters[3].update(fifth.item(), len(images))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            meters[4].update(time.time() - began)
            began = time.time()
            if number % 100 == 0:
                print(f"[{number}/{len(batches)}]", *(f"{meter.value:.3f} ({meter.mean:.3f})" for meter in meters))

    return train


def mdistiller(batches: Batches, names: tuple[str, str], folder: Path) -> Callable[[], None]:
    from tqdm import tqdm

    teacher, student, optimizer = pair_of(*names)
    read_teacher, read_student = Reader(teacher, "output", stem=True), Reader(student, "output", stem=True)
    meters = [Meter() for _ in range(5)]

    def train() -> None:
        with tqdm(range(len(batches)), file=io.StringIO()) as bar:
            for images, labels, _ in batches:
                optimizer.zero_grad()
                began = time.time()
                meters[0].update(time.time() - began)
                images = images.float()
                found = read_student(images)
                with torch.no_grad():
                    target = read_teacher(images)
                loss = softened(found.logits, target.logits, labels)
                loss.backward()
                optimizer.step()
                meters[1].update(time.time() - began)
                first, fifth = top(found.logits, labels)
                meters[2].update(loss.detach().cpu().numpy().mean(), len(images))
                meters[3].update(first.item(), len(images))
                meters[4].update(fifth.item(), len(images))
                bar.set_description("[TRAIN] " + "| ".join(f"{meter.mean:.3f}" for meter in meters))
                bar.update()

    return train


class ScreenOfNobody(io.StringIO):
    """A terminal for the live display, so that drawing it is part of the price."""

    def isatty(self) -> bool:
        return True


def ours(batches: Batches, names: tuple[str, str], folder: Path) -> Callable[[], None]:
    from runner.compose import compose
    from runner.context import Context, Launch
    from runner.fit import fit
    from runner.folder import RunFolder
    from runner.metrics import MetricsFile
    from runner.observer import RunObserver
    from runner.progress import Progress
    from runner.settings import validate

    teacher, student = names
    weights = folder.with_name("teacher.safetensors")
    save_file(network(teacher).state_dict(), weights)
    overrides = ["method=soft_logits", "scale=paper", "tracking=none", "dataset=digits", f"paths.data={folder}"]
    overrides += [f"model={student}", f"teacher.model={teacher}", f"teacher.model.weights={weights}"]
    overrides += ["recipe.epochs=1", "recipe.channels_last=false", f"recipe.optimizer.learning_rate={RATE}"]
    overrides += ["recipe.optimizer.weight_decay=0"]
    config = compose(overrides).config
    run_folder = RunFolder(folder)
    run_folder.create()
    os.environ["TERM"] = "xterm"
    progress = Progress(ScreenOfNobody())
    metrics = MetricsFile(folder / "metrics.jsonl")
    observer = RunObserver(progress, metrics, folder / "log.txt")
    ctx = Context(
        config, validate(config), run_folder, Launch(torch.device("cpu"), progress, lambda: False, []), observer
    )
    pair = Pair(ctx)
    pair.load_teacher()

    def loss(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        learner, target = pair(images, index)
        divergence = kl_divergence(learner.logits, target.logits, TEMPERATURE)
        return 0.1 * pair.task_loss(learner, labels) + 0.9 * TEMPERATURE**2 * divergence

    def train() -> None:
        fit(ctx, pair.student, loss, batches=batches)
        metrics.close()
        progress.close()

    return train


CONTESTANTS = {"plain": plain, "ours": ours, "mdistiller": mdistiller, "repdistiller": repdistiller}


def main() -> int:
    """Prints the table; 1 when ours is slower than 1.05 times the plain loop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="resnet32")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40, help="of each contestant in each round")
    options = parser.parse_args()
    if importlib.util.find_spec("tqdm") is None:
        CONTESTANTS.pop("mdistiller")
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    some = [
        (torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(CLASSES, (BATCH,)), torch.arange(BATCH)) for _ in range(10)
    ]
    batches = [some[index % len(some)] for index in range(options.steps)]
    names, order = list(CONTESTANTS), random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-1, options.rounds):  # the first one warms up
        order.shuffle(names)
        for name in names:
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                steps = batches[:5] if turn < 0 else batches
                train = CONTESTANTS[name](steps, (options.teacher, options.student), Path(folder) / "run")
                begin = process_time()
                train()
                if turn >= 0:
                    seconds[name].append(process_time() - begin)
    least = {name: min(own) / options.steps for name, own in seconds.items()}
    print(
        f"{options.teacher} -> {options.student}, batches of {BATCH}, {SIDE}x{SIDE}, {options.rounds} rounds of "
        f"{options.steps} steps, {torch.get_num_threads()} thread(s); CPU time"
    )
    print(f"{'':12}  {'images a second':>15}  {'ms a step':>9}  {'time over plain':>15}")
    for name in CONTESTANTS:
        print(f"{name:12}  {BATCH / least[name]:15.0f}  {least[name] * 1e3:9.2f}  {least[name] / least['plain']:15.3f}")
    return int(least["ours"] > 1.05 * least["plain"])


if __name__ == "__main__":
    sys.exit(main())
