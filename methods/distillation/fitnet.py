"""FitNet: hints from the teacher's maps, learnt jointly (RepDistiller) or before the labels (the others).

Romero et al. 2015, arXiv:1412.6550, eq. 3, in the forms of three code bases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from runner.errors import UserError
from runner.methods.distillation.adapters import Regressor, convolution_norms, require_equal
from runner.methods.distillation.losses import sum_per_position
from runner.methods.distillation.pair import Pair

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class FitNet:
    """Hints: the student imitates the teacher's maps."""

    code_base: Literal["sib", "tf2", "rep"] = "rep"  # rep: one point, joint with the labels; sib, tf2: all, before them
    weight: Annotated[float, Field(ge=0)] = 100.0  # of the hint loss
    stage: Annotated[int, Field(gt=0)] = 2  # rep: whose end is the hint, from 1
    initialisation_epochs: Annotated[int, Field(gt=0)] = 40  # sib, tf2

    paper: ClassVar[str] = "arXiv:1412.6550"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "Thin deep networks train well when a middle layer is told what the teacher's computes."
    citation: ClassVar[str] = "Romero et al. FitNets: Hints for Thin Deep Nets. ICLR 2015."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    deviations: ClassVar[tuple[str, ...]] = ("the last stages are paired where one network has more of them",)

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_teacher (0..1, test) and loss (nats)."""
        pair = Pair(ctx, {"rep": "output", "sib": "activated", "tf2": "preactivation"}[self.code_base])
        shapes = pair.student_shapes.maps, pair.teacher_shapes.maps
        if self.code_base == "rep":
            if self.stage > len(shapes[0]):
                raise UserError(f"method.stage={self.stage}: the pair has {len(shapes[0])} stages in common")
            place = self.stage - 1
            regressor = ctx.initialised("regressor", lambda: Regressor(shapes[0][place], shapes[1][place]))

            def joint(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
                student, teacher = pair(images, index)
                hint = (regressor(student.maps[place]) - teacher.maps[place]).square().mean()
                return pair.task_loss(student, labels) + self.weight * hint

            return pair.distil(joint, {"regressor": regressor})

        require_equal(*shapes, "size")
        to_student = self.code_base == "sib"
        adapters = ctx.initialised(
            "adapters", lambda: linear_maps(*shapes) if to_student else convolution_norms(*shapes)
        )

        def hints(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            student, teacher = pair(images, index)
            points = zip(adapters, student.maps, teacher.maps, strict=True)
            if to_student:
                return self.weight * sum((s - adapter(t)).square().mean() for adapter, s, t in points)
            return self.weight * sum(sum_per_position((adapter(s) - t).square()) for adapter, s, t in points)

        pair.initialise(hints, self.initialisation_epochs, {"adapters": adapters})
        return pair.distil(lambda images, labels: pair.task_loss(pair.student_features(images), labels))


def linear_maps(student: list[Tensor], teacher: list[Tensor]) -> nn.ModuleList:
    """One map of the teacher's channels to the student's width a point, without bias, He initialisation over the
    outputs; none where they are equal."""
    maps = nn.ModuleList(
        nn.Identity() if s.shape[1] == t.shape[1] else nn.Conv2d(t.shape[1], s.shape[1], 1, bias=False)
        for s, t in zip(student, teacher, strict=True)
    )
    for weight in maps.parameters():
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
    return maps
