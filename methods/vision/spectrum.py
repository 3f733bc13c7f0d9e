"""The eigenvalue spectrum of a batch of representations, and what measures how far it is spread.

Kim et al., CVPR 2023, arXiv:2304.01434. A batch H (N, d) gives rows Z of length 1 and the autocorrelation
C = Z^T Z / N (d, d), not centred: its eigenvalues are not negative and sum to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runner.models.weights import head_of

SMALLEST = 1e-12  # a norm or an eigenvalue below counts as zero


def unit_rows(batch: Tensor) -> Tensor:
    """Rows (N, d) divided by their Euclidean norms, in float32 at least. A row of zeros stays one, and its gradient is
    that of the row undivided, where a division by the smallest norm would make it huge."""
    batch = batch if batch.dtype == torch.float64 else batch.float()
    norms = torch.linalg.vector_norm(batch, dim=1, keepdim=True)
    return batch / torch.where(norms > SMALLEST, norms, torch.ones_like(norms))


def autocorrelation(rows: Tensor) -> Tensor:
    """C = Z^T Z / N (d, d) of unit rows Z (N, d)."""
    return rows.T @ rows / len(rows)


def eigenvalues(batch: Tensor) -> Tensor:
    """The min(N, d) largest eigenvalues of C, falling: squared singular values of Z / sqrt(N).

    Never computed in half precision.
    """
    with torch.autocast(batch.device.type, enabled=False):
        rows = unit_rows(batch)
        return torch.linalg.svdvals(rows / len(rows) ** 0.5).square()


def entropy(shares: Tensor) -> Tensor:
    """- sum p log p in nats of shares (n,), with 0 log 0 = 0 in value and gradient."""
    positive = shares > SMALLEST
    safe = torch.where(positive, shares, torch.ones_like(shares))
    return -(safe * safe.log()).sum()


def von_neumann_entropy(batch: Tensor) -> Tensor:
    """S(C) of a batch (N, d), 0 .. log min(N, d) nats; exp(S) is the effective rank, at most the rank of C."""
    return entropy(eigenvalues(batch))


def stable_rank(values: Tensor) -> Tensor:
    """The sum of eigenvalues over the largest one, 1 .. rank."""
    return values.sum() / values.max()


def frobenius_spread(batch: Tensor) -> Tensor:
    """- ||C - I / d||^2, at most 0: the distance of Frobenius norms to the isotropic spectrum."""
    matrix = autocorrelation(unit_rows(batch))
    return -(matrix - torch.eye(len(matrix), device=batch.device, dtype=matrix.dtype) / len(matrix)).square().sum()


def shannon_entropy(batch: Tensor) -> Tensor:
    """Entropy of the diagonal of C, the units' shares of the squared activation: S(C) where units do not correlate."""
    return entropy(unit_rows(batch).square().mean(0))


def covariance_spread(batch: Tensor) -> Tensor:
    """Minus the covariance term of VICReg (Bardes et al., arXiv:2105.04906, eq. 4): off-diagonal squares over d."""
    centred = batch.float() - batch.float().mean(0)
    return -_off_diagonal_squares(centred.T @ centred / (len(batch) - 1)) / batch.shape[1]


def correlation_spread(batch: Tensor) -> Tensor:
    """Minus the redundancy term of Barlow Twins (Zbontar et al., arXiv:2103.03230, eq. 1), of a batch with itself:
    off-diagonal squares of the correlations. A constant unit correlates with none."""
    centred = batch.float() - batch.float().mean(0)
    columns = unit_rows(centred.T)
    return -_off_diagonal_squares(columns @ columns.T)


def _off_diagonal_squares(matrix: Tensor) -> Tensor:
    return matrix.square().sum() - matrix.diagonal().square().sum()


class Embedding:
    """Runs a network and returns its logits (B, classes) and the input (B, d) of its last linear layer."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.head: nn.Linear = network.get_submodule(head_of(network))

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        try:
            logits = self.network(images)
        finally:
            handle.remove()
        return logits, found[0].flatten(1)
