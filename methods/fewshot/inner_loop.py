"""Adaptation to one task by gradient steps, as a pure function of a dict of weights; the one inner loop of all methods.

A network is called as a function (``torch.func.functional_call``) with the adapted weights in place of its own. Every
step is differentiable, so the outer loss reaches the initial weights through all steps (second order); with
``first_order`` the inner gradients are constants (Finn et al. 2017, arXiv:1703.03400, section 5.2).

Methods hook in at two places, by callables that are made anew for every task and may keep what the task has learnt:

    transform_weights(weights, step) -> weights          before a step's forward pass; the gradient is taken there
    transform_gradients(gradients, step) -> gradients    before they are subtracted; rates of their own go here

Tasks of equal sizes run together (``over_tasks``): one ``torch.func.vmap`` over the tasks, which gives the same as one
after the other up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import batch_norm, cross_entropy, mse_loss
from torch.nn.modules.batchnorm import _BatchNorm

from runner.datasets.episodes import Tasks

Weights = dict[str, Tensor]
Transform = Callable[[Weights, int], Weights]


def adapt(
    loss: Callable[[Weights, int], Tensor],
    weights: Weights,
    *,
    steps: int,
    rate: float | None,
    transform_weights: Transform | None = None,
    transform_gradients: Transform | None = None,
    first_order: bool = False,
    after_step: Callable[[Weights, Weights, int], None] | None = None,
) -> Weights:
    """The weights after ``steps`` steps of gradient descent on ``loss``.

    Args:
        loss: (weights, step) -> support loss, a scalar; weights that are not adapted are its own matter.
        weights: those that are adapted, by name; not changed.
        rate: of every step; None: what ``transform_gradients`` returns is subtracted as it is.
        first_order: the gradients (before their transform) are constants for the outer gradient.
        after_step: called after each step with the weights, the gradients before their transform, and the step (for a
            loss over all steps, or a norm to look at).
    """
    gradient_of = grad(loss)
    for step in range(steps):
        if transform_weights is not None:
            weights = transform_weights(weights, step)
        gradients = gradient_of(weights, step)
        if first_order:
            gradients = {name: gradient.detach() for name, gradient in gradients.items()}
        updates = gradients if transform_gradients is None else transform_gradients(gradients, step)
        scale = 1.0 if rate is None else rate
        weights = {name: weight - scale * updates[name] for name, weight in weights.items()}
        if after_step is not None:
            after_step(weights, gradients, step)
    return weights


def call(network: nn.Module, weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """The network's output with ``weights`` in place of its own of the same names."""
    return functional_call(network, dict(weights), (inputs,))


def task_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy (nats) for class numbers, mean squared error for float targets of the outputs' shape."""
    return mse_loss(outputs, targets) if targets.is_floating_point() else cross_entropy(outputs, targets)


def over_tasks(
    function: Callable[..., Any],
    tasks: Tasks | list[Tasks],
    *arguments: Any,
    batched: bool = True,
    randomness: str = "different",
) -> Any:
    """``function(support, support_targets, query, query_targets, *arguments)`` of every task, stacked along a new
    first dimension.

    Args:
        function: returns a tensor, or a (nested) dict or tuple of tensors.
        tasks: a stack, or a list of single tasks (of any sizes, if ``function`` returns equal ones).
        arguments: the same for all tasks.
        batched: all at once by ``vmap``; else, and for a list, one after the other.
        randomness: see ``torch.func.vmap``; different draws for every task, or the same.
    """
    if batched and isinstance(tasks, Tasks):
        dimensions = (0, 0, 0, 0, *(None for _ in arguments))
        return vmap(function, in_dims=dimensions, randomness=randomness)(*tasks, *arguments)
    single = tasks if isinstance(tasks, list) else [Tasks(*parts) for parts in zip(*tasks, strict=True)]
    found = [function(*task, *arguments) for task in single]
    return torch.utils._pytree.tree_map(lambda *parts: torch.stack(parts), found[0], *found[1:])


class BatchStatisticsNorm(nn.Module):
    """Batch normalisation by the statistics of the batch in training and test, with the parameters of ``norm``.

    Scale and shift stand apart from the normalisation: where vmap runs over tasks that each adapted their own, the
    second derivatives of torch's (2.15) joint operator are wrong.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.register_parameter("weight", norm.weight)
        self.register_parameter("bias", norm.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = batch_norm(inputs, None, None, training=True, eps=self.eps)
        if self.weight is None:
            return outputs
        shape = (1, -1, *[1] * (inputs.ndim - 2))
        return outputs * self.weight.view(shape) + self.bias.view(shape)


def use_batch_statistics(network: nn.Module) -> nn.Module:
    """Replaces batch normalisation, in place, by that of ``BatchStatisticsNorm``; the names of parameters stay."""
    if isinstance(network, _BatchNorm):
        return BatchStatisticsNorm(network)
    for name, module in network.named_children():
        setattr(network, name, use_batch_statistics(module))
    return network


def norm_names(network: nn.Module) -> set[str]:
    """The names of the scales and shifts of batch normalisation."""
    return {
        f"{place}.{name}" if place else name
        for place, module in network.named_modules()
        if isinstance(module, (_BatchNorm, BatchStatisticsNorm))
        for name, _ in module.named_parameters(recurse=False)
    }


def head_module(network: nn.Module) -> str:
    """The name of the last linear layer. Raises ValueError without one."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ValueError(f"{type(network).__name__} has no linear layer that could be its head")
    return names[-1]


def head_names(network: nn.Module) -> set[str]:
    """The names of the head's parameters."""
    head = head_module(network)
    return {f"{head}.{name}" for name, _ in network.get_submodule(head).named_parameters()}


def chosen(weights: Mapping[str, Tensor], names: Iterable[str]) -> Weights:
    """The weights of these names, in the order of ``weights``."""
    names = set(names)
    return {name: weight for name, weight in weights.items() if name in names}
