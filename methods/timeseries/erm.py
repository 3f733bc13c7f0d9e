"""Empirical risk minimisation on windows of series: all training domains in one heap.

Vapnik 1998; the baseline of domain generalisation after Gulrajani and Lopez-Paz, ICLR 2021, arXiv:2007.01434."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from torch.nn.functional import cross_entropy

from runner.methods.timeseries.adversary import Adam, BatchSize, Positive, build_branch, train

if TYPE_CHECKING:
    from runner.context import Context


@dataclass(kw_only=True)
class ERM:
    """Empirical risk minimisation over all training domains."""

    epochs: Positive = 150
    batch_size: BatchSize = 160
    width: Positive = 256  # of the bottleneck
    optimizer: Adam = field(default_factory=Adam)

    paper: ClassVar[str] = "arXiv:2007.01434"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "Trained with care, plain risk minimisation is hard to beat on domains never seen."
    data: ClassVar[tuple[str, ...]] = ("series",)
    model: ClassVar[tuple[str, ...]] = ("series featurizer",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = "Gulrajani, Lopez-Paz. In Search of Lost Domain Generalization. ICLR 2021."
    deviations: ClassVar[tuple[str, ...]] = ("network, optimizer and epochs are those of DIVERSIFY, which it is for",)

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy (0..1), loss (nats) on unseen domains, and accuracy_best_validation."""
        network = build_branch(ctx, self.width)
        return train(
            ctx,
            network,
            self.optimizer,
            lambda windows, labels, index: cross_entropy(network(windows), labels),
            epochs=self.epochs,
            batch_size=self.batch_size,
        )
