"""Losses between the relations inside a batch. s (B, D) is the student's embeddings, t (B, E) the teacher's.

All return a scalar; widths D and E may differ but where said otherwise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 1e-12  # of squared distances


def distances(embeddings: Tensor, *, zero_diagonal: bool) -> Tensor:
    """Euclidean distances (B, B) over their mean. With ``zero_diagonal`` the diagonal is 0 and the mean runs over the
    B(B-1) others; else the diagonal is the root of the smallest value, and it counts. Park et al. 2019,
    arXiv:1904.05068, eq. 3."""
    squares = embeddings.square().sum(1)
    squared = (squares[:, None] + squares - 2 * embeddings @ embeddings.T).clamp_min(SMALLEST)
    found = squared.sqrt()
    if zero_diagonal:
        found = found * (1 - torch.eye(len(found), device=found.device))
    positive = (found.detach() > 0).sum().clamp_min(1)
    return found / (found.sum() / positive).clamp_min(SMALLEST)


def angles(embeddings: Tensor) -> Tensor:
    """Cosines (B, B, B) of the angles at the first index between the other two. arXiv:1904.05068, eq. 5."""
    directions = F.normalize(embeddings[None] - embeddings[:, None], dim=2)
    return directions @ directions.transpose(1, 2)


def distance_difference(s: Tensor, t: Tensor, *, zero_diagonal: bool) -> Tensor:
    """Huber loss (threshold 1) of ``distances``, mean over all B^2 pairs."""
    return F.smooth_l1_loss(distances(s, zero_diagonal=zero_diagonal), distances(t, zero_diagonal=zero_diagonal))


def angle_difference(s: Tensor, t: Tensor) -> Tensor:
    """Huber loss (threshold 1) of ``angles``, mean over all B^3 triples."""
    return F.smooth_l1_loss(angles(s), angles(t))


def similarity_difference(s: Tensor, t: Tensor) -> Tensor:
    """||G_s - G_t||_F^2 / B^2, G the inner products (B, B) with rows of unit length; s and t (B, ...) are flattened.

    Tung and Mori 2019, arXiv:1907.09682, eq. 4.
    """
    first, second = (F.normalize(item.flatten(1) @ item.flatten(1).T) for item in (s, t))
    return (first - second).square().mean()


def probability_difference(s: Tensor, t: Tensor, epsilon: float = 1e-7) -> Tensor:
    """Mean over all B^2 entries of p_t log(p_t / p_s), p the cosines mapped to 0..1 with rows of sum 1.

    Passalis and Tefas 2018, arXiv:1803.10837, eq. 7.
    """

    def probabilities(embeddings: Tensor) -> Tensor:
        units = embeddings / (embeddings.norm(dim=1, keepdim=True) + epsilon)
        similar = (units @ units.T + 1) / 2
        return similar / similar.sum(1, keepdim=True)

    first, second = probabilities(s), probabilities(t)
    return (second * ((second + epsilon) / (first + epsilon)).log()).mean()


def neighbour_correlation(s: Tensor, t: Tensor) -> Tensor:
    """With d = |s - t|, the mean over the B-1 neighbours in the batch of <d_i, d_{i+1}>; D = E. Peng et al. 2019,
    arXiv:1904.01802, as the authors' code has it."""
    difference = (s - t).abs()
    return (difference[:-1] * difference[1:]).sum(1).mean()
