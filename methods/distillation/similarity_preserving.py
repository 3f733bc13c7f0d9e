"""Similarity-preserving distillation: inputs that are alike to the teacher are alike to the student.

Tung and Mori 2019, arXiv:1907.09682, eq. 4, on the last maps, as RepDistiller has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from runner.methods.distillation.pair import Pair
from runner.methods.distillation.relations import similarity_difference

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class SimilarityPreserving:
    """Inputs that are alike to the teacher are alike to the student."""

    code_base: Literal["rep"] = "rep"  # the only one that has it
    weight: Annotated[float, Field(ge=0)] = 3000.0

    paper: ClassVar[str] = "arXiv:1907.09682"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "Pairwise similarities of activations are knowledge that needs no adapter."
    citation: ClassVar[str] = "Tung and Mori. Similarity-Preserving Knowledge Distillation. ICCV 2019."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    distributed: ClassVar[bool] = False  # relations of the whole batch

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_teacher (0..1, test) and loss (nats)."""
        pair = Pair(ctx, "output")

        def loss(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            student, teacher = pair(images, index)
            difference = similarity_difference(student.maps[-1], teacher.maps[-1])
            return pair.task_loss(student, labels) + self.weight * difference

        return pair.distil(loss)
