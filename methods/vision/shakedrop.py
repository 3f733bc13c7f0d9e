"""ShakeDrop: residual branches multiplied by random factors, other ones in the backward pass.

Yamada, Iwamura, Akiba and Kise, "ShakeDrop Regularization for Deep Residual Learning", IEEE Access 2019,
arXiv:1802.02375. Official code: imenurok/ShakeDrop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from runner.methods.vision.shaken_branches import Decay, Gate, Granularity, Probability, train_shaken

if TYPE_CHECKING:
    from runner.context import Context


@dataclass(kw_only=True)
class ShakeDropTraining:
    """Supervised training with ShakeDrop at the end of every residual branch."""

    survival: Probability = 0.5  # of the last block: how often its branch passes untouched; 1: plain training
    decay: Decay = "linear"  # from 1 at the input; uniform: all blocks as the last one
    forward_range: tuple[float, float] = (-1.0, 1.0)  # of the factor alpha
    backward_range: tuple[float, float] = (0.0, 1.0)  # of the gradient's factor beta
    granularity: Granularity = "pixel"  # what has an alpha and a beta of its own
    gate: Gate = "batch"  # what draws together whether to pass; the paper's is batch

    paper: ClassVar[str] = "arXiv:1802.02375"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "Random forward and backward factors on a single residual branch regularise more strongly than dropping it; a "
        "gate by depth keeps training stable."
    )
    citation: ClassVar[str] = (
        "Yamada, Iwamura, Akiba and Kise. ShakeDrop Regularization for Deep Residual Learning. IEEE Access 2019."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    deviations: ClassVar[tuple[str, ...]] = (
        "after training the factor of evaluation is multiplied into the last layer of every branch: the product is a "
        "plain network",
        "Shake-Shake, which needs two branches, is left out",
    )

    def __post_init__(self) -> None:
        for name in ("forward_range", "backward_range"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: the lower end {low:g} is above the upper end {high:g}")

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy (0..1) and loss (nats) on the test split, and accuracy_train and loss_train on the
        un-augmented training split."""
        return train_shaken(
            ctx,
            self.survival,
            self.decay,
            forward_range=tuple(self.forward_range),
            backward_range=tuple(self.backward_range),
            granularity=self.granularity,
            gate=self.gate,
        )
