"""FSP: before the labels, the student learns how the teacher's channels go together from one depth to the next.

Yim et al. 2017 (CVPR), eq. 1-2, in the forms of three code bases."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from runner.methods.distillation.adapters import convolution_norms, require_equal
from runner.methods.distillation.losses import flow
from runner.methods.distillation.pair import Pair

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class FSP:
    """The flow of the solution procedure, learnt before the labels."""

    code_base: Literal["sib", "tf2", "rep"] = "rep"  # whose pooling and reduction, see `difference`
    weight: Annotated[float, Field(ge=0)] = 1.0  # of the initialisation's loss
    initialisation_epochs: Annotated[int, Field(gt=0)] = 30

    paper: ClassVar[str] = "Yim et al., CVPR 2017"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "A student that first learns the flow between layers learns faster and ends better."
    citation: ClassVar[str] = "Yim et al. A Gift from Knowledge Distillation. CVPR 2017."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    deviations: ClassVar[tuple[str, ...]] = (
        "the last stages are paired where one network has more of them",
        "rep: the published weight 50 multiplies a loss that its code sets to 0; the initialisation has weight 1",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_teacher (0..1, test) and loss (nats)."""
        at = {"rep": "output", "sib": "activated", "tf2": "preactivation"}[self.code_base]
        pair = Pair(ctx, at, stem=self.code_base == "rep")
        shapes, adapters = (pair.student_shapes.maps, pair.teacher_shapes.maps), None
        if self.code_base == "tf2":
            adapters = ctx.initialised("adapters", lambda: convolution_norms(*shapes))
        else:
            require_equal(*shapes, "width", cure="; method.code_base=tf2 has adapters of width")

        def flows(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            student, teacher = pair(images, index)
            maps = student.maps
            if adapters is not None:
                maps = [adapter(item) for adapter, item in zip(adapters, maps, strict=True)]
            return self.weight * self.difference(maps, teacher.maps)

        pair.initialise(flows, self.initialisation_epochs, {"adapters": adapters} if adapters else None)
        return pair.distil(lambda images, labels: pair.task_loss(pair.student_features(images), labels))

    def difference(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Squared differences of ``flow`` between adjacent maps (B, C, H, W), summed over points.

        rep: mean over the batch and all entries; sib: half the sum over entries, mean over the batch; tf2: the sum over
        batch and entries over B^2. Pooling: average in rep, max in the others.
        """
        pooling, total = "average" if self.code_base == "rep" else "max", 0
        for (s_lower, s_upper), (t_lower, t_upper) in zip(pairwise(student), pairwise(teacher), strict=True):
            squares = (flow(s_lower, s_upper, pooling) - flow(t_lower, t_upper, pooling)).square()
            batch = len(squares)
            total += {"rep": squares.mean(), "sib": squares.sum() / (2 * batch), "tf2": squares.sum() / batch**2}[
                self.code_base
            ]
        return total
