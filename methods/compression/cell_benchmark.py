"""A table of trained architectures: networks of one cell are drawn, trained alike and measured.

NAS-Bench-201, Dong and Yang 2020, arXiv:2001.00326: all 15,625 of them, 200 epochs each, recipe nas_bench_201. A sample
of them, on any images, is what searches for architectures look up here where no published table is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy
from pydantic import Field
from torch.nn.functional import cross_entropy

from runner import randomness
from runner.errors import UserError
from runner.fit import fit
from runner.methods.compression.architecture_table import (
    ARCHITECTURE,
    COST,
    TEST,
    VALIDATION,
    ArchitectureTable,
    read_table,
)
from runner.models import build_model
from runner.models.cell_network import ARCHITECTURES, architecture
from runner.profile import count

if TYPE_CHECKING:
    from torch import Tensor, nn

    from runner.context import Context

FILE = "architectures.csv"
BACKWARD = 3  # a training step costs about three forward passes


@dataclass(kw_only=True)
class CellBenchmark:
    """Trains architectures of one cell, drawn from all 15,625, and writes artifacts/architectures.csv."""

    architectures: Annotated[int, Field(ge=2, le=ARCHITECTURES)] = ARCHITECTURES  # drawn without replacement

    paper: ClassVar[str] = "arXiv:2001.00326"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "One table of a whole space of trained architectures makes their searches comparable."
    citation: ClassVar[str] = "Dong and Yang. NAS-Bench-201. ICLR 2020."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("architecture",)
    soft_labels: ClassVar[bool] = True
    distributed: ClassVar[bool] = False  # many small networks: give each process a table of its own
    deviations: ClassVar[tuple[str, ...]] = (
        "one training of each architecture; the published table has up to three",
        "the last epoch is measured, once the training has ended",
        "cost is in 10^12 multiply-adds of a training, which repeat; the published table has seconds",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns architectures, accuracy_mean and accuracy_of_most_accurate (by validation; 0..1, test)."""
        if not len(ctx.data.validation):
            raise UserError("method cell_benchmark compares by validation accuracy: set dataset.validation_fraction")
        names = drawn_architectures(self.architectures, randomness.stream_seed(ctx.seed, "architectures"))
        columns: dict[str, list[float]] = {VALIDATION: [], TEST: [], COST: []}
        ctx.track(columns=columns)
        for place in ctx.loop("architectures", len(names)):
            network = candidate(ctx, names[place])
            fit(ctx, network, label_loss(network, ctx.recipe.label_smoothing), validate=False)
            columns[VALIDATION].append(ctx.evaluate(network, "validation")["accuracy"])
            columns[TEST].append(ctx.evaluate(network, "test", record=False)["accuracy"])
            columns[COST].append(training_cost(ctx, network))
            ctx.log(**{name: values[-1] for name, values in columns.items()})
        arrays = {name: numpy.array(values) for name, values in columns.items()}
        table = ArchitectureTable(names[: len(columns[TEST])], arrays)
        table.write(ctx.artifact(FILE))
        return {
            "architectures": len(table),
            "accuracy_mean": table.columns[TEST].mean(),
            "accuracy_of_most_accurate": table.columns[TEST][table.validation.argmax()],
        }


def label_loss(network: nn.Module, smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy of (images, labels)."""
    return lambda images, labels: cross_entropy(network(images), labels, label_smoothing=smoothing)


def drawn_architectures(number: int, seed: int) -> list[str]:
    """Distinct architectures, drawn uniformly; the whole space in its own order."""
    if number == ARCHITECTURES:
        return [architecture(place) for place in range(ARCHITECTURES)]
    drawn = numpy.random.default_rng(seed).choice(ARCHITECTURES, number, replace=False)
    return [architecture(int(place)) for place in drawn]


def candidate(ctx: Context, name: str) -> nn.Module:
    """The config's network with this architecture, all from one stream of initial values.

    Raises UserError: the config's network has no architecture.
    """
    settings = ctx.settings.model
    if ARCHITECTURE not in settings.arguments:
        raise UserError(
            f"model={settings.name} is one network, and method {ctx.config['method']['name']} compares architectures: "
            f"use model=cell_network, or a model.target with an argument '{ARCHITECTURE}'"
        )
    settings = replace(settings, arguments={**settings.arguments, ARCHITECTURE: name})
    return ctx.initialised(
        ARCHITECTURE,
        lambda: build_model(
            settings,
            num_classes=ctx.data.num_classes,
            image_size=ctx.data.image_size,
            channels=ctx.data.channels,
            small_image_stem=ctx.scale.small_image_stem,
        ),
    )


def training_cost(ctx: Context, network: nn.Module) -> float:
    """Of the recipe's epochs, in 10^12 multiply-adds."""
    data = ctx.data
    flops = count(network, (data.channels, data.image_size, data.image_size)).flops
    return max(flops, 1) * BACKWARD * len(data.train) * ctx.recipe.epochs / 1e12


def architecture_table(ctx: Context, path: str | None, architectures: int) -> ArchitectureTable:
    """The table of a file, or without one that of a cell_benchmark cell with the config's section ``benchmark``.

    Raises UserError: the file is no such table, or the config's network has no architecture.
    """
    if path is not None:
        return read_table(path)
    section = ctx.config["benchmark"]
    cell = ctx.cell("cell_benchmark", {"architectures": architectures}, seed=section["seed"], role="benchmark")
    return read_table(cell.artifact(FILE))
