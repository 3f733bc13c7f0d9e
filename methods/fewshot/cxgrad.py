"""Contextual gradient scaling: a factor for every convolution and task makes the backbone adapt.

Lee, Lee and Song, "Contextual Gradient Scaling for Few-Shot Learning", WACV 2022, arXiv:2110.10353.
Official code: shlee625/CxGrad. Deviations: see the class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import grad, vjp

from runner.errors import UserError
from runner.methods.fewshot.gradient_learner import GradientLearner
from runner.methods.fewshot.inner_loop import Transform, Weights, over_tasks
from runner.methods.fewshot.meta_training import MetaTraining, meta_learn, tasks_of

if TYPE_CHECKING:
    from runner.context import Context

Rate = Annotated[float, Field(gt=0)]
Size = Annotated[int, Field(gt=0)]
LOOKED_AT = 20  # test tasks whose factors and gradients are reported


@dataclass(kw_only=True)
class CxGrad:
    """MAML whose convolutions are scaled, for every task and step, to norms that a small network chooses."""

    rate: Rate = 0.01  # of the inner steps
    steps: Size = 5
    context_size: Size = 100  # of the task's context vector, and of the generator's hidden layer
    context_rate: Annotated[float, Field(ge=0)] = 1.0  # of its steps; 0: factors that no task changes
    update_context: bool = True  # in every step; false: only before the first
    factors: Literal["generated", "one"] = "generated"  # one: plain normalisation of the weights
    training: MetaTraining = field(default_factory=lambda: MetaTraining(ensemble=5))

    paper: ClassVar[str] = "arXiv:2110.10353"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "Scaling the gradients of the backbone by factors of the task makes it adapt, which MAML's hardly does, and "
        "raises the accuracy."
    )
    data: ClassVar[tuple[str, ...]] = ("episodes",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = "Lee, Lee, Song. Contextual Gradient Scaling for Few-Shot Learning. WACV 2022."
    deviations: ClassVar[tuple[str, ...]] = (
        "accuracy is that of the last epoch's network and its interval is over tasks; the paper's protocol, five "
        "epochs' mean logits and an interval over query predictions, stands beside it as accuracy_ensemble and "
        "accuracy_binomial_interval",
        "initialisation and tasks are this project's random streams, not the released seeds",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns what ``meta_learn`` returns, and on 20 test tasks factor_mean, factor_deviation (over tasks, the
        largest of all layers and steps) and body_gradient_rate (``GradientLearner.body_gradient_rate``)."""
        network = ctx.model()
        learner = ctx.initialised("learner", lambda: CxGradLearner(network, self))
        metrics = meta_learn(ctx, learner, self.training, outer=learner.outer, predict=learner.predict)
        batched = self.training.batched
        numbers = range(min(LOOKED_AT, self.training.test_tasks))

        def looked_at() -> dict[str, float]:
            def values(support: Tensor, targets: Tensor, *query: Tensor) -> dict[str, Tensor]:
                return {
                    "factors": learner.factors(support, targets),
                    "rate": learner.body_gradient_rate(support, targets),
                }

            with torch.no_grad():
                found = over_tasks(values, tasks_of(ctx.data, "test", numbers), batched=batched)
            return {
                "factor_mean": float(found["factors"].mean()),
                "factor_deviation": float(found["factors"].std(0).max()),
                "body_gradient_rate": float(found["rate"].mean()),
            }

        return {**metrics, **ctx.once("factors", looked_at)}


class CxGradLearner(GradientLearner):
    """The meta-parameters: initial weights, and the generator of the factors."""

    def __init__(self, network: nn.Module, settings: CxGrad) -> None:
        super().__init__(network, rate=settings.rate, steps=settings.steps, adapt_norm=False)
        convolutions = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
        biased = [name for name in convolutions if network.get_submodule(name).bias is not None]
        if biased or not convolutions:
            what = f"{biased[0]} has a bias" if biased else "this network has no convolution"
            raise UserError(
                f"method cxgrad scales convolutions that batch normalisation makes free of scale, and {what}; use "
                "model=conv4_48, or model.arguments.bias=false"
            )
        self.scaled = [f"{name}.weight" for name in convolutions]
        self.settings = settings
        size = settings.context_size
        self.generator = nn.Sequential(
            nn.Linear(size, size), nn.ReLU(), nn.Linear(size, len(self.scaled)), nn.Softplus()
        )

    def generate(self, context: Tensor) -> Tensor:
        """The factors (layers,) > 0 of a context (size,)."""
        return torch.ones_like(self.generator(context)) if self.settings.factors == "one" else self.generator(context)

    def hooks(self, support: Tensor, support_targets: Tensor) -> tuple[Transform | None, Transform | None]:
        return self._scaling(support, support_targets, lambda factors: None)

    def factors(self, support: Tensor, support_targets: Tensor) -> Tensor:
        """The factors (steps, layers) that a task gets."""
        seen: list[Tensor] = []
        loss = self.support_loss(support, support_targets)
        transform_weights, transform_gradients = self._scaling(support, support_targets, seen.append)
        weights = self.start(support, support_targets)
        for step in range(self.test_steps):
            weights = transform_weights(weights, step)
            gradients = transform_gradients(grad(loss)(weights, step), step)
            weights = {name: weight - self.rate * gradients[name] for name, weight in weights.items()}
        return torch.stack(seen)

    def _scaling(
        self, support: Tensor, support_targets: Tensor, see: Callable[[Tensor], object]
    ) -> tuple[Transform, Transform]:
        """The two transforms of a task, around its context; ``see`` gets the factors of every step."""
        rate, updates = self.settings.context_rate, self.settings.update_context
        context = self.generator[0].weight.new_zeros(self.settings.context_size)
        pull: Callable[[Tensor], tuple[Tensor, ...]] | None = None
        units: Weights = {}

        def transform_weights(weights: Weights, step: int) -> Weights:
            nonlocal pull, units
            factors, pull = vjp(self.generate, context)
            see(factors.detach())
            units = {name: unit(weights[name]) for name in self.scaled}
            return {**weights, **scaled(units, factors)}

        def context_gradient(gradients: Weights) -> Tensor:
            return pull(torch.stack([(gradients[name] * units[name]).sum() for name in self.scaled]))[0]

        def transform_gradients(gradients: Weights, step: int) -> Weights:
            nonlocal context
            if updates and rate:
                context = context - rate * context_gradient(gradients)
            return gradients

        if rate:  # the step before the first: its scaled weights are thrown away, and it is a constant of the outer one
            weights = self.start(support, support_targets)
            factors, pull = vjp(self.generate, context)
            units = {name: unit(weights[name]) for name in self.scaled}
            at = {**weights, **scaled(units, factors)}
            gradients = grad(self.support_loss(support, support_targets))(at, 0)
            context = (context - rate * context_gradient(gradients)).detach()
        return transform_weights, transform_gradients


def unit(weight: Tensor) -> Tensor:
    """weight / ||weight||, the norm over the whole tensor."""
    return weight / weight.square().sum().sqrt()


def scaled(units: Weights, factors: Tensor) -> Weights:
    """Each weight of norm 1 times its factor, in their order."""
    return {name: factor * weight for (name, weight), factor in zip(units.items(), factors, strict=True)}
