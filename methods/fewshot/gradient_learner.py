"""A network that adapts to a task by gradient descent: MAML, and the base of what changes its weights or gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from runner.methods.fewshot.inner_loop import (
    Transform,
    Weights,
    adapt,
    call,
    chosen,
    head_names,
    norm_names,
    task_loss,
    use_batch_statistics,
)


class GradientLearner(nn.Module):
    """MAML over ``network``: its parameters are the initial weights; the adapted ones are chosen by ``part``.

    A method overrides ``hooks`` (transforms of weights and gradients, made for each task), ``start`` (the weights that
    a task begins with) or ``forward_at`` (the network at a step).

    Args:
        rate: of the inner steps; None: ``hooks`` applies rates.
        test_steps: steps in validation and test; None: ``steps``.
        part: what is adapted: the whole network, its last linear layer, or all but that.
        adapt_norm: scales and shifts of batch normalisation too.
        first_order: inner gradients are constants of the outer one.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        rate: float | None,
        steps: int,
        test_steps: int | None = None,
        part: Literal["all", "head", "body"] = "all",
        adapt_norm: bool = True,
        first_order: bool = False,
    ) -> None:
        super().__init__()
        self.network = use_batch_statistics(network)
        self.rate, self.steps, self.test_steps = rate, steps, test_steps or steps
        self.first_order = first_order
        head, norms = head_names(network), norm_names(network)
        names = [name for name, weight in network.named_parameters() if weight.requires_grad]
        inside = {"all": set(names), "head": head, "body": set(names) - head}[part]
        self.adapted_names = [name for name in names if name in inside and (adapt_norm or name not in norms)]

    # ---- what methods change ---------------------------------------------------------------------------------------

    def hooks(self, support: Tensor, support_targets: Tensor) -> tuple[Transform | None, Transform | None]:
        """(transform_weights, transform_gradients) of one task; see ``inner_loop``."""
        return None, None

    def start(self, support: Tensor, support_targets: Tensor) -> Weights:
        """The adapted weights before the first step."""
        return chosen(dict(self.network.named_parameters()), self.adapted_names)

    def forward_at(self, weights: Weights, step: int, inputs: Tensor) -> Tensor:
        """The outputs with the adapted ``weights`` in the forward pass of ``step`` (0-based)."""
        return call(self.network, weights, inputs)

    def support_loss(self, support: Tensor, support_targets: Tensor) -> Callable[[Weights, int], Tensor]:
        """(weights, step) -> what the inner steps descend on: the mean loss of the support set."""

        def loss(weights: Weights, step: int) -> Tensor:
            return task_loss(self.forward_at(weights, step, support), support_targets)

        return loss

    # ---- one task --------------------------------------------------------------------------------------------------

    def adapt(
        self,
        support: Tensor,
        support_targets: Tensor,
        steps: int,
        after_step: Callable[[Weights, Weights, int], None] | None = None,
    ) -> Weights:
        """The weights after ``steps`` on the support set."""

        transform_weights, transform_gradients = self.hooks(support, support_targets)
        return adapt(
            self.support_loss(support, support_targets),
            self.start(support, support_targets),
            steps=steps,
            rate=self.rate,
            transform_weights=transform_weights,
            transform_gradients=transform_gradients,
            first_order=self.first_order,
            after_step=after_step,
        )

    def outer(
        self, support: Tensor, support_targets: Tensor, query: Tensor, query_targets: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        """The query loss of the last step, with its graph to the initial weights."""
        weights = self.adapt(support, support_targets, self.steps)
        outputs = self.forward_at(weights, self.steps - 1, query)
        return {"loss": task_loss(outputs, query_targets), **query_accuracy(outputs, query_targets)}

    def predict(self, support: Tensor, support_targets: Tensor, query: Tensor) -> Tensor:
        """The query outputs after ``test_steps``."""
        weights = self.adapt(support, support_targets, self.test_steps)
        return self.forward_at(weights, self.test_steps - 1, query)

    def body_gradient_rate(self, support: Tensor, support_targets: Tensor) -> Tensor:
        """The mean norm of the gradients of the convolutions (and of linear layers below the head) over the norm of
        the head's, averaged over the steps of a test."""
        head = [name for name in head_names(self.network) if name in self.adapted_names]
        body = [name for name in self.adapted_names if name not in head and self.network.get_parameter(name).ndim > 1]
        rates: list[Tensor] = []

        def norms(weights: Weights, gradients: Weights, step: int) -> None:
            of_head = torch.stack([gradients[name].square().sum() for name in head]).sum().sqrt()
            of_body = torch.stack([gradients[name].square().sum().sqrt() for name in body]).mean()
            rates.append(of_body / of_head.clamp(min=1e-12))

        self.adapt(support, support_targets, self.test_steps, norms)
        return torch.stack(rates).mean()


def query_accuracy(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """{"accuracy"} of class numbers, nothing of regression."""
    if targets.is_floating_point():
        return {}
    return {"accuracy": (outputs.argmax(-1) == targets).float().mean()}
