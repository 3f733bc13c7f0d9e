"""Domain-adversarial training on windows of series, with the true domains of the training windows.

Ganin et al., JMLR 2016, arXiv:1505.07818, equation 10; for unseen domains: the adversary tells the training domains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn.functional import cross_entropy

from runner.methods.timeseries.adversary import (
    Adam,
    BatchSize,
    Positive,
    Weight,
    build_branch,
    discriminator,
    reverse_gradient,
    train,
)

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class DANN:
    """Domain-adversarial training with domain labels."""

    epochs: Positive = 150
    batch_size: BatchSize = 160
    width: Positive = 256  # of the bottleneck
    hidden: Positive = 256  # of the discriminator
    reversal: Weight = 1.0  # of the adversary's gradient
    optimizer: Adam = field(default_factory=Adam)

    paper: ClassVar[str] = "arXiv:1505.07818"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "Features that do not tell the domain carry a classifier to domains that were not seen."
    data: ClassVar[tuple[str, ...]] = ("series",)
    model: ClassVar[tuple[str, ...]] = ("series featurizer",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = "Ganin et al. Domain-Adversarial Training of Neural Networks. JMLR 2016."
    deviations: ClassVar[tuple[str, ...]] = (
        "the adversary tells training domains from each other: no window of a test domain is seen",
        "the reversal's strength is constant; the paper raises it from 0 to 1",
        "network, optimizer and epochs are those of DIVERSIFY, which it is a baseline of",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy (0..1), loss (nats) on unseen domains, and accuracy_best_validation."""
        network = build_branch(ctx, self.width)
        names, domains = torch.unique(ctx.data.train.groups["domain"], return_inverse=True)
        adversary = ctx.initialised("discriminator", lambda: discriminator(self.width, self.hidden, len(names)))

        def loss(windows: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            embedded = network.embed(windows)
            told = adversary(reverse_gradient(embedded, self.reversal))
            return cross_entropy(network.classifier(embedded), labels) + cross_entropy(told, domains[index])

        return train(
            ctx,
            network,
            self.optimizer,
            loss,
            epochs=self.epochs,
            batch_size=self.batch_size,
            adversary=adversary,
        )
