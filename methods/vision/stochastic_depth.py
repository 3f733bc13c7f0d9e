"""Stochastic depth (RandomDrop): residual branches are left out at random.

Huang, Sun, Liu, Sedra and Weinberger, "Deep Networks with Stochastic Depth", ECCV 2016, arXiv:1603.09382, eq. 2-5. The
baseline of ShakeDrop, whose recipe it shares here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from runner.methods.vision.shaken_branches import Decay, Probability, train_shaken

if TYPE_CHECKING:
    from runner.context import Context


@dataclass(kw_only=True)
class StochasticDepth:
    """Supervised training in which every residual branch is left out of whole batches at random."""

    survival: Probability = 0.5  # of the last block's branch
    decay: Decay = "linear"  # from 1 at the input; uniform: all blocks as the last one

    paper: ClassVar[str] = "arXiv:1603.09382"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "Networks that are shallow in training and deep in the test generalise better."
    citation: ClassVar[str] = "Huang, Sun, Liu, Sedra and Weinberger. Deep Networks with Stochastic Depth. ECCV 2016."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    deviations: ClassVar[tuple[str, ...]] = (
        "branches that are left out are computed all the same, which moves their batch statistics and saves no time",
        "the recipe is ShakeDrop's",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy (0..1) and loss (nats) on the test split, and accuracy_train and loss_train on the
        un-augmented training split."""
        return train_shaken(
            ctx, self.survival, self.decay, forward_range=(0.0, 0.0), backward_range=(0.0, 0.0), granularity="batch"
        )
