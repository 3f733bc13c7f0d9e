"""Almost no inner loop: only the head is adapted, on features that are computed once.

Raghu, Raghu, Bengio and Vinyals, "Rapid Learning or Feature Reuse?", ICLR 2020, arXiv:1909.09157 (section 4; NIL:
section 5.1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from runner.errors import UserError
from runner.methods.fewshot.gradient_learner import query_accuracy
from runner.methods.fewshot.inner_loop import Weights, adapt, head_module, task_loss, use_batch_statistics
from runner.methods.fewshot.meta_training import MetaTraining, meta_learn

if TYPE_CHECKING:
    from runner.context import Context


@dataclass(kw_only=True)
class ANIL:
    """MAML whose inner steps change the last linear layer alone."""

    rate: Annotated[float, Field(gt=0)] = 0.01  # of the inner steps
    steps: Annotated[int, Field(gt=0)] = 5
    test_steps: Annotated[int, Field(gt=0)] | None = 10  # null: steps
    first_order: bool = False
    test_head: Literal["adapted", "class_means"] = "adapted"  # class_means: NIL, cosine to the mean support features
    training: MetaTraining = field(default_factory=MetaTraining)

    paper: ClassVar[str] = "arXiv:1909.09157"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "MAML's features hardly change in the inner loop: adapting the head alone does as well."
    data: ClassVar[tuple[str, ...]] = ("episodes", "regression episodes")
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Raghu, Raghu, Bengio, Vinyals. Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of "
        "MAML. ICLR 2020."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "support and query features are computed once a task, in one batch for batch normalisation",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns what ``meta_learn`` returns."""
        if self.test_head == "class_means" and ctx.data.kind != "episodes":
            raise UserError("method.test_head=class_means: regression has no classes; set method.test_head=adapted")
        learner = HeadLearner(ctx.model(), self, ctx.data.num_classes)
        return meta_learn(ctx, learner, self.training, outer=learner.outer, predict=learner.predict)


class HeadLearner(nn.Module):
    """``body`` computes the features, ``head`` is adapted."""

    def __init__(self, network: nn.Module, settings: ANIL, ways: int) -> None:
        super().__init__()
        place = head_module(network)
        parent, _, name = place.rpartition(".")
        self.head = network.get_submodule(place)
        setattr(network.get_submodule(parent), name, nn.Identity())
        self.body = use_batch_statistics(network)
        self.settings, self.ways = settings, ways

    def features(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.body(torch.cat([support, query])).split([len(support), len(query)])
        return first, second

    def adapted_head(self, features: Tensor, targets: Tensor, steps: int) -> Weights:
        def loss(weights: Weights, step: int) -> Tensor:
            return task_loss(linear(weights, features), targets)

        weights = dict(self.head.named_parameters())
        return adapt(loss, weights, steps=steps, rate=self.settings.rate, first_order=self.settings.first_order)

    def outer(
        self, support: Tensor, support_targets: Tensor, query: Tensor, query_targets: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        features, queries = self.features(support, query)
        outputs = linear(self.adapted_head(features, support_targets, self.settings.steps), queries)
        return {"loss": task_loss(outputs, query_targets), **query_accuracy(outputs, query_targets)}

    def predict(self, support: Tensor, support_targets: Tensor, query: Tensor) -> Tensor:
        features, queries = self.features(support, query)
        if self.settings.test_head == "class_means":
            return class_mean_logits(features, support_targets, queries, self.ways)
        steps = self.settings.test_steps or self.settings.steps
        return linear(self.adapted_head(features, support_targets, steps), queries)


def linear(weights: Weights, features: Tensor) -> Tensor:
    """(B, D) -> (B, classes) by the adapted head."""
    return F.linear(features, weights["weight"], weights.get("bias"))


def class_mean_logits(support: Tensor, targets: Tensor, query: Tensor, ways: int) -> Tensor:
    """The test without a head (NIL): sums over the support examples of each class of their cosines to the queries
    (Q, D); (Q, ways)."""
    cosines = F.normalize(query, dim=1) @ F.normalize(support, dim=1).T
    return cosines @ F.one_hot(targets, ways).to(cosines.dtype)
