"""Networks and methods of a user, for runs of several processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from runner.fit import fit, test_metrics


def network(num_classes: int, in_channels: int, norm: str = "group", dropout: float = 0.0) -> nn.Module:
    """A network of two convolutions, and a parameter that no loss uses."""
    layers = [nn.Conv2d(in_channels, 8, 3, stride=4), nn.GroupNorm(4, 8) if norm == "group" else nn.BatchNorm2d(8)]
    layers += [nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()]
    found = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
    found.register_parameter("unused", nn.Parameter(torch.ones(2)))
    return found


@dataclass(kw_only=True)
class PartStatistics:
    """In one process what two do: each half of a batch is normalised by itself, moving averages are the first's."""

    def run(self, ctx) -> dict[str, float]:
        network = ctx.model()

        def loss(images, labels):
            value = 0.0
            for number, (part, its_labels) in enumerate(
                zip(images.tensor_split(2), labels.tensor_split(2), strict=True)
            ):
                kept = [buffer.clone() for buffer in network.buffers()]
                value = value + cross_entropy(network(part), its_labels, reduction="sum") / len(images)
                if number == 1:
                    for buffer, before in zip(network.buffers(), kept, strict=True):
                        buffer.data.copy_(before)
            return value

        fitted = fit(ctx, network, loss)
        ctx.save_model(network)
        return test_metrics(ctx, network, fitted)


@dataclass(kw_only=True)
class AllVerbs:
    """A cell, a stored phase, a loop over numbers with one over batches inside, `fit`, measurements, files."""

    def run(self, ctx) -> dict[str, float]:
        teacher = ctx.trained_model("baseline")
        bank = ctx.once(
            "bank", lambda: {"noise": torch.randn(3), "teacher": ctx.evaluate(teacher, "validation")["loss"]}
        )
        student = ctx.model()
        total = {"sum": 0.0}
        ctx.track(total=total, model=student)
        for step in ctx.loop("rounds", 2):
            for images, *_ in ctx.loop("inner", ctx.batches("train", 8), epochs=1):
                # a step's own draws; equal on all ranks only if they are shared
                total["sum"] += float(ctx.ranks.total(torch.rand(1) + len(images)) if ctx.ranks else torch.rand(1))
            total["sum"] += float(torch.rand(())) + step + ctx.evaluate(student, "validation")["loss"]
            ctx.log(total=total["sum"])

        def loss(images, labels):
            return cross_entropy(student(images) + bank["noise"].sum(), labels)

        loader = DataLoader(TensorDataset(torch.arange(7)), 3, shuffle=True)
        ctx.track(read=(read := {"rows": 0.0}))
        for (rows,) in (loop := ctx.loop("loader", loader, epochs=2)):
            own = rows.sum() * (loop.share > 0)  # the last batch has one row, the second rank none
            read["rows"] += float(ctx.ranks.total(own) if ctx.ranks else own)

        fitted = fit(ctx, student, loss, name="student")
        ctx.artifact("numbers.txt").write_text(str(total["sum"]))
        ctx.profile(student)
        ctx.save_model(student)
        return {**total, **read, **test_metrics(ctx, student, fitted)}


@dataclass(kw_only=True)
class ByHand:
    """Trains without `fit`, and does not say that it cannot be distributed."""

    def run(self, ctx) -> dict[str, float]:
        network = ctx.model()
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        ctx.track(network=network, optimizer=optimizer)
        for images, labels, _ in ctx.loop("train", ctx.batches("train", 8), epochs=1):
            optimizer.zero_grad()
            cross_entropy(network(images), labels).backward()
            optimizer.step()
        return ctx.evaluate(network)


@dataclass(kw_only=True)
class Alone(ByHand):
    """The same, and says it."""

    distributed: ClassVar[bool] = False


@dataclass(kw_only=True)
class Raises:
    """Fails on rank 1 alone."""

    def run(self, ctx) -> dict[str, float]:
        for step in ctx.loop("count", 3):
            if step == 1 and ctx.ranks is not None and not ctx.ranks.main:
                raise ArithmeticError("the metal broke")
        return {"steps": 3.0}
