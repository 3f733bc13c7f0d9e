"""CO, the comprehensive overhaul of feature distillation: partial distances before the ReLU, with margins.

Heo et al. 2019, arXiv:1904.01866, eq. 2-5, in the form of the TF2 code base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from runner.methods.distillation.adapters import convolution_norms
from runner.methods.distillation.features import pool_to_smaller, stage_norms
from runner.methods.distillation.losses import overhaul_margin, partial_difference
from runner.methods.distillation.pair import Pair

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class Overhaul:
    """Comprehensive overhaul of feature distillation: partial distances before the ReLU."""

    code_base: Literal["tf2"] = "tf2"  # the only one of the three that has it
    weight: Annotated[float, Field(ge=0)] = 1.0e-3  # at the last point; halved with every point before it

    paper: ClassVar[str] = "arXiv:1904.01866"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "What is distilled, where and with which distance decides more than the rest."
    citation: ClassVar[str] = "Heo et al. A Comprehensive Overhaul of Feature Distillation. ICCV 2019."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    deviations: ClassVar[tuple[str, ...]] = (
        "the last stages are paired where one network has more of them",
        "where sizes differ the larger map is pooled (the code base's networks have equal sizes)",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_teacher (0..1, test) and loss (nats)."""
        pair = Pair(ctx, "preactivation")
        stage_norms(ctx.blank_model("teacher"))  # refused here, not after its training
        maps = pair.student_shapes.maps, pair.teacher_shapes.maps
        adapters = ctx.initialised("adapters", lambda: convolution_norms(*maps))
        margins = [overhaul_margin(norm) for norm in stage_norms(pair.load_teacher())][-len(adapters) :]

        def loss(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            student, teacher = pair(images, index)
            total = 0
            for number, (adapter, margin) in enumerate(zip(adapters, margins, strict=True)):
                s, t = pool_to_smaller(adapter(student.maps[number]), teacher.maps[number])
                total += partial_difference(s, t, margin) / 2 ** (len(adapters) - 1 - number)
            return pair.task_loss(student, labels) + self.weight * total / len(images)

        return pair.distil(loss, {"adapters": adapters})
