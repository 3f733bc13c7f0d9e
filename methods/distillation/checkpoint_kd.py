"""Distillation from checkpoints of the teacher's training: from the middle of a run, or several of it as one teacher.

Wang, Yang, Huang, Song and Huang, "Efficient Knowledge Distillation from Model Checkpoints", NeurIPS 2022,
arXiv:2210.06458. Official code: LeapLabTHU/CheckpointKD. Deviations: see the class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from runner.cells import run_cell
from runner.errors import UserError
from runner.fit import fit, test_metrics
from runner.methods.distillation.losses import kl_divergence
from runner.methods.distillation.pair import frozen
from runner.methods.distillation.teacher_checkpoints import epoch_of, epochs_of, stored_checkpoints
from runner.plan import cell_config, role_config

if TYPE_CHECKING:
    from runner.context import Context


@dataclass(kw_only=True)
class CheckpointKD:
    """Distillation from checkpoints of the teacher's training."""

    checkpoints: Annotated[int, Field(gt=0)] = 10  # that each teacher's run keeps, at equal distances
    members: list[Annotated[int, Field(gt=0)]] = field(default_factory=lambda: [5])  # of them; several: an ensemble
    select: Literal["given", "information"] = "given"  # information: the member that checkpoint_selection chooses
    teacher_runs: Annotated[int, Field(gt=0)] = 1  # seeds teacher.seed, teacher.seed + 1, ...; each gives its members
    average: Literal["logits", "losses"] = "logits"  # over the teachers
    temperature: Annotated[float, Field(gt=0)] = 5.0
    soften: Literal["both", "teacher"] = "both"  # teacher: the student's logits stay, and the factor is T, not T^2
    labels_weight: Annotated[float, Field(ge=0, le=1)] = 0.5  # of the cross-entropy; the rest is the divergence's
    teacher_mode: Literal["evaluation", "training"] = "evaluation"  # training: batch statistics, moving averages move

    paper: ClassVar[str] = "arXiv:2210.06458"
    fidelity: ClassVar[str] = "reconstruction"
    claim: ClassVar[str] = "A checkpoint from the middle of the teacher's training teaches better than its end."
    citation: ClassVar[str] = (
        "Wang, Yang, Huang, Song and Huang. Efficient Knowledge Distillation from Model Checkpoints. NeurIPS 2022."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    distributed: ClassVar[bool] = False  # teachers in training mode move their averages
    deviations: ClassVar[tuple[str, ...]] = (
        "teachers in evaluation mode; the released trainer puts them in it only from its first validation on, ten "
        "epochs before the end: method.teacher_mode=training is the other extreme",
        "the paper's temperature and weight of each pair are not known; the released defaults",
        "accuracy is the last epoch's; the released code reports the best of the last ten",
        "where a ResNet changes shape its shortcut is a 1x1 convolution; the released one takes every second pixel and "
        "adds channels of zeros",
    )

    def __post_init__(self) -> None:
        if not self.members or max(self.members) > self.checkpoints or len(set(self.members)) < len(self.members):
            raise ValueError(f"members: different numbers of checkpoints, 1 to {self.checkpoints}, not {self.members}")

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_teacher (0..1, test; of several teachers that of their mean logits), loss,
        entropy_teacher (nats a test example), and teacher_epochs, what the teachers cost to train."""
        student = ctx.model()
        members, networks = self._teachers(ctx)
        teachers = nn.ModuleList(networks)
        if self.teacher_mode == "training":
            teachers.train()
            ctx.track(teachers=teachers)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            logits = student(images).float()
            task = cross_entropy(logits, labels, label_smoothing=ctx.recipe.label_smoothing)
            if self.labels_weight == 1:
                return task
            with torch.no_grad():
                targets = [teacher(images).float() for teacher in teachers]
            return self.labels_weight * task + (1 - self.labels_weight) * self.divergence(logits, targets)

        fitted = fit(ctx, student, loss)
        ctx.track(teachers=None)
        ctx.profile(student, "final")
        ctx.save_model(student)
        ensemble = Ensemble(teachers.eval())
        epochs = epochs_of(ctx.config["teacher"]["recipe"]["epochs"], ctx)
        return {
            **test_metrics(ctx, student, fitted),
            "accuracy_teacher": ctx.evaluate(ensemble, "test", record=False)["accuracy"],
            "entropy_teacher": ctx.once("entropy of the teacher", lambda: _mean_entropy(ctx, ensemble)),
            "teacher_epochs": float(self.teacher_runs * epoch_of(max(members), self.checkpoints, epochs)),
        }

    def divergence(self, s: Tensor, teachers: Sequence[Tensor]) -> Tensor:
        """The scaled divergence of the student's logits (B, classes) from those of the teachers; a scalar, nats."""
        if self.average == "losses":
            return torch.stack([self._from_one(s, t) for t in teachers]).mean()
        return self._from_one(s, torch.stack(list(teachers)).mean(0))

    def _from_one(self, s: Tensor, t: Tensor) -> Tensor:
        if self.soften == "teacher":
            return self.temperature * kl_divergence(s, t / self.temperature)
        return self.temperature**2 * kl_divergence(s, t, self.temperature)

    def _teachers(self, ctx: Context) -> tuple[list[int], list[nn.Module]]:
        if ctx.role_model("teacher").weights is not None:
            raise UserError(
                "teacher.model.weights: this method needs the checkpoints of the teacher's training, so it trains the "
                "teacher itself; leave the weights out"
            )
        base = role_config(ctx.config, "teacher", ctx.launch.search_path)
        members = self.members if self.select == "given" else [self._selected(ctx, base)]
        found = []
        for number in range(self.teacher_runs):
            config = {**base, "seed": base["seed"] + number}
            role = "teacher" if number == 0 else f"teacher {number + 1}"
            found += stored_checkpoints(ctx, config, self.checkpoints, members, role)
        return members, [frozen(ctx, teacher) for teacher in found]

    def _selected(self, ctx: Context, base: dict[str, Any]) -> int:
        fields = {"checkpoints": self.checkpoints}
        config = cell_config(base, "checkpoint_selection", fields, None, None, ctx.launch.search_path)
        cell = run_cell(ctx, config, as_role="selection")
        member = int(cell.result["metrics"]["selected"])
        ctx.say(f"selection: checkpoint {member} of {self.checkpoints}")
        return member


class Ensemble(nn.Module):
    """The mean of the logits of several networks."""

    def __init__(self, members: nn.ModuleList) -> None:
        super().__init__()
        self.members = members

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([member(images) for member in self.members]).mean(0)


def _mean_entropy(ctx: Context, network: nn.Module) -> float:
    """Entropy of the predicted probabilities, mean over the test images, nats."""
    found = []
    with torch.no_grad(), ctx.autocast():
        batches = ctx.batches("test", ctx.recipe.evaluation_batch_size, shuffle=False, augment=False)
        for images, *_ in batches.iterate(0):
            found.append(torch.special.entr(network(images).float().softmax(1)).sum(1).double())
    return float(torch.cat(found).mean())
