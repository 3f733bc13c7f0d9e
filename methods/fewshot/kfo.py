"""KFO: a meta-optimizer beside the model, whose Kronecker-factored maps turn gradients into updates.

Arnold, Iqbal and Sha, "When MAML Can Adapt Fast and How to Assist When It Cannot", AISTATS 2021, arXiv:1910.13603.
Official code: Sha-Lab/kfo (linear maps), on the blocks of learnables/learn2learn. Deviations: see the class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import vjp

from runner.methods.fewshot.anil import ANIL, HeadLearner, linear
from runner.methods.fewshot.gradient_learner import GradientLearner
from runner.methods.fewshot.inner_loop import Transform, Weights, adapt, task_loss
from runner.methods.fewshot.meta_training import MetaTraining, meta_learn

if TYPE_CHECKING:
    from runner.context import Context

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}


@dataclass(kw_only=True)
class KFO:
    """MAML or ANIL whose inner updates are a learned map of the gradient, which each task adapts too."""

    rate: Annotated[float, Field(gt=0)] = 0.1  # of the inner steps, of weights and factors alike
    steps: Annotated[int, Field(gt=0)] = 5
    test_steps: Annotated[int, Field(gt=0)] | None = None  # null: steps
    part: Literal["all", "head"] = "all"  # all: MAML with KFO; head: ANIL with KFO
    layers: Annotated[int, Field(gt=0)] = 1  # Kronecker-linear layers of each map; 1: a linear map
    activation: Literal["tanh", "relu"] = "tanh"  # between layers
    positive: bool = True  # factors are squares, F^T F, so that a linear map never ascends
    bias: bool = False  # each layer adds a learned matrix
    adapt_factors: bool = True  # inner steps change the factors too; false: outer ones alone
    first_order: bool = False
    training: MetaTraining = field(default_factory=lambda: MetaTraining(validation_tasks=0))

    paper: ClassVar[str] = "arXiv:1910.13603"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "A model as small as its tasks need cannot adapt fast by gradient descent; with a separate learned map of its "
        "gradients it can, without growing."
    )
    data: ClassVar[tuple[str, ...]] = ("episodes", "regression episodes")
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Arnold, Iqbal, Sha. When MAML Can Adapt Fast and How to Assist When It Cannot. AISTATS 2021."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "several layers (layers=3: two hidden ones) have the widths of their input; the released code has linear maps "
        "alone, and the paper's activation and widths were not found",
        "support and query images of a class are drawn at random; the released code takes every second one of ten",
        "the last iteration is measured on 600 tasks; the released code measures 16 after every iteration",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns what ``meta_learn`` returns."""
        network = ctx.model()

        def build() -> KFOLearner | KFOHead:
            return KFOLearner(network, self) if self.part == "all" else KFOHead(network, self, ctx.data.num_classes)

        learner = ctx.initialised("learner", build)
        return meta_learn(ctx, learner, self.training, outer=learner.outer, predict=learner.predict)


class KFOLearner(GradientLearner):
    """The meta-parameters: initial weights, and the factors of the ``optimizer``, which no forward pass uses."""

    def __init__(self, network: nn.Module, settings: KFO) -> None:
        super().__init__(
            network,
            rate=settings.rate,
            steps=settings.steps,
            test_steps=settings.test_steps,
            first_order=settings.first_order,
        )
        self.optimizer = MetaOptimizer({name: network.get_parameter(name) for name in self.adapted_names}, settings)

    def hooks(self, support: Tensor, support_targets: Tensor) -> tuple[Transform | None, Transform | None]:
        return None, self.optimizer.for_task()


class KFOHead(HeadLearner):
    """As ``KFOLearner``, of the head alone, on features that a task computes once."""

    def __init__(self, network: nn.Module, settings: KFO, ways: int) -> None:
        steps = {"steps": settings.steps, "test_steps": settings.test_steps}
        super().__init__(network, ANIL(rate=settings.rate, first_order=settings.first_order, **steps), ways)
        self.optimizer = MetaOptimizer(dict(self.head.named_parameters()), settings)

    def adapted_head(self, features: Tensor, targets: Tensor, steps: int) -> Weights:
        def loss(weights: Weights, step: int) -> Tensor:
            return task_loss(linear(weights, features), targets)

        return adapt(
            loss,
            dict(self.head.named_parameters()),
            steps=steps,
            rate=self.settings.rate,
            transform_gradients=self.optimizer.for_task(),
            first_order=self.settings.first_order,
        )


class MetaOptimizer(nn.Module):
    """A map from the gradient of each weight to its update; all maps begin as the identity (with one layer).

    ``factors``: of each weight in turn, of each layer: left (n, n), right (m, m), and with a bias (n, m); n and m are
    those of ``as_matrices``.
    """

    def __init__(self, weights: Weights, settings: KFO) -> None:
        super().__init__()
        self.settings = settings
        factors: list[Tensor] = []
        for weight in weights.values():
            n, m = as_matrices(weight).shape[-2:]
            layer = [torch.eye(n), torch.eye(m), *([torch.zeros(n, m)] if settings.bias else [])]
            factors += [factor.to(weight.dtype) for _ in range(settings.layers) for factor in layer]
        self.factors = nn.ParameterList(factors)

    def forward(self, gradients: Weights, factors: Sequence[Tensor]) -> Weights:
        """The updates."""
        size = len(factors) // (len(gradients) * self.settings.layers)  # of a layer: 2, or 3 with a bias
        layers = iter([factors[k : k + size] for k in range(0, len(factors), size)])
        updates: Weights = {}
        for name, gradient in gradients.items():
            values = as_matrices(gradient)
            for number in range(self.settings.layers):
                if number:
                    values = ACTIVATIONS[self.settings.activation](values)
                values = kronecker_linear(values, *next(layers), positive=self.settings.positive)
            updates[name] = values.reshape(gradient.shape)
        return updates

    def for_task(self) -> Transform:
        """The map as one task uses it: with factors of its own, which follow the task's loss.

        Before step t > 0 makes its update, the factors descend on the loss of step t. That loss depends on them by the
        weights, the last update of which was -rate x map(gradient), so its slope is the pullback of -rate x the new
        gradient through that map. The first step has no such dependence.
        """
        rate = self.settings.rate
        factors = list(self.factors)
        pull: Callable[[Weights], tuple[list[Tensor]]] | None = None

        def updates(gradients: Weights, step: int) -> Weights:
            nonlocal factors, pull
            if not self.settings.adapt_factors:
                return self(gradients, factors)
            if pull is not None:
                (slopes,) = pull({name: -rate * gradient for name, gradient in gradients.items()})
                factors = [factor - rate * slope for factor, slope in zip(factors, slopes, strict=True)]
            made, pull = vjp(lambda inside: self(gradients, inside), factors)
            return made

        return updates


def as_matrices(weight: Tensor) -> Tensor:
    """(n, m) of a linear weight, (n, 1) of a vector, and of a convolution (outputs, inputs, k, k) one (inputs, k k) for
    each output."""
    return weight[:, None] if weight.ndim == 1 else weight.flatten(2) if weight.ndim > 2 else weight


def kronecker_linear(
    values: Tensor, left: Tensor, right: Tensor, bias: Tensor | None = None, *, positive: bool = False
) -> Tensor:
    """L X R (+ B) of values X (..., n, m), which is (R^T kron L) vec(X); ``positive``: by L^T L and R^T R instead."""
    if positive:
        left, right = left.mT @ left, right.mT @ right
    values = left @ values @ right
    return values if bias is None else values + bias
