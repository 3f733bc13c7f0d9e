"""Relational knowledge distillation: distances and angles between the examples of a batch.

Park et al. 2019, arXiv:1904.05068, eq. 3-8, in the forms of three code bases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from torch.nn.functional import normalize

from runner.methods.distillation.features import Features
from runner.methods.distillation.pair import Pair
from runner.methods.distillation.relations import angle_difference, distance_difference

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class RKD:
    """Distances and angles between the examples of a batch."""

    code_base: Literal["sib", "tf2", "rep"] = "rep"  # rep: embeddings; sib: of unit length; tf2: logits of unit length
    distance_weight: Annotated[float, Field(ge=0)] = 25.0
    angle_weight: Annotated[float, Field(ge=0)] = 50.0

    paper: ClassVar[str] = "arXiv:1904.05068"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "Relations between examples carry more than each example's output."
    citation: ClassVar[str] = "Park, Kim, Lu and Cho. Relational Knowledge Distillation. CVPR 2019."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    distributed: ClassVar[bool] = False  # relations of the whole batch

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_teacher (0..1, test) and loss (nats)."""
        pair = Pair(ctx)
        zero_diagonal = self.code_base == "rep"

        def loss(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            student, teacher = pair(images, index)
            s, t = self.embeddings(student), self.embeddings(teacher)
            distance, angle = distance_difference(s, t, zero_diagonal=zero_diagonal), angle_difference(s, t)
            return pair.task_loss(student, labels) + self.distance_weight * distance + self.angle_weight * angle

        return pair.distil(loss)

    def embeddings(self, features: Features) -> Tensor:
        """(B, D), as the code base takes them."""
        if self.code_base == "rep":
            return features.embedding
        return normalize(features.embedding if self.code_base == "sib" else features.logits)
