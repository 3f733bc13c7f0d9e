"""Methods of a user, outside the package: what a YAML on --config-dir may name."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import yaml


@dataclass(kw_only=True)
class Consumer:
    """Starts from a trained network that other runs share."""

    data: ClassVar[tuple[str, ...]] = ("images",)
    number: int = 0

    def run(self, ctx) -> dict[str, float]:
        network = ctx.trained_model("baseline")
        for _ in ctx.loop("count", 2):
            ctx.log(number=float(self.number))
        return {"number": self.number, **ctx.evaluate(network)}


@dataclass(kw_only=True)
class Draws:
    """A number for all that comes out of each random stream."""

    def run(self, ctx) -> dict[str, float]:
        import torch

        weights = [item.flatten() for item in ctx.model().parameters()]
        order, images, draws = [], [], []
        for batch in ctx.loop("train", ctx.batches("train", 8), epochs=2):
            order.append(batch.index)
            images.append(batch.images.flatten())
            draws.append(torch.rand(3))
        episodes = [torch.rand(3) for _ in ctx.loop("episodes", 3)]
        found = {"initialisation": weights, "order": order, "images": images, "augmentation": draws}
        return {name: _number(torch.cat(parts)) for name, parts in {**found, "episodes": episodes}.items()}


def _number(values) -> float:
    content = values.detach().cpu().contiguous().numpy().tobytes()
    return float(int.from_bytes(hashlib.sha256(content).digest()[:6], "big"))


@dataclass(kw_only=True)
class OfGraphs:
    """Takes no images."""

    data: ClassVar[tuple[str, ...]] = ("graphs",)

    def run(self, ctx) -> dict[str, float]:
        raise AssertionError("it must not be started")


@dataclass(kw_only=True)
class Raises:
    """Fails after its first steps."""

    message: str = "the metal broke"

    def run(self, ctx) -> dict[str, float]:
        ctx.track(counted=(counted := {"steps": 0}))
        for step in ctx.loop("count", 10):
            counted["steps"] += 1
            if step == 1:
                raise ArithmeticError(self.message)
        return dict(counted)


@dataclass(kw_only=True)
class Faulty:
    """Counts to two; a file fault-NUMBER in the working directory makes it raise or hang, computed-NUMBER counts."""

    data: ClassVar[tuple[str, ...]] = ("images",)
    number: int = 0
    seconds: float = 0.0  # of sleep a step

    def run(self, ctx) -> dict[str, float]:
        ctx.track(counted=(counted := {"steps": 0}))
        for _ in ctx.loop("count", 2):
            counted["steps"] += 1
            time.sleep(self.seconds)
            fault = Path(f"fault-{self.number}")
            while fault.exists():
                if fault.read_text() == "raise":
                    raise ArithmeticError(f"the metal broke at {self.number}")
                time.sleep(0.05)
                if ctx.launch.stop_requested():
                    break
        with Path(f"computed-{self.number}").open("a") as file:
            file.write("x")
        return {"number": self.number, "steps": counted["steps"]}


@dataclass(kw_only=True)
class Stubborn(Faulty):
    """Does not come to the end of its step."""

    def run(self, ctx) -> dict[str, float]:
        for _ in ctx.loop("count", 2):
            while True:
                time.sleep(0.05)


def write_config(folder: Path, name: str, target: str, fields: dict | None = None, **sections) -> Path:
    """Adds a method to a --config-dir and returns the folder."""
    content = {"method": {"name": name, "target": target, **(fields or {})}, **sections}
    (folder / "method").mkdir(parents=True, exist_ok=True)
    (folder / "method" / f"{name}.yaml").write_text(f"# @package _global_\n{yaml.safe_dump(content)}")
    return folder


@dataclass(kw_only=True)
class Stops:
    """Has a breakpoint between its steps."""

    def run(self, ctx) -> dict[str, float]:
        found = 40.0
        for step in ctx.loop("count", 2):
            breakpoint()
            ctx.log(found=found + step)
        return {"found": found}


@dataclass(kw_only=True)
class NotANumber:
    """A gradient that is NaN though the loss is finite."""

    def run(self, ctx) -> dict[str, float]:
        import torch

        weight = torch.zeros(1, requires_grad=True)
        for _ in ctx.loop("count", 2):
            (weight.sqrt() * 0).sum().backward()
        return {"gradient": 0.0}


@dataclass(kw_only=True)
class Arm:
    """One arm of a table: a number that depends on a setting and on the seed, and test scores around it."""

    paper: ClassVar[str] = "arXiv:0000.00002"
    fidelity: ClassVar[str] = "reconstruction"
    deviations: ClassVar[tuple[str, ...]] = ("it draws nothing",)
    level: float = 0.5
    fails_at: list[int] = field(default_factory=list)  # seeds

    def run(self, ctx) -> dict[str, float]:
        import numpy

        if ctx.seed in self.fails_at:
            raise ArithmeticError("the arm broke")
        value = self.level + 0.01 * (ctx.seed % 3)
        index = numpy.arange(20)
        correct = (index * 7 + ctx.seed) % 20 < 20 * value
        numpy.savez(ctx.artifact("test_scores.npz"), index=index, label=index % 2, score=correct.astype(float))
        return {"accuracy": value, "accuracy_best_validation": value + 0.02, "seconds_of_search": 10.0 * value}
