"""Meta-SGD: initial weights and a learned rate for each of them.

Li, Zhou, Chen and Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", arXiv:1707.09835 (equation 4,
algorithm 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from runner.methods.fewshot.gradient_learner import GradientLearner
from runner.methods.fewshot.inner_loop import Transform, Weights
from runner.methods.fewshot.meta_training import Group, MetaTraining, meta_learn

if TYPE_CHECKING:
    from runner.context import Context


@dataclass(kw_only=True)
class MetaSGD:
    """MAML with a learned rate, of any sign, for every element of every weight."""

    rate: Annotated[float, Field(gt=0)] = 0.01  # at which all rates start
    rates_learning_rate: Annotated[float, Field(gt=0)] | None = None  # of the rates, outside; null: the recipe's
    steps: Annotated[int, Field(gt=0)] = 1
    test_steps: Annotated[int, Field(gt=0)] | None = None  # null: steps
    adapt_norm: bool = True  # scales and shifts of batch normalisation too
    first_order: bool = False
    training: MetaTraining = field(default_factory=MetaTraining)

    paper: ClassVar[str] = "arXiv:1707.09835"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "Learning the direction and rate of each inner step beats one rate for all weights."
    data: ClassVar[tuple[str, ...]] = ("episodes", "regression episodes")
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = "Li, Zhou, Chen, Li. Meta-SGD: Learning to Learn Quickly for Few-Shot Learning. 2017."
    deviations: ClassVar[tuple[str, ...]] = (
        "all rates start at one number; the paper draws them from an interval that it tunes",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns what ``meta_learn`` returns."""
        learner = MetaSGDLearner(
            ctx.model(),
            self.rate,
            steps=self.steps,
            test_steps=self.test_steps,
            adapt_norm=self.adapt_norm,
            first_order=self.first_order,
        )
        groups = [] if self.rates_learning_rate is None else [Group(list(learner.rates), self.rates_learning_rate)]
        return meta_learn(ctx, learner, self.training, outer=learner.outer, predict=learner.predict, groups=groups)


class MetaSGDLearner(GradientLearner):
    """The meta-parameters: initial weights, and ``rates`` of their shapes in the order of ``adapted_names``."""

    def __init__(self, network: nn.Module, rate: float, **settings) -> None:
        super().__init__(network, rate=None, **settings)
        self.rates = nn.ParameterList(
            torch.full_like(network.get_parameter(name).detach(), rate) for name in self.adapted_names
        )

    def hooks(self, support: Tensor, support_targets: Tensor) -> tuple[Transform | None, Transform | None]:
        def with_rates(gradients: Weights, step: int) -> Weights:
            return {name: gradients[name] * rate for name, rate in zip(self.adapted_names, self.rates, strict=True)}

        return None, with_rates
