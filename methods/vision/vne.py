"""Von Neumann entropy of a representation as a regulariser of supervised training.

Kim, Kang, Hwang, Shin and Rhee, "VNE: An Effective Method for Improving Deep Representation by Manipulating Eigenvalue
Distribution", CVPR 2023, arXiv:2304.01434. Official code: jaeill/CVPR23-VNE. Its self-supervised use is method i_vne.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from runner.fit import fit, test_metrics
from runner.methods.vision.spectrum import (
    Embedding,
    correlation_spread,
    covariance_spread,
    eigenvalues,
    entropy,
    frobenius_spread,
    shannon_entropy,
    stable_rank,
    von_neumann_entropy,
)

if TYPE_CHECKING:
    from runner.context import Context

SPREADS = {
    "von_neumann": von_neumann_entropy,
    "frobenius": frobenius_spread,
    "shannon": shannon_entropy,
    "covariance": covariance_spread,
    "correlation": correlation_spread,
}


@dataclass(kw_only=True)
class VNE:
    """Cross-entropy minus a share of the von Neumann entropy of the input of the last linear layer."""

    coefficient: float = 0.02  # of the entropy in nats: above 0 it is spread (VNE+), below concentrated (VNE-)
    measure: Literal["von_neumann", "frobenius", "shannon", "covariance", "correlation"] = "von_neumann"

    paper: ClassVar[str] = "arXiv:2304.01434"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "The von Neumann entropy of a batch's autocorrelation steers the eigenvalues of a representation better than "
        "Frobenius norms, and with them rank, disentanglement and isotropy."
    )
    citation: ClassVar[str] = (
        "Kim, Kang, Hwang, Shin and Rhee. VNE: An Effective Method for Improving Deep Representation by Manipulating "
        "Eigenvalue Distribution. CVPR 2023."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    distributed: ClassVar[bool] = False  # the spectrum is that of the whole batch
    deviations: ClassVar[tuple[str, ...]] = (
        "the coefficient is a choice of this project: those of the paper's supervised tasks are not published",
        "eigenvalues of 0 are left out of value and gradient; the released nan-sum repairs the value alone",
        "a row of zeros gets a finite gradient, not one divided by 1e-12",
        "measure=correlation takes a batch with itself, where Barlow Twins has two views; measure=shannon is that of "
        "the units' shares of the squared activation",
        "domain generalisation, meta-learning and GANs are left out: their coefficients are not published",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy (0..1) and loss (nats, of the labels alone) on the test split, and of the representation of
        all of its images entropy (nats), effective_rank and stable_rank."""
        network = ctx.model()
        embedding, spread = Embedding(network), SPREADS[self.measure]

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            logits, representation = embedding(images)
            label_loss = cross_entropy(logits, labels, label_smoothing=ctx.recipe.label_smoothing)
            if self.coefficient == 0:
                return label_loss
            amount = spread(representation)
            ctx.log(spread=amount.detach())
            return label_loss - self.coefficient * amount

        fitted = fit(ctx, network, loss)
        spectrum = ctx.once("spectrum", lambda: eigenvalues(representations(ctx, network, "test")[0]).cpu())
        ctx.profile(network, "final")
        ctx.save_model(network)
        return test_metrics(ctx, network, fitted) | spectrum_metrics(spectrum)


def spectrum_metrics(values: Tensor) -> dict[str, float]:
    """Of eigenvalues (n,): entropy (nats), effective_rank exp(entropy) and stable_rank."""
    amount = entropy(values)
    return {
        "entropy": float(amount),
        "effective_rank": float(amount.exp()),
        "stable_rank": float(stable_rank(values)),
    }


@torch.no_grad()
def representations(ctx: Context, network: nn.Module, split: str) -> tuple[Tensor, Tensor]:
    """What the last linear layer takes (N, d) for the un-augmented images of a split, in evaluation mode, float32, and
    the labels (N,)."""
    embedding, training = Embedding(network), network.training
    network.eval()
    try:
        rows, labels = [], []
        for batch in ctx.batches(split, ctx.recipe.evaluation_batch_size, shuffle=False, augment=False).iterate(0):
            with ctx.autocast():
                rows.append(embedding(batch.images)[1].float())
            labels.append(batch.labels)
    finally:
        network.train(training)
    return torch.cat(rows), torch.cat(labels)
