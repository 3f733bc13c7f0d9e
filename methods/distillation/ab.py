"""AB: before the labels, the student learns the activation boundaries of the teacher's neurons.

Heo et al. 2019 (AAAI), arXiv:1811.03233, eq. 6, in the forms of three code bases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from runner.methods.distillation.adapters import Regressor, convolution_norms, require_equal
from runner.methods.distillation.losses import boundary_difference
from runner.methods.distillation.pair import Pair

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class ActivationBoundaries:
    """The student first learns which neurons the teacher switches on."""

    code_base: Literal["sib", "tf2", "rep"] = "rep"  # the adapters and the reduction, see `difference`
    weight: Annotated[float, Field(ge=0)] = 3.0e-3  # of the initialisation's loss
    margin: Annotated[float, Field(gt=0)] = 1.0
    initialisation_epochs: Annotated[int, Field(gt=0)] = 30

    paper: ClassVar[str] = "arXiv:1811.03233"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "Where neurons switch on is what a teacher should hand over, not how strongly."
    citation: ClassVar[str] = (
        "Heo, Lee, Yun and Choi. Knowledge Transfer via Distillation of Activation Boundaries. AAAI 2019."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    deviations: ClassVar[tuple[str, ...]] = (
        "the last stages are paired where one network has more of them",
        "sib: maps before the activation (the driver passes those behind it, by mistake)",
        "rep: a wide residual network's last normalisation learns in the initialisation (not in the code)",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_teacher (0..1, test) and loss (nats)."""
        pair = Pair(ctx, "preactivation")
        shapes = pair.student_shapes.maps, pair.teacher_shapes.maps
        if self.code_base != "rep":
            require_equal(*shapes, "size", cure="; method.code_base=rep has adapters of size")
        mode = "fan_out" if self.code_base == "sib" else "fan_in"
        adapters = ctx.initialised(
            "adapters",
            lambda: connectors(*shapes) if self.code_base == "rep" else convolution_norms(*shapes, mode=mode),
        )

        def boundaries(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            student, teacher = pair(images, index)
            adapted = [adapter(item) for adapter, item in zip(adapters, student.maps, strict=True)]
            return self.weight * self.difference(adapted, teacher.maps)

        pair.initialise(boundaries, self.initialisation_epochs, {"adapters": adapters})
        return pair.distil(lambda images, labels: pair.task_loss(pair.student_features(images), labels))

    def difference(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """The sum over points of ``boundary_difference`` of adapted maps (B, C, H, W), summed over their entries.

        rep: over B, point i of L weighs 2^(i-L+1); sib: over B, point i weighs 2^i; tf2: over B*H*W, weights as in rep.
        """
        total, points = 0, len(student)
        for number, (s, t) in enumerate(zip(student, teacher, strict=True)):
            count = s[:, 0].numel() if self.code_base == "tf2" else len(s)
            scale = 2.0 ** (number if self.code_base == "sib" else number - points + 1)
            total += scale * boundary_difference(s, t, self.margin).sum() / count
        return total


def connectors(student: list[Tensor], teacher: list[Tensor]) -> nn.ModuleList:
    """Convolution with bias and batch normalisation where shapes differ, nothing where they are equal."""
    return nn.ModuleList(
        nn.Identity() if s.shape[1:] == t.shape[1:] else Regressor(s, t, relu=False)
        for s, t in zip(student, teacher, strict=True)
    )
