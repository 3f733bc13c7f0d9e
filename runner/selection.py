"""The weights of the epoch that validation chose, for methods with a training loop of their own (``fit`` has its)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from runner.context import Context


class BestEpoch(dict):
    """The weights of the epoch of highest validation accuracy, the first of equals, as state to track."""

    def __init__(self) -> None:
        super().__init__(accuracy=-1.0, weights=None)

    def offer(self, ctx: Context, network: nn.Module) -> None:
        """Measures ``network`` on the validation split, if there is one, and keeps it if it is better."""
        if not len(ctx.data.validation):
            return
        accuracy = ctx.evaluate(network, "validation")["accuracy"]
        ctx.log(accuracy_validation=accuracy)
        if accuracy > self["accuracy"]:
            self["accuracy"] = accuracy
            self["weights"] = {name: value.clone() for name, value in network.state_dict().items()}

    def test_metrics(self, ctx: Context, network: nn.Module) -> dict[str, float]:
        """Test accuracy (0..1) and loss (nats) of ``network``, and its accuracy with the kept weights."""
        metrics = ctx.evaluate(network, "test")
        if self["weights"] is not None:
            network.load_state_dict(self["weights"])
            metrics["accuracy_best_validation"] = ctx.evaluate(network, "test", record=False)["accuracy"]
        return metrics
