"""VID: the student's maps tell the teacher's, as a Gaussian with a trained variance a channel has it.

Ahn et al. 2019, arXiv:1904.05835, eq. 5-6, in the forms of three code bases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from runner.methods.distillation.adapters import VariationalRegressor, require_equal
from runner.methods.distillation.features import pool_to_smaller
from runner.methods.distillation.losses import gaussian_surprise
from runner.methods.distillation.pair import Pair

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class VID:
    """Variational information distillation: the teacher's maps are likely, given the student's."""

    code_base: Literal["sib", "tf2", "rep"] = "rep"  # the regressors' widths, normalisation and first variance
    weight: Annotated[float, Field(ge=0)] = 1.0  # of the sum over points

    paper: ClassVar[str] = "arXiv:1904.05835"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "Maximising a bound of the mutual information between maps transfers knowledge across networks."
    )
    citation: ClassVar[str] = "Ahn, Hu, Damianou, Lawrence and Dai. Variational Information Distillation. CVPR 2019."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    deviations: ClassVar[tuple[str, ...]] = (
        "the last stages are paired where one network has more of them",
        "tf2: the regressors are trained, with batch statistics; its code never trains them",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_teacher (0..1, test) and loss (nats)."""
        pair = Pair(ctx, {"rep": "output", "sib": "activated", "tf2": "preactivation"}[self.code_base])
        shapes = pair.student_shapes.maps, pair.teacher_shapes.maps
        if self.code_base == "tf2":
            require_equal(*shapes, "width", cure="; the other code bases' regressors change the width")
        regressors = ctx.initialised("regressors", lambda: self.regressors(*shapes))

        def loss(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            student, teacher = pair(images, index)
            surprise = 0
            for regressor, *maps in zip(regressors, student.maps, teacher.maps, strict=True):
                s, t = pool_to_smaller(*maps)
                surprise += gaussian_surprise(*regressor(s), t)
            return pair.task_loss(student, labels) + self.weight * surprise

        return pair.distil(loss, {"regressors": regressors})

    def regressors(self, student: list[Tensor], teacher: list[Tensor]) -> nn.ModuleList:
        """rep: the teacher's width D three times, variance 5 at first; sib, tf2: 2D, 2D, D, normalised, scale 5."""
        modules = []
        for s, t in zip(student, teacher, strict=True):
            width = t.shape[1]
            if self.code_base == "rep":
                modules.append(
                    VariationalRegressor(s.shape[1], [width] * 3, norm=False, smallest_variance=1e-5, variance=5.0)
                )
            else:
                widths, start = [2 * width, 2 * width, width], "fan_out" if self.code_base == "sib" else "fan_in"
                modules.append(
                    VariationalRegressor(s.shape[1], widths, norm=True, start=start, smallest_variance=1.0, scale=5.0)
                )
        return nn.ModuleList(modules)
