"""KD-SVD: how the leading singular vectors of maps relate from one depth to the next.

Lee, Kim and Song 2018, arXiv:1807.06819, eq. 3-9, in the forms of three code bases. The sign of the teacher's vectors
is fixed (the loss depends on it, and routines differ)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from runner.methods.distillation.adapters import convolution_norms, require_equal
from runner.methods.distillation.clipping import clipped_sum, rising_rate
from runner.methods.distillation.pair import Pair
from runner.methods.distillation.singular_vectors import projected_differences, relation_differences

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class KDSVD:
    """How the leading singular vectors of maps relate from one depth to the next."""

    code_base: Literal["sib", "tf2", "rep"] = "rep"  # rep: no clip; sib: a rising one; tf2: projections
    weight: Annotated[float, Field(ge=0)] = 1.0

    paper: ClassVar[str] = "arXiv:1807.06819"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "Maps compressed by their singular vectors are knowledge that a student can take over."
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
        "the derivative of the vectors is the exact one; the code's is twice a part of it",
        "tf2: the adapters are trained, with batch statistics; its code never trains them",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_teacher (0..1, test) and loss (nats)."""
        pair = Pair(ctx, {"rep": "output", "sib": "activated", "tf2": "preactivation"}[self.code_base])
        shapes, adapters = (pair.student_shapes.maps, pair.teacher_shapes.maps), None
        if self.code_base == "tf2":
            require_equal(*shapes, "size")
            adapters = ctx.initialised("adapters", lambda: convolution_norms(*shapes))
        else:
            require_equal(*shapes, "width", cure="; method.code_base=tf2 has adapters of width")
        parameters = [*pair.student.parameters(), *(adapters.parameters() if adapters else ())]

        def loss(images: Tensor, labels: Tensor, index: Tensor, *, epoch: int) -> Tensor:
            student, teacher = pair(images, index)
            task = pair.task_loss(student, labels)
            if adapters is not None:
                adapted = [adapter(item) for adapter, item in zip(adapters, student.maps, strict=True)]
                transfer = projected_differences(adapted, teacher.maps)
            else:
                transfer = relation_differences(student.maps, teacher.maps)
            if self.code_base == "rep":
                return task + self.weight * transfer / len(images)
            rate = 1.0 if self.code_base == "tf2" else rising_rate(epoch)
            return clipped_sum(task, [self.weight * transfer], parameters, rate)

        return pair.distil(loss, {"adapters": adapters} if adapters else None)
