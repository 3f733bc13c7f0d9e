"""Networks of equal weights that train on equal batches and differ in the value of ReLU'(0) alone.

Bertoin, Bolte, Gerchinovitz and Pauwels, NeurIPS 2021, arXiv:2106.12915. Official code: deel-ai/relu-prime.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from runner.methods.vision.rectifiers import Format, in_format, put_rectifiers, rectifiers

if TYPE_CHECKING:
    from runner.context import Context


@dataclass(kw_only=True)
class ReLUPrimeDivergence:
    """A network with one value of ReLU'(0), one with another, and a second one with the first value as a control."""

    value: float = 0.0
    other_value: float = 1.0
    learning_rate: Annotated[float, Field(gt=0)] = 0.01  # of plain SGD
    learning_rate_spread: Annotated[float, Field(ge=0)] = 0.2  # it is multiplied by 1 + this x U[0, 1]
    weights: Format = "float32"  # number format of weights and activations

    paper: ClassVar[str] = "arXiv:2106.12915"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "Weights part the first time that a pre-activation is exactly 0, and only then; a control never does."
    )
    citation: ClassVar[str] = (
        "Bertoin, Bolte, Gerchinovitz and Pauwels. Numerical Influence of ReLU'(0) on Backpropagation. NeurIPS 2021."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False  # the three networks see whole batches
    deviations: ClassVar[tuple[str, ...]] = (
        "of the recipe only epochs and batch size play a part; the number of epochs is not published",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns difference and difference_control, sums of absolute differences of all weights to the first network
        after the last step, first_step at which the other value's differ (the number of steps where they never do),
        and smallest, the smallest |pre-activation| of the first layer that was met."""
        networks = self._networks(ctx)
        drawn = ctx.once("learning rate", lambda: torch.rand(()))
        rate = self.learning_rate * (1 + self.learning_rate_spread * float(drawn))
        optimizers = [torch.optim.SGD(network.parameters(), rate) for network in networks]
        met = {"first_step": -1, "smallest": math.inf}
        ctx.track(networks=networks, met=met)
        batches = ctx.batches("train", ctx.recipe.batch_size, augment=False)
        first_rectifier = rectifiers(networks[0])[0]
        first_rectifier.watched = True
        loop = ctx.loop("train", batches, epochs=ctx.recipe.epochs)
        for images, labels, _ in loop:
            for network, optimizer in zip(networks, optimizers, strict=True):
                optimizer.zero_grad(set_to_none=True)
                loss = cross_entropy(network(images), labels)
                loss.backward()
                optimizer.step()
            difference = weight_difference(networks[0], networks[1])
            if met["first_step"] < 0 and difference > 0:
                met["first_step"] = loop.step
            met["smallest"] = min(met["smallest"], float(first_rectifier.smallest))
            ctx.log(
                difference=difference,
                difference_control=weight_difference(networks[0], networks[2]),
                smallest=first_rectifier.smallest,
                loss=loss.detach(),
            )
        metrics = {
            "difference": float(weight_difference(networks[0], networks[1])),
            "difference_control": float(weight_difference(networks[0], networks[2])),
            "first_step": float(loop.total if met["first_step"] < 0 else met["first_step"]),
            "smallest": met["smallest"],
        }
        ctx.log(**metrics)
        return metrics

    def _networks(self, ctx: Context) -> nn.ModuleList:
        """The first network, the one of the other value, the control."""
        first = ctx.model()
        networks = nn.ModuleList([first, copy.deepcopy(first), copy.deepcopy(first)])
        for network, value in zip(networks, (self.value, self.other_value, self.value), strict=True):
            put_rectifiers(network, value=value)
            in_format(network, self.weights)
        return networks


@torch.no_grad()
def weight_difference(one: nn.Module, other: nn.Module) -> Tensor:
    """The sum of absolute differences of all weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return torch.stack([(a.double() - b.double()).abs().sum() for a, b in pairs]).sum()
