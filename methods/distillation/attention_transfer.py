"""Attention transfer: the student looks where the teacher looks.

Zagoruyko and Komodakis 2017, arXiv:1612.03928, eq. 2, in the forms of three code bases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from runner.methods.distillation.adapters import convolution_norms
from runner.methods.distillation.features import pool_to_smaller
from runner.methods.distillation.losses import attention_difference, channel_attention_difference
from runner.methods.distillation.pair import Pair

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class AttentionTransfer:
    """The student looks where the teacher looks."""

    code_base: Literal["sib", "tf2", "rep"] = "rep"  # rep, sib: of the map's energy; tf2: of every channel
    weight: Annotated[float, Field(ge=0)] = 1000.0  # of the sum over points; tf2: halved before the last

    paper: ClassVar[str] = "arXiv:1612.03928"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "Matching maps of where a network is active improves the student."
    citation: ClassVar[str] = "Zagoruyko and Komodakis. Paying More Attention to Attention. ICLR 2017."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    deviations: ClassVar[tuple[str, ...]] = (
        "the last stages are paired where one network has more of them",
        "sib: where widths differ its code has a square linear map before the student's attention; left out",
        "sib, tf2: as rep, the larger map is pooled where sizes differ (their networks have equal sizes)",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_teacher (0..1, test) and loss (nats)."""
        pair = Pair(ctx, {"rep": "output", "sib": "activated", "tf2": "preactivation"}[self.code_base])
        adapters = None
        if self.code_base == "tf2":
            maps = pair.student_shapes.maps, pair.teacher_shapes.maps
            adapters = ctx.initialised("adapters", lambda: convolution_norms(*maps))

        def difference(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
            if adapters is None:
                return sum(attention_difference(*pool_to_smaller(s, t)) for s, t in zip(student, teacher, strict=True))
            points = list(zip(adapters, student, teacher, strict=True))
            return sum(
                channel_attention_difference(*pool_to_smaller(adapter(s), t)) / 2 ** (len(points) - 1 - number)
                for number, (adapter, s, t) in enumerate(points)
            )

        def loss(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            student, teacher = pair(images, index)
            return pair.task_loss(student, labels) + self.weight * difference(student.maps, teacher.maps)

        return pair.distil(loss, {"adapters": adapters} if adapters else None)
