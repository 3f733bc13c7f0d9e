"""Test metrics of a network that exists: ``model.weights``, a file or the folder of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from runner.context import Context


@dataclass(kw_only=True)
class Evaluate:
    """Test only: accuracy and loss of model.weights (without them, of the trained baseline) on the data set."""

    paper: ClassVar[str] = "-"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "The same network, measured on its own or another test set; nothing is trained."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy (0..1) and loss (nats) on the test split, un-augmented.

        Images are normalised as the network was trained, where its weights say so (those of a run do).
        """
        metrics = ctx.evaluate(ctx.trained_model("baseline"), "test")
        ctx.log(**metrics)
        return metrics
