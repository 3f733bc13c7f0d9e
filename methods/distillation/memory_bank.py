"""The memory of contrastive distillation: one embedding a training image and network, and negatives out of it.

Tian et al. 2020, arXiv:1910.10699, section 3; HobbitLong/RepDistiller.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

EPSILON = 1e-7


class MemoryBank(nn.Module):
    """Unit vectors (N, D) of N training images, moving averages of what ``update`` is given; a buffer, no parameters.

    ``normaliser`` is the constant Z of the scores, set by the first batch.
    """

    def __init__(self, count: int, width: int, momentum: float) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width / 3)
        self.register_buffer("vectors", torch.empty(count, width).uniform_(-bound, bound))
        self.register_buffer("normaliser", torch.tensor(-1.0))
        self.momentum = momentum

    def scores(self, embeddings: Tensor, rows: Tensor, temperature: float) -> Tensor:
        """exp(<a, b> / temperature) / Z (B, K+1) of embeddings (B, D) with the vectors at ``rows`` (B, K+1).

        Z = mean of the first batch's scores times N.
        """
        if 16 * rows.shape[1] > len(self.vectors):  # one product with all beats fetching most of them for each image
            products = (embeddings @ self.vectors.T).gather(1, rows)
        else:
            products = (self.vectors[rows] @ embeddings[:, :, None]).squeeze(2)
        scores = (products / temperature).exp()
        first = scores.detach().mean() * len(self.vectors)
        self.normaliser.copy_(torch.where(self.normaliser < 0, first, self.normaliser))
        return scores / self.normaliser.clone()

    @torch.no_grad()
    def update(self, embeddings: Tensor, index: Tensor) -> None:
        """The vectors at ``index`` (B,) move towards ``embeddings`` (B, D)."""
        moved = self.momentum * self.vectors[index] + (1 - self.momentum) * embeddings
        # a new tensor: the backward pass of the scores still needs the old one
        self.vectors = self.vectors.index_copy(0, index, nn.functional.normalize(moved))


def contrast(scores: Tensor, count: int) -> Tensor:
    """-[log p/(p + K/N) + sum over K negatives of log (K/N)/(p + K/N)] / B; scores (B, K+1), the positive first.

    ``count`` is N. arXiv:1910.10699, eq. 18.
    """
    noise = (scores.shape[1] - 1) / count
    positive, negative = scores[:, 0], scores[:, 1:]
    found = (positive / (positive + noise + EPSILON)).log().sum() + (noise / (negative + noise + EPSILON)).log().sum()
    return -found / len(scores)


class NegativeSampler:
    """Draws rows of images of other classes, uniformly with replacement, from torch's global generator."""

    def __init__(self, labels: Tensor) -> None:
        self.order = torch.argsort(labels, stable=True)
        self.counts = torch.bincount(labels)
        self.starts = self.counts.cumsum(0) - self.counts

    def draw(self, labels: Tensor, count: int) -> Tensor:
        """(B, count) rows for labels (B,)."""
        own, start = self.counts[labels][:, None], self.starts[labels][:, None]
        drawn = torch.rand(len(labels), count, device=labels.device, dtype=torch.float64)
        places = (drawn * (len(self.order) - own)).long()
        return self.order[places + own * (places >= start)]
