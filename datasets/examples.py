"""Labelled examples of any shape in memory (windows of series, sequences of tokens): splits and batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from runner.datasets.augment import WHOLE
from runner.datasets.images import Labelled, Part


@dataclass
class Examples(Labelled):
    """inputs (N, ...), labels (N,) int64, index (N,) int64, and of each example further numbers (N,), such as whose
    it is."""

    inputs: Tensor
    labels: Tensor
    index: Tensor
    groups: dict[str, Tensor] = field(default_factory=dict)

    def take(self, rows: Tensor) -> Examples:
        """The examples at ``rows`` (int64), in that order; a copy."""
        groups = {name: values[rows] for name, values in self.groups.items()}
        return Examples(self.inputs[rows], self.labels[rows], self.index[rows], groups)

    def to(self, device: torch.device | str) -> Examples:
        groups = {name: values.to(device) for name, values in self.groups.items()}
        return Examples(self.inputs.to(device), self.labels.to(device), self.index.to(device), groups)

    def batches(
        self, normalisation: None, batch_size: int, *, shuffle: bool, drop_last: bool = False, **of_images: Any
    ) -> ExampleBatches:
        """``ExampleBatches``; what else ``Context.batches`` asks for has no meaning here."""
        return ExampleBatches(self, batch_size, shuffle=shuffle, drop_last=drop_last)


class ExampleBatch(NamedTuple):
    """inputs (B, ...), labels (B,), index (B,): row in the split."""

    inputs: Tensor
    labels: Tensor
    index: Tensor


class ExampleBatches:
    """Batches in an order that is a function of an epoch's seed alone; ``drop_last`` leaves out a last, smaller one."""

    def __init__(self, examples: Examples, batch_size: int, *, shuffle: bool, drop_last: bool) -> None:
        self.examples, self.batch_size, self.shuffle, self.drop_last = examples, batch_size, shuffle, drop_last

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self.examples), self.batch_size)
        return whole + (rest > 0 and not (self.drop_last and whole > 0))

    def iterate(
        self, generator_seed: int, start: int = 0, *, stride: int = 1, part: Part | None = None
    ) -> Iterator[ExampleBatch]:
        """One epoch from batch ``start`` on; ``part`` as in ``runner.datasets.images.Batches.iterate``."""
        count = len(self.examples)
        if self.shuffle:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(generator_seed))
        else:
            order = torch.arange(count)
        for rows in order.split(self.batch_size)[start : len(self) : stride]:
            wanted = rows[WHOLE if part is None else part(len(rows))[0]].to(self.examples.labels.device)
            yield ExampleBatch(self.examples.inputs[wanted], self.examples.labels[wanted], wanted)


@dataclass
class ExampleData:
    """A data set ready for training. ``validation`` may be empty; its rows are not in ``train``."""

    name: str
    display_name: str
    kind: str
    train: Examples
    validation: Examples
    test: Examples
    class_names: list[str]
    shape: str  # of an example, in words
    vocabulary: int | None = None  # of tokens: they are 0..vocabulary - 1
    normalisation: None = None  # nothing is left to do when batches are made
    augmentation: None = None

    def to(self, device: torch.device) -> ExampleData:
        for split in ("train", "validation", "test"):
            setattr(self, split, getattr(self, split).to(device))
        return self

    def describe(self) -> str:
        """One line for the screen."""
        return (
            f"data {self.display_name}: {len(self.train)} train, {len(self.validation)} validation, "
            f"{len(self.test)} test, {self.num_classes} classes, {self.shape}"
        )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def drawn(examples: Examples, limit: int | None) -> Examples:
    """At most ``limit`` of them, drawn from torch's global generator, in their order."""
    if limit is None or limit >= len(examples):
        return examples
    return examples.take(torch.randperm(len(examples))[:limit].sort().values)


def hold_out(examples: Examples, fraction: float) -> tuple[Examples, Examples]:
    """What stays and what is held out: a part drawn from torch's global generator, each in its order."""
    order = torch.randperm(len(examples))
    count = round(fraction * len(examples))
    return examples.take(order[count:].sort().values), examples.take(order[:count].sort().values)
