"""Geometry-adaptive preconditioning: learned factors for the singular values of every inner gradient.

Kang, Hwang, Eo, Kim and Rhee, "Meta-Learning with a Geometry-Adaptive Preconditioner", CVPR 2023, arXiv:2304.01552.
Official code: Suhyun777/CVPR23-GAP (classification). Deviations: see the class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from runner.methods.fewshot.gradient_learner import GradientLearner
from runner.methods.fewshot.inner_loop import Transform, Weights
from runner.methods.fewshot.meta_training import Group, MetaTraining, meta_learn

if TYPE_CHECKING:
    from runner.context import Context

BETA = 2.0  # of the softplus
START = 0.928  # softplus of it is 1.0006: training begins as MAML


@dataclass(kw_only=True)
class GAPMAML:
    """MAML whose inner gradients have their singular values scaled by learned factors."""

    rate: Annotated[float, Field(gt=0)] = 0.01  # of the inner steps
    steps: Annotated[int, Field(gt=0)] = 5
    test_steps: Annotated[int, Field(gt=0)] | None = 10  # null: steps
    preconditioner: Literal["full", "approximate", "none"] = "full"  # approximate: without the SVD; none: MAML
    factors_learning_rate: Annotated[float, Field(gt=0)] = 3e-3  # of the factors, outside (5-shot: 1e-4)
    adapt_norm: bool = True  # scales and shifts of batch normalisation too
    first_order: bool = False
    training: MetaTraining = field(default_factory=lambda: MetaTraining(validation_tasks=0))

    paper: ClassVar[str] = "arXiv:2304.01552"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "A preconditioner that adapts to task and step, symmetric and positive definite on the gradient's range, "
        "beats MAML and learned preconditioners that are constant."
    )
    data: ClassVar[tuple[str, ...]] = ("episodes", "regression episodes")
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Kang, Hwang, Eo, Kim, Rhee. Meta-Learning with a Geometry-Adaptive Preconditioner. CVPR 2023."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "the factors have the outer rate that the readme names; the released loop trains them with the weights' rate "
        "(factors_learning_rate=1e-4)",
        "networks without convolutions have their linear weights preconditioned, the head too, as the paper's "
        "sinusoids need; the released code has convolutions alone",
        "no validation chooses an iteration: the last one is measured",
        "training images are flipped left to right where dataset.augmentation says so, never upside down",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns what ``meta_learn`` returns, and factor_least and factor_largest, the range of the factors."""
        learner = GAPLearner(
            ctx.model(),
            self.preconditioner,
            rate=self.rate,
            steps=self.steps,
            test_steps=self.test_steps,
            adapt_norm=self.adapt_norm,
            first_order=self.first_order,
        )
        groups = [Group(list(learner.factors), self.factors_learning_rate)] if len(learner.factors) else []
        metrics = meta_learn(ctx, learner, self.training, outer=learner.outer, predict=learner.predict, groups=groups)
        if groups:
            values = torch.cat([positive(factor.detach()) for factor in learner.factors])
            metrics |= {"factor_least": float(values.min()), "factor_largest": float(values.max())}
        return metrics


class GAPLearner(GradientLearner):
    """The meta-parameters: initial weights, and for each of ``preconditioned`` min(rows, columns) factors."""

    def __init__(self, network: nn.Module, preconditioner: str, **settings) -> None:
        super().__init__(network, **settings)
        weights = {name: network.get_parameter(name) for name in self.adapted_names}
        names = [name for name, weight in weights.items() if weight.ndim == 4]
        names = names or [name for name, weight in weights.items() if weight.ndim == 2]
        self.preconditioned = names if preconditioner != "none" else []
        self.transform = full if preconditioner == "full" else approximate
        self.factors = nn.ParameterList(
            torch.full((min(weights[name].flatten(1).shape),), START) for name in self.preconditioned
        )

    def hooks(self, support: Tensor, support_targets: Tensor) -> tuple[Transform | None, Transform | None]:
        def preconditioned(gradients: Weights, step: int) -> Weights:
            changed = {
                name: self.transform(gradients[name].flatten(1), factors).view_as(gradients[name])
                for name, factors in zip(self.preconditioned, self.factors, strict=True)
            }
            return {**gradients, **changed}

        return None, preconditioned


def positive(factors: Tensor) -> Tensor:
    """Softplus of sharpness 2: log(1 + exp(2 x)) / 2."""
    return F.softplus(factors, beta=BETA)


def full(gradient: Tensor, factors: Tensor) -> Tensor:
    """P G with P = U diag(positive(factors)) U^T, for the gradient G (rows, columns) = U S V^T.

    U is a constant of all derivatives, so that equal singular values do no harm. The first of ``factors``
    (min(rows, columns),) belongs to the largest singular value.
    """
    left = torch.linalg.svd(gradient.detach(), full_matrices=False)[0]
    return (left * positive(factors)) @ (left.transpose(-2, -1) @ gradient)


def approximate(gradient: Tensor, factors: Tensor) -> Tensor:
    """The factors scale the rows of the gradient (rows, columns), or its columns where those are fewer."""
    rows, columns = gradient.shape[-2:]
    scale = positive(factors)
    return scale[:, None] * gradient if rows <= columns else gradient * scale
