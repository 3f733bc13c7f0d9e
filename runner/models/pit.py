"""PiT for small images (Heo et al., arXiv:2103.16302), in the size of arXiv:2112.13492."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from runner.models.transformers import (
    Attention,
    Block,
    Locality,
    PatchEmbedding,
    as_maps,
    halved,
    patches_a_side,
    with_class_token,
    xavier_normal,
)


class Pooling(nn.Module):
    """Half as many tokens a side, twice as wide; the class token has a projection of its own.

    By a depthwise 3x3 convolution of stride 2 and a 1x1 convolution, or by shifted patches of 2x2 tokens.
    """

    def __init__(self, width: int, locality: Locality) -> None:
        super().__init__()
        if locality.shifted and locality.shift_pooling:
            self.maps = PatchEmbedding(width, 2 * width, 2, locality)
        else:
            self.maps = nn.Sequential(
                nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, groups=width),
                nn.Conv2d(2 * width, 2 * width, 1),
                nn.Flatten(2),
                Transposed(),
            )
        self.class_token = nn.Linear(width, 2 * width)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat([self.class_token(tokens[:, :1]), self.maps(as_maps(tokens[:, 1:]))], 1)


class Transposed(nn.Module):
    """(B,D,N) -> (B,N,D)"""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.transpose(1, 2)


class PiT(nn.Module):
    """Images (B,C,H,W) to logits (B, num_classes), by a class token; the maps shrink between the stages.

    Args:
        patch_size: pixels; None: a sixteenth of the image's side.
        width: of the first stage; it doubles at every pooling.
        depths: blocks of each stage.
        heads: of each stage; a head has the width that it has in the first one.
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
        width: int = 96,
        depths: Sequence[int] = (2, 6, 4),
        heads: Sequence[int] = (2, 4, 8),
        perceptron_ratio: int = 2,
        drop_path: float = 0.1,
        locality: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        local = Locality(**locality or {})
        size, side = patches_a_side("pit", image_size, patch_size, 16)
        if local.shifted:
            self.embedding: nn.Module = PatchEmbedding(in_channels, width, size, local)
        else:
            self.embedding = nn.Sequential(
                nn.Conv2d(in_channels, width, size, stride=size), nn.Flatten(2), Transposed()
            )
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 1 + side**2, width))
        head_width = width // heads[0]
        layers: list[nn.Module] = []
        for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            if stage > 0:
                layers.append(Pooling(width, local))
                side, width = halved("pit", side), 2 * width
            for _ in range(depth):
                attention = Attention(width, count, local, inner=head_width * count)
                layers.append(Block(width, attention, perceptron_ratio * width, drop_path))
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        xavier_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        tokens = with_class_token(self.embedding(images), self.class_token) + self.positions
        return self.head(self.norm(self.layers(tokens)[:, 0]))
