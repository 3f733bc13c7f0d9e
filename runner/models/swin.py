"""Swin for small images (Liu et al., arXiv:2103.14030), in the size of arXiv:2112.13492."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from runner.errors import UserError
from runner.models.transformers import (
    Attention,
    Block,
    Locality,
    PatchEmbedding,
    as_maps,
    check_tokens,
    cut_patches,
    halved,
    patches_a_side,
    rising,
)

OTHER_REGION = -100.0  # added to the logits of tokens that only the cyclic shift brought into one window


def cut_windows(tokens: Tensor, window: int) -> Tensor:
    """Tokens (B, H, W, D) -> (B * windows, window^2, D), the windows of an image row by row."""
    batch, height, width, channels = tokens.shape
    cells = tokens.reshape(batch, height // window, window, width // window, window, channels)
    return cells.transpose(2, 3).reshape(-1, window**2, channels)


def join_windows(windows: Tensor, window: int, side: int) -> Tensor:
    """The inverse of ``cut_windows`` for square maps: (B, side, side, D)."""
    count = side // window
    cells = windows.reshape(-1, count, count, window, window, windows.shape[-1])
    return cells.transpose(2, 3).reshape(-1, side, side, windows.shape[-1])


def relative_positions(window: int) -> Tensor:
    """(window^2, window^2) int64: the row of the bias table of each pair of tokens in a window."""
    places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    rows, columns = (places[:, None] - places[None, :] + window - 1).unbind(-1)
    return rows * (2 * window - 1) + columns


def shift_mask(side: int, window: int, shift: int) -> Tensor:
    """(windows, window^2, window^2): 0 for tokens of one region, else ``OTHER_REGION``."""
    places = torch.arange(side)
    strip = (places >= side - window).long() + (places >= side - shift).long()
    regions = cut_windows((3 * strip[:, None] + strip[None, :])[None, :, :, None], window)[..., 0]
    return (regions[:, None, :] != regions[:, :, None]) * OTHER_REGION


class WindowAttention(nn.Module):
    """Attention of tokens (B, side^2, width) inside windows, which in shifted blocks lie half a window off."""

    def __init__(self, width: int, heads: int, side: int, window: int, shift: int, locality: Locality) -> None:
        super().__init__()
        self.side, self.window, self.shift = side, window, shift
        self.attention = Attention(width, heads, locality, bias=True)
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        self.register_buffer("relative", relative_positions(window), persistent=False)
        self.register_buffer("mask", shift_mask(side, window, shift) if shift else None, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        maps = tokens.unflatten(1, (self.side, self.side))
        if self.shift:
            maps = maps.roll((-self.shift, -self.shift), (1, 2))
        windows = self.attention(cut_windows(maps, self.window), self.bias(tokens.shape[0]))
        maps = join_windows(windows, self.window, self.side)
        if self.shift:
            maps = maps.roll((self.shift, self.shift), (1, 2))
        return maps.flatten(1, 2)

    def bias(self, images: int) -> Tensor:
        """What is added to the logits: of the relative positions and, in shifted blocks, of the regions."""
        bias = self.bias_table[self.relative].permute(2, 0, 1)
        return bias if self.mask is None else (bias + self.mask[:, None]).repeat(images, 1, 1, 1)


class Merging(nn.Module):
    """2x2 tokens (B, side^2, width) become one of twice the width: normalised, then projected."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.projection = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.projection(self.norm(cut_patches(as_maps(tokens), 2)))


class ShiftedMerging(nn.Module):
    """The same by shifted patch tokenization."""

    def __init__(self, width: int, locality: Locality) -> None:
        super().__init__()
        self.patches = PatchEmbedding(width, 2 * width, 2, locality)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.patches(as_maps(tokens))


class NormalisedPatches(nn.Module):
    """Patches of images (B,C,H,W) projected, then normalised: (B, N, width)."""

    def __init__(self, channels: int, width: int, size: int) -> None:
        super().__init__()
        self.projection, self.norm = nn.Conv2d(channels, width, size, stride=size), nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.projection(images).flatten(2).transpose(1, 2))


class Swin(nn.Module):
    """Images (B,C,H,W) to logits (B, num_classes), by the mean over the last tokens.

    Args:
        patch_size: pixels; None: a sixteenth of the image's side.
        width: of the first stage; it doubles at every merging.
        depths: blocks of each stage, every second one with shifted windows.
        heads: of each stage.
        window: tokens a side; a stage of no more tokens a side is one window, never shifted.
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
        patch_size: int | None = None,
        width: int = 96,
        depths: Sequence[int] = (2, 6, 4),
        heads: Sequence[int] = (3, 6, 12),
        window: int = 4,
        perceptron_ratio: int = 2,
        drop_path: float = 0.1,
        locality: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        local = Locality(**locality or {})
        size, side = patches_a_side("swin", image_size, patch_size, 16)
        if local.shifted:
            self.embedding: nn.Module = PatchEmbedding(in_channels, width, size, local)
        else:
            self.embedding = NormalisedPatches(in_channels, width, size)
        self.positions = nn.Parameter(torch.zeros(1, side**2, width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        drops = iter(rising(drop_path, sum(depths)))
        layers: list[nn.Module] = []
        for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            if stage > 0:
                pooled = local.shifted and local.shift_pooling
                layers.append(ShiftedMerging(width, local) if pooled else Merging(width))
                side, width = halved("swin", side), 2 * width
            here = min(window, side)
            check_tokens("swin", here**2, local)
            if side % here:
                raise UserError(
                    f"model=swin: a map of {side}x{side} tokens is no whole number of windows of {here}x{here}; "
                    "set model.arguments.window, model.arguments.patch_size or dataset.image_size"
                )
            for number in range(depth):
                shift = window // 2 if number % 2 and side > window else 0
                attention = WindowAttention(width, count, side, here, shift, local)
                layers.append(Block(width, attention, perceptron_ratio * width, next(drops)))
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.layers(self.embedding(images) + self.positions)
        return self.head(self.norm(tokens).mean(1))
