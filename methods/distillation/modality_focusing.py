"""The modality focusing hypothesis: a teacher helps by what decides the label and the student's modality shows too.

Xue, Gao, Ren and Zhao, "The Modality Focusing Hypothesis: Towards Understanding Crossmodal Knowledge Distillation",
ICLR 2023, arXiv:2206.06487. Official code: zihuixue/MFH. The generated experiments of section 3.2 and table 2;
algorithm 1 ranks the teacher's columns. Deviations: see the class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from runner.methods.distillation.losses import kl_divergence
from runner.methods.distillation.paired_gaussians import LARGEST, Experiment, Pairs, layout_of

if TYPE_CHECKING:
    from runner.context import Context

CLASSES = 2
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


@dataclass(kw_only=True)
class ModalityFocusing:
    """Distillation across generated modalities, from a whole teacher and from one that keeps the shared columns."""

    experiment: Experiment = "teachers"  # teachers (table 2) | vary_gamma (figure 2) | vary_alpha (figure 3)
    varied: Annotated[int, Field(ge=0)] = 10  # shared columns; vary_alpha: those that the teacher alone sees
    train_size: Positive = 200
    test_size: Positive = 1000
    steps: Positive = 1000  # of every training, over all examples at once
    learning_rate: Rate = 0.1
    labels_weight: Weight = 1.0  # of the student's cross-entropy
    weight: Weight = 1.0  # of the divergence, a mean over examples and classes
    joint_learning_rate: Rate = 0.01  # algorithm 1
    joint_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    distance_weight: Weight = 1.0  # of the squared difference of logits in the joint training
    permutations: Positive = 100  # of every column

    paper: ClassVar[str] = "arXiv:2206.06487"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "Across modalities a less accurate teacher that relies on what both modalities show teaches better."
    )
    citation: ClassVar[str] = (
        "Xue, Gao, Ren and Zhao. The Modality Focusing Hypothesis: Towards Understanding Crossmodal Knowledge "
        "Distillation. ICLR 2023."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    deviations: ClassVar[tuple[str, ...]] = (
        "dataset, model and recipe play no part: data are generated, networks are linear",
        "the regular teacher's student sees the student's modality; the released call has the inputs exchanged, which "
        "is measured beside it as accuracy_regular_exchanged",
        "random columns are drawn without replacement, in the released code with it",
        "random streams are not those of the released code, so that numbers agree over seeds, not seed by seed",
        "the experiments on RAVDESS, VGGSound, NYU Depth, AV-MNIST and MM-IMDB are left out",
    )

    def __post_init__(self) -> None:
        smallest, largest = int(self.experiment == "teachers"), LARGEST[self.experiment]
        if not smallest <= self.varied <= largest:
            raise ValueError(f"varied: experiment={self.experiment} takes {smallest} to {largest}, not {self.varied}")

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns gamma (0..1) and test accuracies (0..1): accuracy_teacher, accuracy_alone (the student without a
        teacher), accuracy_regular (its student by that teacher). Experiment teachers: also accuracy_regular_exchanged;
        accuracy_teacher_general, _random and _true, of teachers with the columns that algorithm 1, chance or the
        generator names; accuracy_general, _random and _true, of their students; and hit_rate, the share of shared
        columns among those of algorithm 1."""
        layout = layout_of(self.experiment, self.varied)
        ctx.say(
            f"generated data: {self.train_size} train, {self.test_size} test, {layout.shared} decisive columns in both "
            f"modalities, gamma {layout.gamma:.2f}"
        )

        def draw() -> dict[str, list[Tensor]]:
            hyperplane = layout.draw_hyperplane()
            sizes = {"first": self.train_size, "test": self.test_size, "second": self.train_size}
            return {name: list(layout.draw(hyperplane, count)) for name, count in sizes.items()}

        drawn = ctx.once("draw", draw)
        first, test, second = (
            Pairs(*(item.to(ctx.device) for item in drawn[name])) for name in ("first", "test", "second")
        )
        teachers = self.experiment == "teachers"
        train = second if teachers else first  # table 2 teaches on other examples than the regular teacher saw

        teacher = self._fit(ctx, "teacher", first.teacher, first.labels)
        regular = self._fit(ctx, "student regular", train.student, train.labels, teacher(train.teacher))
        alone = self._fit(ctx, "student alone", train.student, train.labels)
        found = {
            "gamma": layout.gamma,
            "accuracy_teacher": accuracy(teacher(test.teacher), test.labels),
            "accuracy_alone": accuracy(alone(test.student), test.labels),
            "accuracy_regular": accuracy(regular(test.student), test.labels),
        }
        if not teachers:
            ctx.log(**found)
            return found

        exchanged = self._fit(ctx, "student exchanged", train.teacher, train.labels, teacher(train.student))
        found["accuracy_regular_exchanged"] = accuracy(exchanged(test.student), test.labels)
        scores = self._rank(ctx, first)
        kept = {
            "general": scores.argsort(descending=True, stable=True)[: layout.shared],
            "random": ctx.once("random columns", lambda: torch.randperm(layout.teacher_width)[: layout.shared]),
            "true": torch.arange(layout.shared),
        }
        for name, columns in kept.items():
            columns = columns.to(ctx.device)
            focused = self._fit(ctx, f"teacher {name}", train.teacher[:, columns], train.labels)
            targets = focused(train.teacher[:, columns])
            student = self._fit(ctx, f"student {name}", train.student, train.labels, targets)
            found[f"accuracy_teacher_{name}"] = accuracy(focused(test.teacher[:, columns]), test.labels)
            found[f"accuracy_{name}"] = accuracy(student(test.student), test.labels)
        found["hit_rate"] = float((kept["general"] < layout.shared).double().mean())
        ctx.log(**found)
        return found

    def _fit(self, ctx: Context, name: str, inputs: Tensor, labels: Tensor, targets: Tensor | None = None) -> nn.Linear:
        """A linear classifier by the labels (n,), and by a teacher's logits ``targets`` (n, classes)."""
        model = ctx.initialised(name, lambda: nn.Linear(inputs.shape[1], CLASSES))
        targets = None if targets is None else targets.detach()

        def loss() -> Tensor:
            logits = model(inputs)
            task = cross_entropy(logits, labels)
            if targets is None:
                return task
            return self.labels_weight * task + self.weight * kl_divergence(logits, targets) / CLASSES

        return self._descend(ctx, name, model, loss, torch.optim.SGD(model.parameters(), self.learning_rate))

    def _rank(self, ctx: Context, pairs: Pairs) -> Tensor:
        """Algorithm 1: two networks agree on what both see, then each of the teacher's columns is permuted."""
        both = ctx.initialised(
            "joint",
            lambda: nn.ModuleList(nn.Linear(inputs.shape[1], CLASSES) for inputs in (pairs.teacher, pairs.student)),
        )

        def loss() -> Tensor:
            t, s = both[0](pairs.teacher), both[1](pairs.student)
            return (
                cross_entropy(t, pairs.labels) + cross_entropy(s, pairs.labels) + self.distance_weight * mse_loss(t, s)
            )

        optimizer = torch.optim.SGD(both.parameters(), self.joint_learning_rate, momentum=self.joint_momentum)
        self._descend(ctx, "joint", both, loss, optimizer)

        def score() -> Tensor:
            with torch.no_grad():
                repeats = min(self.permutations, ctx.scale.max_steps or self.permutations)
                return permutation_scores(both[0], pairs.teacher, both[1](pairs.student), repeats).cpu()

        return ctx.once("scores", score)

    def _descend(
        self,
        ctx: Context,
        name: str,
        model: nn.Module,
        loss: Callable[[], Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> nn.Module:
        ctx.track(model=model, optimizer=optimizer)
        for _ in ctx.loop(name, self.steps):
            value = loss()
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            ctx.log(loss=value.detach())
        return model.requires_grad_(False)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of right predictions, 0..1; logits (n, classes), labels (n,)."""
    return float((logits.argmax(1) == labels).double().mean())


def permutation_scores(head: Callable[[Tensor], Tensor], features: Tensor, reference: Tensor, repeats: int) -> Tensor:
    """How far a head's logits go from ``reference`` when a channel is permuted over the batch; algorithm 1.

    Args:
        head: (N, C) to logits (N, K).
        features: (B, C).
        reference: (B, K), logits of the other network for the same examples.
        repeats: permutations of each channel.

    Returns:
        (C,): the mean squared difference, averaged over the permutations and scaled to 0..1 over the channels; large
        where the channel carries what both networks use.
    """
    size, channels = features.shape
    every = torch.arange(channels, device=features.device)
    total = torch.zeros(channels, device=features.device)
    for _ in range(repeats):
        order = torch.rand(channels, size).argsort(1).to(features.device)
        permuted = features.expand(channels, size, channels).clone()
        permuted[every, :, every] = features.T.gather(1, order)
        logits = head(permuted.flatten(0, 1)).view(channels, size, -1)
        total += (logits - reference).square().mean((1, 2))
    return min_max(total / repeats)


def min_max(scores: Tensor) -> Tensor:
    """Scaled to 0..1; zeros where all are equal."""
    return (scores - scores.min()) / (scores.max() - scores.min()).clamp_min(torch.finfo(scores.dtype).tiny)
