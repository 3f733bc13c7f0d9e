"""How many initialisations have gradients that depend on the value of ReLU'(0).

Bertoin, Bolte, Gerchinovitz and Pauwels, NeurIPS 2021, arXiv:2106.12915, section on the volume of the bifurcation
zone. Official code: deel-ai/relu-prime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from runner.datasets.images import Normalisation
from runner.methods.vision.rectifiers import Format, put_rectifiers, rectifiers, watch

if TYPE_CHECKING:
    from runner.context import Context

Positive = Annotated[int, Field(gt=0)]


@dataclass(kw_only=True)
class ReLUPrimeVolume:
    """The share of random initialisations at which two values of ReLU'(0) give other gradients for some batch of images
    in 0..1."""

    draws: Positive = 1000
    batch_size: Positive = 256
    weights: Format = "float32"  # number format of weights, images and activations
    value: float = 0.0
    other_value: float = 1.0

    paper: ClassVar[str] = "arXiv:2106.12915"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "At 16 bits gradients depend on ReLU'(0) at all initialisations, at 32 bits at about half, at 64 bits at none."
    )
    citation: ClassVar[str] = (
        "Bertoin, Bolte, Gerchinovitz and Pauwels. Numerical Influence of ReLU'(0) on Backpropagation. NeurIPS 2021."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False
    deviations: ClassVar[tuple[str, ...]] = (
        "a batch in which no rectifier has an input that is exactly 0 is passed over without a backward pass: its "
        "gradients are the same",
        "images are in 0..1 and un-augmented, and the network has its own initialisation; the code's study of CIFAR-10 "
        "takes normalised random crops and sets convolutions back to PyTorch's",
        "one network computes both gradients, where the code has two of equal weights; batches in the data's order",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns share (0..1) of draws whose first-layer weight gradients differ by a bit for some training batch, and
        zero_share, the mean over draws of the share of batches, of those seen, with an exact zero."""
        channels = ctx.data.channels
        unscaled = Normalisation(torch.zeros(channels), torch.full((channels,), 255.0))  # images are in 0..1
        batches = ctx.split("train").batches(
            unscaled, self.batch_size, shuffle=False, augmentation=None, device=ctx.device
        )
        tally = {"draws": 0, "differing": 0, "zeros": 0.0}
        ctx.track(tally=tally)
        for draw in ctx.loop("draws", self.draws):
            network = ctx.model(draw=draw)
            put_rectifiers(network)
            network.to(getattr(torch, self.weights)).train()
            differs, zeros = self._differs(network, batches)
            tally["draws"] += 1
            tally["differing"] += differs
            tally["zeros"] += zeros
            ctx.log(share=tally["differing"] / tally["draws"])
        metrics = {"share": tally["differing"] / tally["draws"], "zero_share": tally["zeros"] / tally["draws"]}
        ctx.log(**metrics)
        return metrics

    def _differs(self, network: nn.Module, batches: Any) -> tuple[bool, float]:
        """Whether some batch has other gradients, and the share of batches seen so far with an exact zero."""
        watch(network)
        with_zeros = 0
        for seen, (images, labels, _) in enumerate(batches.iterate(0), 1):
            logits = network(images.to(next(network.parameters()).dtype))
            if any(item.zeros for item in rectifiers(network)):
                with_zeros += 1
                loss = cross_entropy(logits, labels)
                if not torch.equal(*(first_gradient(network, loss, value) for value in (self.value, self.other_value))):
                    return True, with_zeros / seen
        return False, with_zeros / seen


def first_gradient(network: nn.Module, loss: Tensor, value: float) -> Tensor:
    """The gradient of a loss by the first layer's weights with ``value`` as the derivative at 0; the graph stays."""
    for item in rectifiers(network):
        item.value = value
    return torch.autograd.grad(loss, next(network.parameters()), retain_graph=True)[0]
