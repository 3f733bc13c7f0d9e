"""ViT for small images (Dosovitskiy et al., arXiv:2010.11929), in the size of arXiv:2112.13492."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from runner.models.transformers import (
    Attention,
    Block,
    Locality,
    PatchEmbedding,
    patches_a_side,
    with_class_token,
    xavier_normal,
)


class ViT(nn.Module):
    """Images (B,C,H,W) to logits (B, num_classes), by a class token.

    Args:
        patch_size: pixels; None: an eighth of the image's side.
        perceptron_ratio: hidden units of the perceptrons, in widths.
        drop_path: probability that a branch is left out for an image, the same in all blocks.
        locality: fields of ``Locality``; None: the plain network.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        image_size: int,
        *,
        patch_size: int | None = None,
        width: int = 192,
        depth: int = 9,
        heads: int = 12,
        perceptron_ratio: int = 2,
        drop_path: float = 0.1,
        locality: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        local = Locality(**locality or {})
        size, side = patches_a_side("vit", image_size, patch_size, 8)
        self.embedding = PatchEmbedding(in_channels, width, size, local)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 1 + side**2, width))
        self.blocks = nn.Sequential(
            *[Block(width, Attention(width, heads, local), perceptron_ratio * width, drop_path) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        xavier_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        tokens = with_class_token(self.embedding(images), self.class_token) + self.positions
        return self.head(self.norm(self.blocks(tokens)[:, 0]))
