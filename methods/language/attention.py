"""Attention of several heads as layers that a sequence encoder takes: softmax, and collisions of hashes (YOSO).

Each layer maps queries, keys and values (B, heads, n, d) and a mask (B, n), False where a token is padding, to
(B, heads, n, d).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention

from runner.methods.language.collisions import (
    Backward,
    draw_directions,
    draw_signs,
    expected_attention,
    fast_projections,
    hash_codes,
    sampled_attention,
)


class SoftmaxAttention(nn.Module):
    """softmax(Q K' / sqrt(d)) V, with dropout on the weights. Vaswani et al. 2017, equation 1."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None], dropout_p=dropout)


class CollisionAttention(nn.Module):
    """YOSO: the weights are collisions of hashes, and each output row has unit norm (or is 0).

    Args:
        hashes: drawn anew in every forward call, for each head and sequence its own; null: their expectation.
        evaluation_hashes: in evaluation mode; null: ``hashes``.
        bits: hyperplanes of a hash.
        backward: see ``sampled_attention``; the expectation takes bound with ``SHRINK``'s autograd for collided.
        fast: Hadamard transforms instead of Gaussian directions.
        window: of a depthwise convolution of the values, added to the output; odd; null: none.
    """

    def __init__(
        self,
        heads: int,
        *,
        hashes: int | None,
        bits: int,
        backward: Backward = "bound",
        evaluation_hashes: int | None = None,
        fast: bool = False,
        unit_output: bool = True,
        window: int | None = None,
    ) -> None:
        super().__init__()
        self.hashes, self.bits, self.backward = hashes, bits, backward
        self.evaluation_hashes = evaluation_hashes or hashes
        self.fast, self.unit_output = fast, unit_output
        self.convolution = None
        if window is not None:
            self.convolution = nn.Conv2d(heads, heads, (window, 1), padding=(window // 2, 0), bias=False, groups=heads)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        seen = mask[:, None, :, None].to(value.dtype)
        value = value * seen  # a key that adds nothing is a masked key
        query, key, flat = (part.flatten(0, 1) for part in (normalize(query, dim=-1), normalize(key, dim=-1), value))
        hashes = self.hashes if self.training else self.evaluation_hashes
        if hashes is None:
            found = expected_attention(query, key, flat, self.bits, bound=self.backward != "collided")
        else:
            codes = self._codes(torch.cat((query, key), 1), hashes).split(query.shape[1], dim=2)
            found = sampled_attention(query, key, flat, *codes, self.bits, self.backward)
        found = found.view_as(value) * seen
        if self.unit_output:
            found = normalize(found, dim=-1)
        return found if self.convolution is None else found + self.convolution(value)

    @torch.no_grad()
    def _codes(self, points: Tensor, hashes: int) -> Tensor:
        groups, _, width = points.shape
        if self.fast:
            width = 1 << (max(width, self.bits) - 1).bit_length()
            signs = draw_signs(groups, width, hashes, self.bits, points.device)
            return hash_codes(fast_projections(points, signs, hashes, self.bits), self.bits)
        return hash_codes(points @ draw_directions(groups, width, hashes * self.bits, points.device), self.bits)
