"""Shadow knowledge distillation: a light head on the frozen teacher and the student teach each other.

Li and Jin, "Shadow Knowledge Distillation: Bridging Offline and Online Knowledge Transfer", NeurIPS 2022
(OpenReview prQT0gN81oG). Official code: lliai/SHAKE. ``shadow=teacher`` is the released code's, ``shadow=student`` that
of the text submitted for review. Deviations: see the class."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from runner.evaluation import evaluating
from runner.methods.distillation.losses import kl_divergence
from runner.methods.distillation.pair import Pair
from runner.models.weights import head_of

if TYPE_CHECKING:
    from runner.context import Context
    from runner.methods.distillation.features import Features

SCALE = 3.1415  # of standardised logits, the released code's
EPSILON = 1e-7
Weight = Annotated[float, Field(ge=0)]


@dataclass(kw_only=True)
class SHAKE:
    """Mutual distillation of the student and a shadow of the teacher."""

    shadow: Literal["teacher", "student", "whole_teacher", "none"] = "teacher"  # what the shadow's logits come from
    standardise: bool = True  # logits of mean 0 and one variance, for every loss
    temperature: Annotated[float, Field(gt=0)] = 4.0
    labels_weight: Weight = 1.0  # of the student's cross-entropy
    teacher_weight: Weight = 0.0  # of the divergence from the teacher to the student
    weight: Weight = 1.0  # of the divergence from the shadow to the student
    reversed_weight: Weight = 1.0  # of the divergence from the student to the shadow
    shadow_labels_weight: Weight = 1.0  # of the shadow's cross-entropy
    shadow_imitation_weight: Weight = 1.0  # of the squared difference of the shadow's logits to the teacher's
    shadow_teacher_weight: Weight = 0.0  # of the divergence from the teacher to the shadow

    paper: ClassVar[str] = "OpenReview prQT0gN81oG"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "The student's answer to its teacher is what makes online distillation better than offline."
    citation: ClassVar[str] = (
        "Li and Jin. Shadow Knowledge Distillation: Bridging Offline and Online Knowledge Transfer. NeurIPS 2022."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    deviations: ClassVar[tuple[str, ...]] = (
        "the shadow joins the last three stages of any teacher, by the ratio of their sizes; the released head takes "
        "the first three of a VGG's four",
        "accuracy and loss on the test images are of the student's own logits; standardising them leaves accuracy as "
        "it is",
        "shadow=whole_teacher is KD+ (the teacher goes on learning, from the student that it teaches); its recipe is "
        "not in the released code",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_teacher (0..1, test), loss (nats) and divergence_from_teacher: of the student's
        from the teacher's probabilities after standardisation, nats a test image."""
        pair = Pair(ctx, "output")
        shadow = self._shadow(ctx, pair)

        def loss(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            student, teacher = pair(images, index)
            s, t = self._scaled(student.logits), self._scaled(teacher.logits)
            total = self.labels_weight * self._task(ctx, s, labels) + self.teacher_weight * self.divergence(s, t)
            if shadow is None:
                return total
            h = self._scaled(self._shadow_logits(shadow, images, student, teacher))
            return total + self.mutual(s, h, t) + self.shadow_labels_weight * self._task(ctx, h, labels)

        metrics = pair.distil(loss, {} if shadow is None else {"shadow": shadow})
        metrics["divergence_from_teacher"] = ctx.once("divergence", lambda: _gap(ctx, pair))
        return metrics

    def divergence(self, s: Tensor, t: Tensor) -> Tensor:
        """T^2 KL(softmax(t / T) || softmax(s / T)), mean over the batch; t teaches and is a constant."""
        return self.temperature**2 * kl_divergence(s, t.detach(), self.temperature)

    def mutual(self, s: Tensor, h: Tensor, t: Tensor) -> Tensor:
        """The losses between logits (B, classes) of student, shadow and teacher; a scalar."""
        terms = (
            (self.weight, lambda: self.divergence(s, h)),
            (self.reversed_weight, lambda: self.divergence(h, s)),
            (self.shadow_imitation_weight, lambda: mse_loss(h, t.detach())),
            (self.shadow_teacher_weight, lambda: self.divergence(h, t)),
        )
        return sum((weight * term() for weight, term in terms if weight), s.new_zeros(()))

    def _scaled(self, logits: Tensor) -> Tensor:
        return standardised(logits) if self.standardise else logits

    def _task(self, ctx: Context, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, label_smoothing=ctx.recipe.label_smoothing)

    def _shadow(self, ctx: Context, pair: Pair) -> nn.Module | None:
        if self.shadow == "student":
            width, classes = pair.student_shapes.embedding.shape[1], pair.student_shapes.logits.shape[1]
            pair.require_same_classes()
            return ctx.initialised("shadow", lambda: nn.Linear(width, classes))
        made = None
        if self.shadow == "teacher":
            shapes = pair.teacher_shapes
            made = ctx.initialised("shadow", lambda: TeacherShadow(shapes.maps, shapes.embedding.shape[1]))
        pair.require_same_classes()
        if self.shadow == "teacher":
            made.classify = [pair.teacher.get_submodule(head_of(pair.teacher))]
        if self.shadow == "whole_teacher":
            made = copy.deepcopy(pair.teacher).requires_grad_(True).train()
        return made

    def _shadow_logits(self, shadow: nn.Module, images: Tensor, student: Features, teacher: Features) -> Tensor:
        if self.shadow == "teacher":
            return shadow(teacher.maps).float()
        if self.shadow == "student":
            return shadow(student.embedding).float()
        return shadow(images).float()


class TeacherShadow(nn.Module):
    """Joins the teacher's last three maps from fine to coarse; the teacher's own frozen classifier ends it.

    Args:
        maps: (B, C, H, W) of the stages, for their shapes.
        width: the classifier's input.
    """

    def __init__(self, maps: Sequence[Tensor], width: int) -> None:
        super().__init__()
        shapes = [item.shape for item in maps[-3:]]
        self.down = nn.ModuleList(
            block(before[1], after[1], 3, max(before[2] // after[2], 1)) for before, after in pairwise(shapes)
        )
        self.side = nn.ModuleList(block(shape[1], shape[1], 1, 1) for shape in shapes[1:])
        self.last = block(shapes[-1][1], width, 3, 1)
        self.classify: list[nn.Module] = []  # a list, so that the teacher's classifier is no part of this module

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, classes)."""
        joined, *others = maps[-3:]
        for down, side, maps_here in zip(self.down, self.side, others, strict=True):
            joined = down(joined) + side(maps_here)
        return self.classify[0](self.last(joined).mean((2, 3)))


def block(in_channels: int, out_channels: int, size: int, stride: int) -> nn.Sequential:
    """Convolution without bias, batch normalisation and ReLU; He initialisation over the outputs."""
    convolution = nn.Conv2d(in_channels, out_channels, size, stride, size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def standardised(logits: Tensor) -> Tensor:
    """Logits (B, classes) of mean 0 and standard deviation 3.1415 over the classes, each row for itself."""
    return SCALE * F.layer_norm(logits, logits.shape[1:], eps=EPSILON)


def _gap(ctx: Context, pair: Pair) -> float:
    total, count = 0.0, 0
    with torch.no_grad(), ctx.autocast(), evaluating(pair.student):
        batches = ctx.batches("test", ctx.recipe.evaluation_batch_size, shuffle=False, augment=False)
        for images, *_ in batches.iterate(0):
            s, t = (standardised(network(images).float()) for network in (pair.student, pair.teacher))
            total += float(kl_divergence(s, t)) * len(images)
            count += len(images)
    return total / count
