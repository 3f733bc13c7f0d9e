"""Prototypical networks: a class is the mean of its support features, a query goes to the nearest.

Snell, Swersky and Zemel, NeurIPS 2017, arXiv:1703.05175 (equations 1 and 2, algorithm 1).
Official code: jakesnell/prototypical-networks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.methods.fewshot.gradient_learner import query_accuracy
from runner.methods.fewshot.inner_loop import head_module, task_loss, use_batch_statistics
from runner.methods.fewshot.meta_training import MetaTraining, meta_learn

if TYPE_CHECKING:
    from runner.context import Context


@dataclass(kw_only=True)
class ProtoNet:
    """Classification by the distance to the mean features of each class; nothing is adapted."""

    training: MetaTraining = field(default_factory=MetaTraining)

    paper: ClassVar[str] = "arXiv:1703.05175"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "A metric learned over tasks, with means as classes, does without any adaptation."
    data: ClassVar[tuple[str, ...]] = ("episodes",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = "Snell, Swersky, Zemel. Prototypical Networks for Few-shot Learning. NeurIPS 2017."
    deviations: ClassVar[tuple[str, ...]] = (
        "a fixed 20,000 tasks; the paper trains until the validation loss stops falling",
        "batch normalisation by the statistics of the task's support and query images together, in the test too",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns what ``meta_learn`` returns."""
        tasks = ctx.data.settings
        learner = Prototypes(ctx.model(), tasks.train_ways or tasks.ways, tasks.ways)
        return meta_learn(ctx, learner, self.training, outer=learner.outer, predict=learner.predict)


class Prototypes(nn.Module):
    """The features of ``network``, whose head is left out; the numbers of classes of training and test tasks."""

    def __init__(self, network: nn.Module, train_ways: int, ways: int) -> None:
        super().__init__()
        self.network = use_batch_statistics(network)
        parent, _, name = head_module(network).rpartition(".")
        setattr(network.get_submodule(parent), name, nn.Identity())
        self.train_ways, self.ways = train_ways, ways

    def logits(self, support: Tensor, support_targets: Tensor, query: Tensor, ways: int) -> Tensor:
        features, queries = self.network(torch.cat([support, query])).split([len(support), len(query)])
        return prototype_logits(features, support_targets, queries, ways)

    def predict(self, support: Tensor, support_targets: Tensor, query: Tensor) -> Tensor:
        return self.logits(support, support_targets, query, self.ways)

    def outer(
        self, support: Tensor, support_targets: Tensor, query: Tensor, query_targets: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        outputs = self.logits(support, support_targets, query, self.train_ways)
        return {"loss": task_loss(outputs, query_targets), **query_accuracy(outputs, query_targets)}


def prototype_logits(support: Tensor, targets: Tensor, query: Tensor, ways: int) -> Tensor:
    """Minus the squared distances (Q, ways) of query features (Q, D) to the mean support features of each class.

    Args:
        support: features (S, D); a class without an example (which ``linear_tasks`` may draw) is at the origin.
        targets: their classes (S,) int64.
    """
    members = F.one_hot(targets, ways).to(support.dtype)
    means = members.T @ support / members.sum(0).clamp(min=1)[:, None]
    return -(query[:, None] - means).square().sum(2)
