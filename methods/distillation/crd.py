"""Contrastive representation distillation: one image's two embeddings agree, and differ from those of others.

Tian, Krishnan and Isola 2020, arXiv:1910.10699, eq. 10-19; HobbitLong/RepDistiller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import normalize

from runner.methods.distillation.memory_bank import MemoryBank, NegativeSampler, contrast
from runner.methods.distillation.pair import Pair

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class CRD:
    """Contrastive representation distillation with two memory banks."""

    code_base: Literal["rep"] = "rep"  # the only one that has it
    weight: Annotated[float, Field(ge=0)] = 0.8
    width: Annotated[int, Field(gt=0)] = 128  # of the embeddings
    negatives: Annotated[int, Field(gt=0)] = 16384  # K, images of other classes for each image
    temperature: Annotated[float, Field(gt=0)] = 0.07
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5  # of the memory banks

    paper: ClassVar[str] = "arXiv:1910.10699"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "Distilling the structure of the representation by contrast beats thirteen earlier methods."
    citation: ClassVar[str] = "Tian, Krishnan and Isola. Contrastive Representation Distillation. ICLR 2020."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = False
    distributed: ClassVar[bool] = False  # one memory for all images
    deviations: ClassVar[tuple[str, ...]] = (
        "negatives are drawn with replacement; the code draws without where there are enough",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_teacher (0..1, test) and loss (nats)."""
        pair = Pair(ctx)
        count = len(ctx.data.train)
        widths = [shapes.embedding.shape[1] for shapes in (pair.student_shapes, pair.teacher_shapes)]
        embed = ctx.initialised("embeddings", lambda: nn.ModuleList(nn.Linear(width, self.width) for width in widths))
        banks = ctx.initialised(
            "banks", lambda: nn.ModuleList(MemoryBank(count, self.width, self.momentum) for _ in widths)
        )
        sampler = NegativeSampler(ctx.data.train.labels)

        def loss(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            student, teacher = pair(images, index)
            s, t = normalize(embed[0](student.embedding)), normalize(embed[1](teacher.embedding))
            rows = torch.cat([index[:, None], sampler.draw(labels, self.negatives)], 1)
            by_teacher = contrast(banks[0].scores(t, rows, self.temperature), count)  # the anchor is the teacher's
            by_student = contrast(banks[1].scores(s, rows, self.temperature), count)
            banks[0].update(s.detach(), index)
            banks[1].update(t.detach(), index)
            return pair.task_loss(student, labels) + self.weight * (by_student + by_teacher)

        return pair.distil(loss, {"embeddings": embed, "banks": banks})
