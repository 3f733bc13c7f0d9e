"""CaiT for small images (Touvron et al., arXiv:2103.17239), in the size of arXiv:2112.13492.

Talking heads mix the logits of all heads before the softmax and the weights after it. LSA changes the logits before
the mixing; its mask is put behind it, because the mixing has both signs: minus infinity before it would give no number,
and a large negative value would turn all attention to the diagonal wherever a column of the matrix has a negative sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from runner.models.transformers import (
    AttentionMap,
    Locality,
    PatchEmbedding,
    Perceptron,
    check_tokens,
    merge_heads,
    patches_a_side,
    split_heads,
    without_diagonal,
    xavier_normal,
)

STRONG, WEAK = 0.1, 1e-5  # where the scale of a branch starts, up to the eighteenth layer and behind it
STRONG_LAYERS = 18


class TalkingMap(AttentionMap):
    """Attention whose logits are mixed over the heads by a learned matrix before the softmax."""

    def __init__(self, heads: int, scale: float, locality: Locality, *, masked: bool) -> None:
        super().__init__(heads, scale, locality, masked=masked and not locality.cait_mask_bug)
        self.zeroed = masked and locality.diagonal_mask and locality.cait_mask_bug
        self.mixing = nn.Parameter(torch.randn(heads, heads))

    def forward(self, products: Tensor, bias: Tensor | None = None) -> Tensor:
        logits = products * self.scale[:, None, None]
        if self.zeroed:
            logits = without_diagonal(logits, -1e-9)
        return self.normalised(torch.einsum("bhnm,hg->bgnm", logits, self.mixing))


class TalkingHeads(nn.Module):
    """Attention of tokens (B,N,width) to a context (B,M,width), by default themselves."""

    def __init__(self, width: int, heads: int, head_width: int, locality: Locality, *, masked: bool) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.queries = nn.Linear(width, inner, bias=False)
        self.keys_values = nn.Linear(width, 2 * inner, bias=False)
        self.map = TalkingMap(heads, head_width**-0.5, locality, masked=masked)
        self.mixing = nn.Parameter(torch.randn(heads, heads))
        self.projection = nn.Linear(inner, width)

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        queries = split_heads(self.queries(tokens), self.heads)
        parts = self.keys_values(tokens if context is None else context).chunk(2, -1)
        keys, values = (split_heads(part, self.heads) for part in parts)
        weights = torch.einsum("bhnm,hg->bgnm", self.map(queries @ keys.transpose(-2, -1)), self.mixing)
        return self.projection(merge_heads(weights @ values))


class ScaledBlock(nn.Module):
    """Attention and perceptron beside residuals, each scaled by channel (LayerScale) from ``scale`` on."""

    def __init__(self, width: int, attention: nn.Module, hidden: int, drop_path: float, scale: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), attention
        self.scale1 = nn.Parameter(torch.full((width,), scale))
        self.norm2, self.perceptron = nn.LayerNorm(width), Perceptron(width, hidden)
        self.scale2 = nn.Parameter(torch.full((width,), scale))
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        tokens = tokens + self.drop_path(self.scale1 * self.attention(self.norm1(tokens), context))
        return tokens + self.drop_path(self.scale2 * self.perceptron(self.norm2(tokens)))


class CaiT(nn.Module):
    """Images (B,C,H,W) to logits (B, num_classes): patches among themselves first, then a class token that reads them.

    Args:
        patch_size: pixels; None: an eighth of the image's side.
        depth: blocks of the patches.
        class_depth: blocks of the class token.
        hidden: units of the perceptrons.
        drop_path: probability that a branch is left out for an image, the same in all blocks.
        locality: fields of ``Locality``; None: the plain network. Class blocks take the temperature, not the mask.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        image_size: int,
        *,
        patch_size: int | None = None,
        width: int = 192,
        depth: int = 24,
        class_depth: int = 2,
        heads: int = 4,
        head_width: int = 64,
        hidden: int = 384,
        drop_path: float = 0.1,
        locality: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        local = Locality(**locality or {})
        size, side = patches_a_side("cait", image_size, patch_size, 8)
        check_tokens("cait", side**2, local)

        def block(layer: int, masked: bool) -> ScaledBlock:
            attention = TalkingHeads(width, heads, head_width, local, masked=masked)
            return ScaledBlock(width, attention, hidden, drop_path, STRONG if layer <= STRONG_LAYERS else WEAK)

        self.embedding = PatchEmbedding(in_channels, width, size, local)
        self.positions = nn.Parameter(torch.randn(1, side**2, width))
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.patch_blocks = nn.ModuleList(block(layer, True) for layer in range(1, depth + 1))
        self.class_blocks = nn.ModuleList(block(layer, False) for layer in range(1, class_depth + 1))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        xavier_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.embedding(images) + self.positions
        for block in self.patch_blocks:
            patches = block(patches)
        token = self.class_token.expand(images.shape[0], -1, -1)
        for block in self.class_blocks:
            token = block(token, patches)
        return self.head(self.norm(token[:, 0]))
