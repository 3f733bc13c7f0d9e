"""How far drawn images are from held-out ones, in principal components of the training images.

Frechet distance: Heusel et al. 2017, arXiv:1706.08500, eq. 6, there in Inception features. Squared maximum mean
discrepancy: Gretton et al. 2012, eq. 3, unbiased; Gaussian kernel as wide as the median distance of held-out images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 1024  # of a kernel matrix, computed at once


@dataclass(frozen=True)
class Components:
    """Principal components of images: ``mean`` (D,) and orthonormal ``directions`` (K, D), the largest first."""

    mean: Tensor
    directions: Tensor

    @classmethod
    def of(cls, images: Tensor, count: int) -> Components:
        """The first ``count`` of images (N, ...), fewer where the images span fewer."""
        flat = images.flatten(1).double()
        variances, directions = torch.linalg.eigh(torch.cov(flat.T))
        spanned = int((variances > variances[-1] * 1e-10).sum())
        return cls(flat.mean(0), directions.T.flip(0)[: min(count, spanned)])

    def features(self, images: Tensor) -> Tensor:
        """(N, K) float64."""
        return (images.flatten(1).to(self.mean) - self.mean) @ self.directions.T


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared 2-Wasserstein distance of the Gaussians fitted to features (N, K) and (M, K); 0 or more."""
    means = (first.mean(0) - second.mean(0)).square().sum()
    one, other = torch.cov(first.T).reshape(2 * first.shape[1:]), torch.cov(second.T).reshape(2 * first.shape[1:])
    values, vectors = torch.linalg.eigh(one)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    return max(0.0, (means + one.trace() + other.trace() - 2 * shared).item())


def squared_mmd(samples: Tensor, held_out: Tensor) -> float:
    """Unbiased, so that it can fall below 0; features (N, K) and (M, K)."""
    width = torch.pdist(held_out[:ROWS]).median().item()
    within = [
        (_kernel_sum(item, item, width) - len(item)) / (len(item) * (len(item) - 1)) for item in (samples, held_out)
    ]
    between = _kernel_sum(samples, held_out, width) / (len(samples) * len(held_out))
    return within[0] + within[1] - 2 * between


def _kernel_sum(first: Tensor, second: Tensor, width: float) -> float:
    parts = (torch.cdist(rows, second).square() for rows in first.split(ROWS))
    return sum(torch.exp(-part / (2 * width**2)).sum().item() for part in parts)
