"""Correlation congruence: what the student lacks at one example is unlike what it lacks at the next.

Peng et al. 2019, arXiv:1904.01802, as the authors' code in RepDistiller has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from runner.methods.distillation.pair import Pair
from runner.methods.distillation.relations import neighbour_correlation

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class CorrelationCongruence:
    """Correlations between instances of a batch agree."""

    code_base: Literal["rep"] = "rep"  # the only one that has it
    weight: Annotated[float, Field(ge=0)] = 0.02
    width: Annotated[int, Field(gt=0)] = 128  # of the linear embeddings of both networks, which are trained

    paper: ClassVar[str] = "arXiv:1904.01802"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "Instances and their correlations together are better knowledge than instances alone."
    citation: ClassVar[str] = "Peng et al. Correlation Congruence for Knowledge Distillation. ICCV 2019."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    distributed: ClassVar[bool] = False  # relations of the whole batch

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_teacher (0..1, test) and loss (nats)."""
        pair = Pair(ctx)
        widths = [shapes.embedding.shape[1] for shapes in (pair.student_shapes, pair.teacher_shapes)]
        embed = ctx.initialised("embeddings", lambda: nn.ModuleList(nn.Linear(width, self.width) for width in widths))

        def loss(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            student, teacher = pair(images, index)
            correlation = neighbour_correlation(embed[0](student.embedding), embed[1](teacher.embedding))
            return pair.task_loss(student, labels) + self.weight * correlation

        return pair.distil(loss, {"embeddings": embed})
