"""T2T-ViT for small images (Yuan et al., arXiv:2101.11986), in the size of arXiv:2112.13492."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.models.transformers import (
    DIRECTIONS,
    Attention,
    Block,
    Locality,
    Perceptron,
    as_maps,
    check_tokens,
    rising,
    with_class_token,
    with_shifted_copies,
)


def soft_split(maps: Tensor) -> Tensor:
    """Overlapping 3x3 patches of maps (B,C,H,W) at stride 2, zeros around: (B, ceil(H/2) ceil(W/2), 9C)."""
    return F.unfold(maps, 3, padding=1, stride=2).transpose(1, 2)


def sinusoids(count: int, width: int) -> Tensor:
    """(1, count, width): sines in even columns, cosines in odd ones, of position / 10000^(2 floor(j/2) / width)."""
    rates = 10000.0 ** (-2 * (torch.arange(width, dtype=torch.float64) // 2) / width)
    angles = torch.arange(count, dtype=torch.float64)[:, None] * rates
    table = torch.where(torch.arange(width) % 2 == 0, angles.sin(), angles.cos())
    return table.float()[None]


class TokenTransformer(nn.Module):
    """Tokens (B,N,inputs) to (B,N,width) by one head: its values and what they mix to, then a perceptron beside it.

    The logits are scaled by the width of the inputs, as the code of T2T-ViT does, not by the head's.
    """

    def __init__(self, inputs: int, width: int, locality: Locality) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(inputs)
        self.attention = Attention(inputs, 1, locality, inner=width, outputs=width, scale=inputs**-0.5)
        self.norm2, self.perceptron = nn.LayerNorm(width), Perceptron(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed, values = self.attention.mixed(self.norm1(tokens))
        tokens = values + self.attention.projection(mixed)
        return tokens + self.perceptron(self.norm2(tokens))


class AttentionBesideInput(Attention):
    """Attention that adds its own input, the normalised tokens, once more."""

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        return super().forward(tokens, bias) + tokens


class T2T(nn.Module):
    """Images (B,C,H,W) to logits (B, num_classes) by a class token; overlapping patches are tokens by stages.

    With shifted patches the images get their copies before the first split, one pixel away, and nothing else.

    Args:
        splits: soft splits, each halving the sides, with a token transformer between them; None: so many that 32 and 64
            pixels end at 8x8 tokens, at least two.
        token_width: of the token transformers.
        perceptron_ratio: hidden units of the perceptrons, in widths.
        drop_path: probability that a branch of the last block is left out for an image, rising linearly from 0.
        locality: fields of ``Locality``; None: the plain network.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        image_size: int,
        *,
        splits: int | None = None,
        token_width: int = 64,
        width: int = 256,
        depth: int = 12,
        heads: int = 4,
        perceptron_ratio: int = 2,
        drop_path: float = 0.1,
        locality: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.locality = Locality(**locality or {})
        splits = splits or max(2, round(math.log2(image_size / 8)))
        side, inputs = image_size, 9 * in_channels * self.locality.copies()
        transformers = []
        for _ in range(splits - 1):
            side = -(-side // 2)
            check_tokens("t2t", side**2, self.locality)
            transformers.append(TokenTransformer(inputs, token_width, self.locality))
            inputs = 9 * token_width
        side = -(-side // 2)
        self.token_transformers = nn.ModuleList(transformers)
        self.unused_norm = nn.LayerNorm(inputs).requires_grad_(False)  # the released network's size counts it
        self.embedding = nn.Linear(inputs, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", sinusoids(1 + side**2, width), persistent=False)
        drops = rising(drop_path, depth)
        self.blocks = nn.Sequential(
            *[
                Block(width, AttentionBesideInput(width, heads, self.locality), perceptron_ratio * width, drop)
                for drop in drops
            ]
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        local = self.locality
        if local.shifted:
            images = with_shifted_copies(images, local.pixels(2), DIRECTIONS[local.shifts])
        tokens = soft_split(images)
        for transformer in self.token_transformers:
            tokens = soft_split(as_maps(transformer(tokens)))
        tokens = with_class_token(self.embedding(tokens), self.class_token) + self.positions
        return self.head(self.norm(self.blocks(tokens))[:, 0])
