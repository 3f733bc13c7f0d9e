"""MHGD: attention over a batch, learnt on the teacher, tells how images relate between two depths.

Lee and Song, BMVC 2019, arXiv:1907.02226; code: sseung0703/KD_methods_with_TF (TensorFlow 1). The steps are in the
paper's order: compression and alignment (section 3.1), attention (3.2), transfer with clipped gradients (3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from runner.methods.distillation.adapters import width_adapters
from runner.methods.distillation.clipping import clipped_sum, rising_rate
from runner.methods.distillation.graph_attention import (
    GraphAttention,
    graph_divergence,
    require_graphs,
    squared_weights,
)
from runner.methods.distillation.pair import Pair
from runner.methods.distillation.singular_vectors import align, leading, right_vectors

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class MHGD:
    """Multi-head graph distillation: a frozen attention network sees the same graphs in both networks' vectors."""

    heads: Annotated[int, Field(gt=0)] = 8
    student_vectors: Annotated[int, Field(gt=0)] = 4  # of which the one nearest to the teacher's is taken
    distiller_epochs: Annotated[int, Field(gt=0)] = 40  # on the teacher, before the student's training
    weight: Annotated[float, Field(ge=0)] = 1.0  # of the transfer; its gradient is clipped to the task's
    stem: bool = False  # the points begin with the stem (the paper's drawing), not with the first stage (the code)

    paper: ClassVar[str] = "arXiv:1907.02226"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "How a teacher relates the images of a batch between two depths is knowledge for a student."
    citation: ClassVar[str] = "Lee and Song. Graph-based Knowledge Distillation by Multi-head Attention. BMVC 2019."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    distributed: ClassVar[bool] = False  # the graphs are over a whole batch, and so is the clip
    deviations: ClassVar[tuple[str, ...]] = (
        "the last stages are paired where one network has more of them",
        "where widths differ a 1x1 convolution and batch normalisation adapt the student's map",
        "the derivative of the vectors is the exact one, of nearly square maps too; the code's is twice a part or none",
        "heads=1: the head is never dropped (the code's rule would always drop it)",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_teacher (0..1, test) and loss (nats)."""
        pair = Pair(ctx, "activated", stem=self.stem)
        shapes = pair.student_shapes.maps, pair.teacher_shapes.maps
        require_graphs(shapes[0], len(ctx.data.train), ctx.recipe)
        widths = list(pairwise(maps.shape[1] for maps in shapes[1]))
        attention = ctx.initialised(
            "attention", lambda: nn.ModuleList(GraphAttention(*width, self.heads) for width in widths)
        )
        adapters = ctx.initialised("adapters", lambda: width_adapters(*shapes))

        def estimation(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            vectors = teacher_vectors(pair.teacher_features(images, index).maps)
            penalty = ctx.recipe.optimizer.weight_decay / 2 * squared_weights(attention)
            return estimation_loss(attention, vectors) + penalty

        pair.initialise(estimation, self.distiller_epochs, {"attention": attention}, student=False, name="distiller")
        attention.eval().requires_grad_(False)
        parameters = [*pair.student.parameters(), *adapters.parameters()]

        def loss(images: Tensor, labels: Tensor, index: Tensor, *, epoch: int) -> Tensor:
            student, teacher = pair(images, index)
            adapted = [part(maps) for part, maps in zip(adapters, student.maps, strict=True)]
            of_teacher = teacher_vectors(teacher.maps)
            of_student = student_vectors(adapted, of_teacher, self.student_vectors)
            transfer = self.weight * transfer_loss(attention, of_student, of_teacher)
            return clipped_sum(pair.task_loss(student, labels), [transfer], parameters, rising_rate(epoch))

        return pair.distil(loss, {"adapters": adapters})


def teacher_vectors(maps: Sequence[Tensor]) -> list[Tensor]:
    """Of each map (B, C, H, W) the first right singular vector (B, C), as the routine signs it, without gradient."""
    return [leading(item, 1, gram=True)[2][..., 0] for item in maps]


def student_vectors(maps: Sequence[Tensor], teacher: Sequence[Tensor], count: int) -> list[Tensor]:
    """Of each map's first ``count`` right singular vectors the one nearest to the teacher's, with its sign; (B, C)."""
    pairs = zip(maps, teacher, strict=True)
    return [align(right_vectors(s, count, gram=True), t[..., None])[..., 0] for s, t in pairs]


def estimation_loss(attention: Sequence[GraphAttention], vectors: Sequence[Tensor]) -> Tensor:
    """Stage 1: the sum over transitions of the mean of 1 - <vector, its estimate>; a scalar."""
    losses = [network.estimation_loss(*two) for network, two in zip(attention, pairwise(vectors), strict=True)]
    return torch.stack(losses).sum()


def transfer_loss(attention: Sequence[GraphAttention], student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Stage 2: the sum over transitions, heads and rows of the divergence of the graphs, the student's first."""
    found = zip(attention, pairwise(student), pairwise(teacher), strict=True)
    return torch.stack([graph_divergence(network(*s), network(*t)) for network, s, t in found]).sum()
