"""Methods of a user, outside the package: what a YAML on --config-dir may name."""

from __future__ import annotations

from dataclasses import dataclass
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


def write_config(folder: Path, name: str, target: str, fields: dict | None = None, **sections) -> Path:
    """Adds a method to a --config-dir and returns the folder."""
    content = {"method": {"name": name, "target": target, **(fields or {})}, **sections}
    (folder / "method").mkdir(parents=True, exist_ok=True)
    (folder / "method" / f"{name}.yaml").write_text(f"# @package _global_\n{yaml.safe_dump(content)}")
    return folder
