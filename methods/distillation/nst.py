"""Neuron selectivity transfer: the channels of a map are distributed like the teacher's.

Huang and Wang 2017, arXiv:1707.01219, eq. 5 with the polynomial kernel, as RepDistiller has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from runner.methods.distillation.features import pool_to_smaller
from runner.methods.distillation.losses import selectivity_discrepancy
from runner.methods.distillation.pair import Pair

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class NST:
    """Neuron selectivity transfer: channels are distributed alike."""

    code_base: Literal["rep"] = "rep"  # the only one that has it
    weight: Annotated[float, Field(ge=0)] = 50.0  # of the sum over points

    paper: ClassVar[str] = "arXiv:1707.01219"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "Matching the distributions of neuron selectivities transfers knowledge of maps."
    citation: ClassVar[str] = (
        "Huang and Wang. Like What You Like: Knowledge Distill via Neuron Selectivity Transfer. 2017."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    deviations: ClassVar[tuple[str, ...]] = ("the last stages are paired where one network has more of them",)

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_teacher (0..1, test) and loss (nats)."""
        pair = Pair(ctx, "output")

        def loss(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            student, teacher = pair(images, index)
            maps = zip(student.maps, teacher.maps, strict=True)
            discrepancy = sum(selectivity_discrepancy(*pool_to_smaller(s, t)) for s, t in maps)
            return pair.task_loss(student, labels) + self.weight * discrepancy

        return pair.distil(loss)
