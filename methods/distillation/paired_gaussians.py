"""Generated pairs of modalities: Gaussian columns, some of which decide the label and are seen by one or by both.

Xue et al., ICLR 2023, arXiv:2206.06487, appendix, and the released code (zihuixue/MFH, gauss/)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Experiment = Literal["teachers", "vary_gamma", "vary_alpha"]


class Pairs(NamedTuple):
    """teacher (n, width) and student (n, width) inputs float32, labels (n,) int64, 0 or 1."""

    teacher: Tensor
    student: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Layout:
    """Which of the columns that decide the label stand in a modality, each at its own place; noise fills the rest."""

    decisive: int  # columns of x_s, standard normal; the label is [<a, x_s> > 0]
    teacher: range  # of them, in the teacher's modality
    student: range
    teacher_width: int  # columns of the modality
    student_width: int
    hyperplane: Literal["ones", "normal"]  # a, drawn once

    @property
    def shared(self) -> int:
        """Decisive columns that both modalities have."""
        return len(set(self.teacher) & set(self.student))

    @property
    def gamma(self) -> float:
        """The share of what both see in the decisive columns that either sees; section 3 of the paper."""
        return self.shared / len(set(self.teacher) | set(self.student))

    def draw_hyperplane(self) -> Tensor:
        """a, (decisive,)."""
        return torch.ones(self.decisive) if self.hyperplane == "ones" else torch.randn(self.decisive)

    def draw(self, hyperplane: Tensor, count: int) -> Pairs:
        """``count`` pairs from torch's generator."""
        columns = torch.randn(count, self.decisive)
        teacher, student = torch.randn(count, self.teacher_width), torch.randn(count, self.student_width)
        for inputs, seen in ((teacher, self.teacher), (student, self.student)):
            inputs[:, seen.start : seen.stop] = columns[:, seen.start : seen.stop]
        return Pairs(teacher, student, (columns @ hyperplane > 0).long())


LARGEST = {"teachers": 40, "vary_gamma": 10, "vary_alpha": 40}  # of the number that an experiment varies


def layout_of(experiment: Experiment, varied: int) -> Layout:
    """An experiment of the paper at one point.

    teachers: ``varied`` shared columns, 10 of the teacher's alone (table 2); vary_gamma: of 10 decisive columns of each
    modality ``varied`` are shared (figure 2); vary_alpha: 10 shared, ``varied`` of the teacher's alone, of 50 that
    decide (figure 3).
    """
    if experiment == "teachers":
        return Layout(10 + varied, range(10 + varied), range(varied), 50, 50, "ones")
    if experiment == "vary_gamma":
        return Layout(20, range(10 - varied, 20 - varied), range(10), 25, 50, "normal")
    return Layout(50, range(10 + varied), range(10), 50, 50, "normal")
