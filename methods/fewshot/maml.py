"""Model-agnostic meta-learning: initial weights from which a few gradient steps solve a task.

Finn, Abbeel and Levine, ICML 2017, arXiv:1703.03400 (algorithm 1, equation 1; first order: section 5.2).
MAML++: Antoniou, Edwards and Storkey, ICLR 2019, arXiv:1810.09502 (multi-step loss, per-step batch normalisation,
learned rates per layer and step). Official code: cbfinn/maml, AntreasAntoniou/HowToTrainYourMAMLPytorch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from runner.methods.fewshot.gradient_learner import GradientLearner, query_accuracy
from runner.methods.fewshot.inner_loop import Transform, Weights, norm_names, task_loss
from runner.methods.fewshot.meta_training import MetaTraining, meta_learn

if TYPE_CHECKING:
    from runner.context import Context

Rate = Annotated[float, Field(gt=0)]
Steps = Annotated[int, Field(gt=0)]
LEAST = 0.03  # of the multi-step weights: each step but the last keeps at least LEAST / steps


@dataclass(kw_only=True)
class MAML:
    """Gradient descent through gradient descent; with switches for the first order and for MAML++."""

    rate: Rate = 0.01  # of the inner steps
    steps: Steps = 5
    test_steps: Steps | None = 10  # null: steps
    first_order: bool = False  # inner gradients are constants of the outer one
    adapt_norm: bool = True  # scales and shifts of batch normalisation too
    multi_step_epochs: Annotated[int, Field(ge=0)] = 0  # MAML++: epochs until the loss is the last step's; 0: off
    per_step_norm: bool = False  # MAML++: scales and shifts for every step, learned outside (then not adapted)
    learned_rates: bool = False  # MAML++: a rate for every tensor and step, which start at ``rate``
    training: MetaTraining = field(default_factory=lambda: MetaTraining(gradient_limit=10.0))

    paper: ClassVar[str] = "arXiv:1703.03400"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "Initial weights trained for fast adaptation solve new tasks in a few gradient steps."
    data: ClassVar[tuple[str, ...]] = ("episodes", "regression episodes")
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Finn, Abbeel, Levine. Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks. ICML 2017."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "batch normalisation always uses the statistics of the batch, as the released codes do; the moving averages "
        "that MAML++ collects without using them are not kept",
        "scales and shifts of batch normalisation are adapted too; the released codes of MAML and MAML++ leave them to "
        "the outer loop (adapt_norm=false)",
        "MAML++'s learned rates start at the 0.01 of its configurations, which the released code does not read (0.1 "
        "there); gradient_limit cuts their meta-gradient too",
        "MAML++'s rate of a step after the last one, which nothing uses, is left out",
        "in a test of more steps than were trained, the settings of the last trained step serve for the others",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns what ``meta_learn`` returns."""
        learner = MAMLLearner(ctx.model(), self)
        return meta_learn(ctx, learner, self.training, outer=learner.outer, predict=learner.predict)


class MAMLLearner(GradientLearner):
    """The meta-parameters: initial weights, and of MAML++ scales, shifts and rates for every step."""

    def __init__(self, network: nn.Module, settings: MAML) -> None:
        super().__init__(
            network,
            rate=None if settings.learned_rates else settings.rate,
            steps=settings.steps,
            test_steps=settings.test_steps,
            adapt_norm=settings.adapt_norm and not settings.per_step_norm,
            first_order=settings.first_order,
        )
        self.multi_step_epochs = settings.multi_step_epochs
        steps = settings.steps
        self.norm_names = sorted(norm_names(network)) if settings.per_step_norm else []
        self.norms = nn.ParameterList(network.get_parameter(name).detach().repeat(steps, 1) for name in self.norm_names)
        for name in self.norm_names:
            network.get_parameter(name).requires_grad_(False)
        adapted = self.adapted_names if settings.learned_rates else []
        self.rates = nn.ParameterList(torch.full((steps,), settings.rate) for _ in adapted)

    def hooks(self, support: Tensor, support_targets: Tensor) -> tuple[Transform | None, Transform | None]:
        if not len(self.rates):
            return None, None

        def with_rates(gradients: Weights, step: int) -> Weights:
            rates = zip(gradients.items(), self.rates, strict=True)
            return {name: rate[min(step, self.steps - 1)] * gradient for (name, gradient), rate in rates}

        return None, with_rates

    def forward_at(self, weights: Weights, step: int, inputs: Tensor) -> Tensor:
        step = min(step, self.steps - 1)
        of_step = {name: stack[step] for name, stack in zip(self.norm_names, self.norms, strict=True)}
        return super().forward_at({**weights, **of_step}, step, inputs)

    def outer(
        self, support: Tensor, support_targets: Tensor, query: Tensor, query_targets: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        if epoch >= self.multi_step_epochs:
            return super().outer(support, support_targets, query, query_targets, epoch)
        shares = multi_step_weights(epoch, self.steps, self.multi_step_epochs)
        losses: list[Tensor] = []
        found: dict[str, Tensor] = {}

        def after_step(weights: Weights, gradients: Weights, step: int) -> None:
            outputs = self.forward_at(weights, step, query)
            losses.append(shares[step] * task_loss(outputs, query_targets))
            found.update(query_accuracy(outputs, query_targets))

        self.adapt(support, support_targets, self.steps, after_step)
        return {"loss": torch.stack(losses).sum(), **found}


def multi_step_weights(epoch: int, steps: int, epochs: int) -> list[float]:
    """The share of each step's query loss in a 0-based epoch of MAML++'s multi-step loss; they sum to 1.

    All start at 1 / steps; each but the last falls by 1 / (steps * epochs) an epoch, to 0.03 / steps at least.
    """
    others = max(1 / steps - epoch / (steps * epochs), LEAST / steps)
    last = min(1 / steps + epoch * (steps - 1) / (steps * epochs), 1 - (steps - 1) * LEAST / steps)
    return [others] * (steps - 1) + [last]
