"""Distillation from softened logits.

Hinton, Vinyals and Dean 2015, arXiv:1503.02531, eq. 2-4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from runner.methods.distillation.losses import kl_divergence
from runner.methods.distillation.pair import Pair

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class SoftLogits:
    """Distillation from softened logits."""

    code_base: Literal["sib", "tf2", "rep"] = "rep"  # rep multiplies the divergence by temperature^2
    temperature: Annotated[float, Field(gt=0)] = 4.0
    labels_weight: Annotated[float, Field(ge=0)] = 0.1  # of the cross-entropy
    weight: Annotated[float, Field(ge=0)] = 0.9  # of the divergence

    paper: ClassVar[str] = "arXiv:1503.02531"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "A teacher's softened probabilities tell a small network more than the labels do."
    citation: ClassVar[str] = "Hinton, Vinyals and Dean. Distilling the Knowledge in a Neural Network. 2015."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_teacher (0..1, test) and loss (nats)."""
        pair = Pair(ctx)
        pair.require_same_classes()
        weight = self.weight * (self.temperature**2 if self.code_base == "rep" else 1)

        def loss(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            student, teacher = pair(images, index)
            divergence = kl_divergence(student.logits, teacher.logits, self.temperature)
            return self.labels_weight * pair.task_loss(student, labels) + weight * divergence

        return pair.distil(loss)
