"""Plain supervised training: cross-entropy on the labels with the recipe's optimizer and schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch.nn.functional import cross_entropy

from runner.fit import fit, test_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class Supervised:
    """Supervised training of a classifier; the networks that other methods start from are runs of it."""

    paper: ClassVar[str] = "-"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "The baseline of every comparison: cross-entropy, no extra terms."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy (0..1), loss (nats) on the test split, and accuracy_best_validation if there is one."""
        network = ctx.model()

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            return cross_entropy(network(images), labels, label_smoothing=ctx.recipe.label_smoothing)

        fitted = fit(ctx, network, loss)
        ctx.profile(network, "final")
        ctx.save_model(network)
        return test_metrics(ctx, network, fitted)
