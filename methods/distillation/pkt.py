"""Probabilistic knowledge transfer: the probabilities with which examples are neighbours in the embedding.

Passalis and Tefas 2018, arXiv:1803.10837, eq. 7, as RepDistiller has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from runner.methods.distillation.pair import Pair
from runner.methods.distillation.relations import probability_difference

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class PKT:
    """Probabilistic knowledge transfer: who is near whom in the batch."""

    code_base: Literal["rep"] = "rep"  # the only one that has it
    weight: Annotated[float, Field(ge=0)] = 30000.0

    paper: ClassVar[str] = "arXiv:1803.10837"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "A student can match the distribution of a teacher's space instead of its values."
    citation: ClassVar[str] = (
        "Passalis and Tefas. Learning Deep Representations with Probabilistic Knowledge Transfer. ECCV 2018."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    distributed: ClassVar[bool] = False  # relations of the whole batch

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_teacher (0..1, test) and loss (nats)."""
        pair = Pair(ctx)

        def loss(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            student, teacher = pair(images, index)
            difference = probability_difference(student.embedding, teacher.embedding)
            return pair.task_loss(student, labels) + self.weight * difference

        return pair.distil(loss)
