"""IEP: the steps by which a teacher embeds a batch, interpreted as messages between its images.

Lee and Song, AAAI 2021, arXiv:2104.13561; code: sseung0703/IEPKT (TensorFlow 1), which lacks its optimizer; that of
sseung0703/KD_methods_with_TF, the same authors', stands in. The steps of ``Distiller`` are in the paper's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from runner.evaluation import evaluating
from runner.methods.distillation.adapters import width_adapters
from runner.methods.distillation.clipping import clipped_sum, rising_rate
from runner.methods.distillation.graph_attention import (
    GraphAttention,
    graph_divergence,
    require_graphs,
    row_divergence,
    squared_weights,
)
from runner.methods.distillation.message_passing import MessagePassing, affinity
from runner.methods.distillation.pair import Pair
from runner.methods.distillation.singular_vectors import project
from runner.methods.distillation.stacked_pca import BatchPCA, IncrementalPCA, first_axes, sphere_to_plane

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class IEP:
    """Interpretable embedding procedure: messages between images that turn one depth's affinity into the next one's."""

    message_weight: Annotated[float, Field(ge=0)] = 1.0  # K_alt: how the teacher alters the affinity; 0 leaves it out
    affinity_weight: Annotated[float, Field(ge=0)] = 1.0  # K_int: the affinity that it predicts
    black_box_weight: Annotated[float, Field(ge=0)] = 1.0  # K_BB: attention beside it; 0: the paper's plain IEP
    iterations: Annotated[int, Field(gt=0)] = 2  # of message passing
    heads: Annotated[int, Field(ge=2)] = 8  # of the black box, one of them the messages
    projection: Literal["incremental", "batch"] = "incremental"  # the second PCA: over batches, or of each alone
    distiller_epochs: Annotated[int, Field(gt=0)] = 20  # on the teacher, before the student's training

    paper: ClassVar[str] = "arXiv:2104.13561"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "How a teacher embeds a batch, step by step, teaches a student most when images are scarce."
    citation: ClassVar[str] = (
        "Lee and Song. Interpretable Embedding Procedure Knowledge Transfer via Stacked Principal Component Analysis "
        "and Graph Neural Network. AAAI 2021."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    distributed: ClassVar[bool] = False  # the graphs are over a whole batch, and so is the clip
    deviations: ClassVar[tuple[str, ...]] = (
        "the released code lacks its optimizer and its loader: clip, rate and penalty are those of MHGD's code",
        "a step's projections are those from before its update; the code leaves the order open",
        "no dropout in the student's blocks (the code keeps 0.7 of 32x32 maps)",
        "no stem of 7x7 with stride 2 for images of 64x64 (the code's)",
        "where widths differ a 1x1 convolution and batch normalisation adapt the student's map; where sizes differ the "
        "larger map is pooled (the code needs equal ones)",
        "projection=batch: the axes of every batch of the teacher serve the student too (the paper does not say)",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_teacher (0..1, test) and loss (nats)."""
        pair = Pair(ctx, "activated")
        shapes = pair.student_shapes.maps, pair.teacher_shapes.maps
        require_graphs(shapes[0], len(ctx.data.train), ctx.recipe)
        distiller = ctx.initialised("distiller", lambda: Distiller(self, *shapes))
        adapters = ctx.initialised("adapters", lambda: width_adapters(*shapes))

        def imitation(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            penalty = ctx.recipe.optimizer.weight_decay / 2 * squared_weights(distiller)
            return distiller.teacher_loss(pair.teacher_features(images, index).maps) + penalty

        pair.initialise(imitation, self.distiller_epochs, {"distiller": distiller}, student=False, name="distiller")
        distiller.eval().requires_grad_(False)
        parameters = [*pair.student.parameters(), *adapters.parameters()]

        def loss(images: Tensor, labels: Tensor, index: Tensor, *, epoch: int) -> Tensor:
            student, teacher = pair(images, index)
            adapted = [part(maps) for part, maps in zip(adapters, student.maps, strict=True)]
            transfers = distiller.transfer_losses(adapted, teacher.maps)
            return clipped_sum(pair.task_loss(student, labels), transfers, parameters, rising_rate(epoch))

        return pair.distil(loss, {"adapters": adapters})


class Distiller(nn.Module):
    """What is learnt from the teacher alone: axes at each point, and between points the passing of messages.

    Args:
        settings: of the method.
        student, teacher: maps (B, C, H, W) at the points, for their shapes.
    """

    def __init__(self, settings: IEP, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
        super().__init__()
        self.settings = settings
        self.sides = [min(s.shape[2], t.shape[2]) for s, t in zip(student, teacher, strict=True)]
        kind = IncrementalPCA if settings.projection == "incremental" else BatchPCA
        self.projections = nn.ModuleList(kind(maps.shape[1]) for maps in teacher)
        widths = list(pairwise(projection.count for projection in self.projections))
        self.messages = nn.ModuleList(MessagePassing(*width, settings.iterations) for width in widths)
        self.attention = nn.ModuleList()
        if settings.black_box_weight:
            self.attention.extend(GraphAttention(*width, settings.heads - 1, extrinsic=True) for width in widths)

    def teacher_loss(self, maps: Sequence[Tensor]) -> Tensor:
        """Stage A, a scalar: how far the predicted affinities are from the teacher's, plus the black box's estimates
        from its codes."""
        codes = []
        for projection, item in zip(self.projections, self._pooled(maps), strict=True):
            codes.append(projection.observe(sphere_to_plane(first_axes(item)[1])))
        total = codes[0].new_zeros(())
        for number, (front, back) in enumerate(pairwise(codes)):
            network = self.messages[number]
            total = total + row_divergence(affinity(back), network(front, back)[0])
            if self.attention:
                with evaluating(network):
                    extrinsic = network.relation(network(front, back)[1])
                total = total + self.attention[number].estimation_loss(front, back, extrinsic)
        return total

    def transfer_losses(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Tensor]:
        """Stage B: the weighted losses that are in use, each a scalar summed over transitions.

        K_alt: mean over pairs of images of the absolute differences of their messages, summed over their entries;
        K_int: divergence of the predicted affinities, the teacher's first; K_BB: of the attention, the student's first.
        """
        of_student, of_teacher = self._codes(student, teacher)
        settings = self.settings
        alterations, integrations, black_boxes = [], [], []
        for number, (s, t) in enumerate(zip(pairwise(of_student), pairwise(of_teacher), strict=True)):
            if settings.message_weight or settings.affinity_weight:
                (s_affinity, s_messages), (t_affinity, t_messages) = (
                    self.messages[number](*s),
                    self.messages[number](*t),
                )
                alterations.append((s_messages - t_messages).abs().sum(-1).mean())
                integrations.append(row_divergence(t_affinity, s_affinity))
            if settings.black_box_weight:
                black_boxes.append(graph_divergence(self.attention[number](*s), self.attention[number](*t)))
        terms = [
            (settings.message_weight, alterations),
            (settings.affinity_weight, integrations),
            (settings.black_box_weight, black_boxes),
        ]
        return [weight * torch.stack(losses).sum() for weight, losses in terms if weight]

    def _codes(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Codes (B, D/2) of both at every point. The student's map is weighted by where the teacher's first vector is;
        so no derivative of singular vectors is needed."""
        of_student, of_teacher = [], []
        maps = zip(self.projections, self._pooled(student), self._pooled(teacher), strict=True)
        for projection, s, t in maps:
            left, right = first_axes(t)
            of_teacher.append(projection.observe(sphere_to_plane(right)))
            of_student.append(projection(sphere_to_plane(project(s, left[..., None])[..., 0])))
        return of_student, of_teacher

    def _pooled(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [
            adaptive_avg_pool2d(item, side) if item.shape[2] > side else item
            for item, side in zip(maps, self.sides, strict=True)
        ]
