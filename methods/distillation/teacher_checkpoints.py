"""Plain training that keeps its weights at equal distances: the teachers of method checkpoint_kd.

Wang et al., NeurIPS 2022, arXiv:2210.06458; official code LeapLabTHU/CheckpointKD."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from torch.nn.functional import cross_entropy

from runner.cells import run_cell
from runner.fit import fit, test_metrics
from runner.models.weights import assign, read_tensors
from runner.plan import cell_config
from runner.product import load
from runner.storage import write_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from runner.context import Context


@dataclass(kw_only=True)
class TeacherCheckpoints:
    """Supervised training whose weights are kept ``checkpoints`` times, the last time at its end."""

    checkpoints: Annotated[int, Field(gt=0)] = 10

    paper: ClassVar[str] = "arXiv:2210.06458"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "The teacher's run of checkpoint_kd, shared by all students."
    citation: ClassVar[str] = (
        "Wang, Yang, Huang, Song and Huang. Efficient Knowledge Distillation from Model Checkpoints. NeurIPS 2022."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy (0..1), loss (nats) on the test split, and accuracy_best_validation if there is one."""
        network = ctx.model()
        epochs = epochs_of(ctx.recipe.epochs, ctx)
        kept = {epoch_of(number, self.checkpoints, epochs) for number in range(1, self.checkpoints + 1)}

        def loss(images: Tensor, labels: Tensor, epoch: int) -> Tensor:
            if epoch in kept:
                keep(network, ctx.artifact(file_of(epoch)))
            return cross_entropy(network(images), labels, label_smoothing=ctx.recipe.label_smoothing)

        fitted = fit(ctx, network, loss)
        keep(network, ctx.artifact(file_of(epochs)))
        ctx.profile(network, "final")
        ctx.save_model(network)
        return test_metrics(ctx, network, fitted)


def stored_checkpoints(
    ctx: Context,
    config: Mapping[str, Any],
    checkpoints: int,
    members: Sequence[int] | None = None,
    role: str = "teacher",
) -> list[nn.Module]:
    """The networks of ``members`` (numbers from 1; None: all) of the run that trains ``config``'s network, a cell."""
    config = cell_config(
        config, "teacher_checkpoints", {"checkpoints": checkpoints}, None, None, ctx.launch.search_path
    )
    artifacts = run_cell(ctx, config, as_role=role).folder / "artifacts"
    epochs = epochs_of(config["recipe"]["epochs"], ctx)
    found = []
    for member in members or range(1, checkpoints + 1):
        network = load(artifacts / "model")
        file = artifacts / file_of(epoch_of(member, checkpoints, epochs))
        assign(network, read_tensors(file), file)
        found.append(network.to(ctx.device))
    return found


def epochs_of(epochs: int, ctx: Context) -> int:
    """Of a recipe, as the scale caps them."""
    return min(epochs, ctx.scale.max_epochs or epochs)


def epoch_of(number: int, checkpoints: int, epochs: int) -> int:
    """How many epochs lie before checkpoint ``number`` (1..checkpoints) of a run of ``epochs``."""
    return math.ceil(epochs * number / checkpoints)


def file_of(epochs: int) -> str:
    """Where the weights after so many epochs lie below artifacts/."""
    return f"checkpoints/after_{epochs}_epochs.safetensors"


def keep(network: nn.Module, path: Path) -> None:
    """Writes the weights unless they are there: an epoch asks before every batch, and a resume begins in its midst."""
    if not path.exists():
        write_tensors(path, network.state_dict())
