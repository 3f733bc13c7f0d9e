"""Training with a chosen value of ReLU'(0).

Bertoin, Bolte, Gerchinovitz and Pauwels, "Numerical influence of ReLU'(0) on backpropagation", NeurIPS 2021,
arXiv:2106.12915. Official code: deel-ai/relu-prime. The share of initialisations at which the value matters is method
relu_prime_volume, networks that part from each other are relu_prime_divergence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from runner.errors import UserError
from runner.fit import Fitted, fit, test_metrics
from runner.methods.vision.rectifiers import Format, Kind, in_format, put_back, put_rectifiers, watch, zero_share

if TYPE_CHECKING:
    from runner.context import Context

Rate = Annotated[float, Field(gt=0)]
DIVERGED = 1e4  # nats; stands for a loss that is no number


@dataclass(kw_only=True)
class Search:
    """Learning rates drawn log-uniformly, of which validation chooses."""

    trials: Annotated[int, Field(ge=0)] = 0  # 0: the recipe's rate
    lowest: Rate = 1e-5
    highest: Rate = 1e-1


@dataclass(kw_only=True)
class ReLUPrime:
    """Supervised training with a chosen derivative of the rectifiers at their kinks."""

    value: float | None = 0.0  # of the derivative at 0; null: drawn from U[0, 1] at every zero
    activation: Kind | None = None  # null: the network's own
    value_at_six: float = 0.0  # of relu6
    official_backward: bool = False  # true: at a kink the value itself, not the value times the incoming gradient
    weights: Format = "float32"  # number format of weights and activations
    search: Search = field(default_factory=Search)

    paper: ClassVar[str] = "arXiv:2106.12915"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "In finite precision activations are exactly 0 often enough for the value of ReLU'(0) to change training; with "
        "plain SGD 0 is best."
    )
    citation: ClassVar[str] = (
        "Bertoin, Bolte, Gerchinovitz and Pauwels. Numerical Influence of ReLU'(0) on Backpropagation. NeurIPS 2021."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    deviations: ClassVar[tuple[str, ...]] = (
        "the chain rule is kept at zeros; the released ReLU drops the incoming gradient there, which is "
        "official_backward=true",
        "learning rates are searched at random without pruning, the code has Optuna; by default the recipe's is taken",
        "value=null draws anew for every zero",
        "a loss that is no number is logged as 1e4 and training goes on; the accuracy is then that of chance",
    )

    def __post_init__(self) -> None:
        if self.search.lowest > self.search.highest:
            raise ValueError(f"search: lowest={self.search.lowest:g} is above highest={self.search.highest:g}")

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy (0..1) and loss (nats) on the test split, zero_share, the share of the rectifiers' inputs
        that are exactly 0 there, learning_rate, and diverged (1.0: the loss is no number)."""
        rate = self._searched(ctx) if self.search.trials else ctx.recipe.optimizer.learning_rate
        network, places = self._network(ctx)
        fitted = self._fit(ctx, network, "train", rate)
        zeros = ctx.once("zeros", lambda: zeros_on_test(ctx, network))
        if self.activation is None and self.weights == "float32":  # then the network of the config computes the same
            put_back(network, places)
            ctx.profile(network, "final")
            ctx.save_model(network)
        metrics = test_metrics(ctx, network, fitted)
        finite = math.isfinite(metrics["loss"])
        metrics["loss"] = metrics["loss"] if finite else DIVERGED
        return metrics | {"zero_share": zeros, "learning_rate": rate, "diverged": float(not finite)}

    def _network(self, ctx: Context) -> tuple[nn.Module, dict[str, nn.Module]]:
        network = ctx.model()
        places = put_rectifiers(
            network,
            kind=self.activation,
            value=self.value,
            value_at_six=self.value_at_six,
            official_backward=self.official_backward,
        )
        return in_format(network, self.weights), places

    def _fit(self, ctx: Context, network: nn.Module, name: str, rate: float) -> Fitted:
        watch(network)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            value = cross_entropy(network(images), labels, label_smoothing=ctx.recipe.label_smoothing)
            ctx.log(zero_share=zero_share(network))
            return value.nan_to_num(DIVERGED, DIVERGED)

        recipe = replace(ctx.recipe, optimizer=replace(ctx.recipe.optimizer, learning_rate=rate))
        fitted = fit(ctx, network, loss, recipe, name=name)
        watch(network, False)
        return fitted

    def _searched(self, ctx: Context) -> float:
        """The rate whose network has the highest validation accuracy after its last epoch."""
        if len(ctx.data.validation) == 0:
            raise UserError("method.search.trials: needs validation images; set dataset.validation_fraction=0.1")
        low, high = math.log(self.search.lowest), math.log(self.search.highest)
        drawn = ctx.once("learning rates", lambda: torch.rand(self.search.trials, dtype=torch.double))
        rates = (low + (high - low) * drawn).exp().tolist()
        accuracies = []
        for number, rate in enumerate(rates, 1):
            network, _ = self._network(ctx)
            self._fit(ctx, network, f"trial {number}", rate)
            accuracies.append(ctx.evaluate(network, "validation")["accuracy"])
            ctx.say(f"learning rate {rate:.3g}: validation accuracy {accuracies[-1]:.4f}")
        return rates[accuracies.index(max(accuracies))]


@torch.no_grad()
def zeros_on_test(ctx: Context, network: nn.Module) -> float:
    """The share of exact zeros among the rectifiers' inputs for all test images, in evaluation mode."""
    training = network.training
    network.eval()
    watch(network)
    shares, counts = [], []
    for batch in ctx.batches("test", ctx.recipe.evaluation_batch_size, shuffle=False, augment=False).iterate(0):
        with ctx.autocast():
            network(batch.images)
        shares.append(float(zero_share(network)))
        counts.append(len(batch.labels))
    watch(network, False)
    network.train(training)
    return sum(share * count for share, count in zip(shares, counts, strict=True)) / sum(counts)
