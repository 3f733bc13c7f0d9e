"""What domain-adversarial methods for series share: networks behind a featurizer, reversed gradients, training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from runner.selection import BestEpoch

if TYPE_CHECKING:
    from runner.context import Context
    from runner.datasets.examples import ExampleBatches

BatchSize = Annotated[int, Field(ge=2)]  # batch normalisation has no variance of one window
Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Moment = Annotated[float, Field(ge=0, lt=1)]


@dataclass(kw_only=True)
class Adam:
    """Constant rate; the weight decay is coupled."""

    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    first_moment: Moment = 0.5
    second_moment: Moment = 0.9
    weight_decay: Weight = 5e-4

    def over(self, *modules: nn.Module) -> torch.optim.Adam:
        """The optimizer of all parameters of ``modules``."""
        return torch.optim.Adam(
            nn.ModuleList(modules).parameters(),
            lr=self.learning_rate,
            betas=(self.first_moment, self.second_moment),
            weight_decay=self.weight_decay,
        )


class ReversedGradient(torch.autograd.Function):
    """See ``reverse_gradient``."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


def reverse_gradient(inputs: Tensor, strength: float) -> Tensor:
    """``inputs``; the gradient is multiplied by ``-strength``. Ganin et al. 2016, arXiv:1505.07818, section 4.2."""
    return ReversedGradient.apply(inputs, strength)


def bottleneck(features: int, width: int) -> nn.Sequential:
    """(B, features) to (B, width): linear and batch normalisation, no rectifier."""
    return nn.Sequential(nn.Linear(features, width), nn.BatchNorm1d(width))


def discriminator(width: int, hidden: int, outputs: int) -> nn.Sequential:
    """(B, width) to logits (B, outputs) through two hidden layers with batch normalisation."""
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )


class Branch(nn.Module):
    """A featurizer, a bottleneck and a linear classifier: windows (B, channels, length) to logits (B, outputs)."""

    def __init__(self, featurizer: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.featurizer = featurizer
        self.bottleneck = bottleneck(featurizer.out_features, width)
        self.classifier = nn.Linear(width, outputs)

    def embed(self, windows: Tensor) -> Tensor:
        """(B, width)"""
        return self.bottleneck(self.featurizer(windows))

    def forward(self, windows: Tensor) -> Tensor:
        return self.classifier(self.embed(windows))


def build_branch(ctx: Context, width: int) -> Branch:
    """The config's featurizer for the data set's windows, and a classifier of its classes, on the device."""
    channels, length = ctx.data.train.inputs.shape[1:]
    featurizer = ctx.network("featurizer", channels=channels, length=length)
    return ctx.initialised("classifier", lambda: Branch(featurizer, width, ctx.data.num_classes))


def training_batches(ctx: Context, batch_size: int) -> ExampleBatches:
    """Shuffled; a last batch of one window, of which batch normalisation has no variance, is left out."""
    return ctx.batches("train", batch_size, drop_last=len(ctx.data.train) % batch_size == 1)


def train(
    ctx: Context,
    network: Branch,
    adam: Adam,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    epochs: int,
    batch_size: int,
    adversary: nn.Module | None = None,
) -> dict[str, float]:
    """Trains all of ``network`` and ``adversary`` on loss(windows, labels, index); returns the test metrics."""
    optimizer = adam.over(network, *filter(None, [adversary]))
    best = BestEpoch()
    ctx.track(network=network, adversary=adversary, optimizer=optimizer, best=best)
    network.train()
    loop = ctx.loop("train", training_batches(ctx, batch_size), epochs=epochs)
    for windows, labels, index in loop:
        value = loss(windows, labels, index)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        ctx.log(loss=value.detach())
        if loop.epoch_ends:
            best.offer(ctx, network)
    return best.test_metrics(ctx, network)
