"""KD-EID: KD-SVD with the eigendecomposition of the smaller Gram matrix in place of the SVD.

Lee and Song's code of MHGD (2019), arXiv:1907.02226; the method is arXiv:1807.06819."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from runner.methods.distillation.adapters import require_equal
from runner.methods.distillation.clipping import clipped_sum, rising_rate
from runner.methods.distillation.pair import Pair
from runner.methods.distillation.singular_vectors import relation_differences

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class KDEID:
    """KD-SVD with the eigendecomposition of small Gram matrices in place of the SVD."""

    code_base: Literal["sib"] = "sib"  # the only one that has it
    weight: Annotated[float, Field(ge=0)] = 1.0

    paper: ClassVar[str] = "arXiv:1807.06819"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "Eigenvectors of small Gram matrices do for singular vectors, faster."
    citation: ClassVar[str] = (
        "Lee, Kim and Song. Self-supervised Knowledge Distillation using Singular Value Decomposition. ECCV 2018."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    distributed: ClassVar[bool] = False  # the clip is of the whole batch's gradients
    deviations: ClassVar[tuple[str, ...]] = (
        "the last stages are paired where one network has more of them",
        "the sign rule of IEP fixes the teacher's vectors",
        "the derivative of the vectors is the exact one, of nearly square maps too; the code's is twice a part or none",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_teacher (0..1, test) and loss (nats)."""
        pair = Pair(ctx, "activated")
        require_equal(pair.student_shapes.maps, pair.teacher_shapes.maps, "width")
        parameters = list(pair.student.parameters())

        def loss(images: Tensor, labels: Tensor, index: Tensor, *, epoch: int) -> Tensor:
            student, teacher = pair(images, index)
            transfer = self.weight * relation_differences(student.maps, teacher.maps, gram=True)
            return clipped_sum(pair.task_loss(student, labels), [transfer], parameters, rising_rate(epoch))

        return pair.distil(loss)
