"""Supervised training with Gaussian noise on the images.

Bishop, "Training with noise is equivalent to Tikhonov regularization", Neural Computation 7(1), 1995, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from runner.fit import fit, test_metrics

if TYPE_CHECKING:
    from runner.context import Context


@dataclass(kw_only=True)
class InputNoise:
    """Cross-entropy on images with fresh Gaussian noise in every step; none in the test."""

    deviation: Annotated[float, Field(ge=0)] = 0.1  # standard deviation, in those of the normalised images

    paper: ClassVar[str] = "doi:10.1162/neco.1995.7.1.108"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "Small noise on the inputs acts like a penalty on the curvature of the network."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    citation: ClassVar[str] = (
        "Bishop. Training with Noise is Equivalent to Tikhonov Regularization. Neural Computation 7(1), 1995."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "trained by stochastic gradient descent; the equivalence is that of the expected error",
    )
    soft_labels: ClassVar[bool] = True

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy (0..1), loss (nats) on the test split, and accuracy_best_validation if there is one."""
        network = ctx.model()

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            noisy = images + self.deviation * torch.randn_like(images)
            return cross_entropy(network(noisy), labels, label_smoothing=ctx.recipe.label_smoothing)

        fitted = fit(ctx, network, loss)
        ctx.profile(network, "final")
        ctx.save_model(network)
        return test_metrics(ctx, network, fitted)
