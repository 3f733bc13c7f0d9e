"""The U-Net that predicts noise: Ho, Jain and Abbeel 2020, arXiv:2006.11239, appendix B; names of ermongroup/ddim.

Its parameters have the names and shapes of the PyTorch networks that the DDIM repository released, so that those
weights load. Differences from the original TensorFlow network are theirs: no layer starts at zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.errors import UserError

LONGEST_PERIOD = 10_000.0  # of the embedding of time, over 2 pi


def embed_time(time: Tensor, size: int) -> Tensor:
    """Sines, then cosines of time (B,), which may be fractional: (B, size), periods from 2 pi on."""
    half = size // 2
    exponents = torch.arange(half, dtype=torch.float32, device=time.device) / (half - 1)
    angles = time.float()[:, None] * torch.exp(-math.log(LONGEST_PERIOD) * exponents)
    return torch.cat([angles.sin(), angles.cos()], 1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions behind group normalisation and SiLU; time is added between them."""

    def __init__(self, inputs: int, outputs: int, time_size: int, dropout: float, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.temb_proj = nn.Linear(time_size, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = hidden + self.temb_proj(F.silu(time))[:, :, None, None]
        hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden))))
        return hidden + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """Self-attention of one head over all places of a map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        query, key, value = (layer(normed).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj_out(mixed.transpose(1, 2).reshape(x.shape))


class UNet(nn.Module):
    """Images (B, in_channels, H, W) and time (B,) to noise of the same shape; H and W divide by 2^(levels - 1).

    Args:
        width: channels of the first level; level i has ``multipliers[i]`` times as many.
        blocks: residual blocks of a level on the way down; one more on the way up.
        attention_levels: levels whose blocks are followed by attention; the middle always has it.
        groups: of the normalisation.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention_levels: Sequence[int],
        dropout: float,
        groups: int,
        num_classes: int | None = None,  # every network of the zoo is given it
    ) -> None:
        super().__init__()
        self.width, self.blocks, self.levels = width, blocks, len(multipliers)
        time_size = 4 * width
        self.temb = nn.ModuleDict(
            {"dense": nn.ModuleList([nn.Linear(width, time_size), nn.Linear(time_size, time_size)])}
        )

        def level(inputs: Sequence[int], outputs: int, attend: bool) -> nn.ModuleDict:
            residual = [ResidualBlock(count, outputs, time_size, dropout, groups) for count in inputs]
            attention = [Attention(outputs, groups) for _ in inputs] if attend else []
            return nn.ModuleDict({"block": nn.ModuleList(residual), "attn": nn.ModuleList(attention)})

        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        widths = [width * multiplier for multiplier in multipliers]
        before = width
        kept = [width]  # channels of the maps that the way up is given
        for number, outputs in enumerate(widths):
            stage = level([before] + [outputs] * (blocks - 1), outputs, number in attention_levels)
            kept += [outputs] * blocks
            if number + 1 < self.levels:
                stage["downsample"] = nn.ModuleDict({"conv": nn.Conv2d(outputs, outputs, 3, stride=2)})
                kept.append(outputs)
            self.down.append(stage)
            before = outputs
        self.mid = nn.ModuleDict(
            {
                "block_1": ResidualBlock(before, before, time_size, dropout, groups),
                "attn_1": Attention(before, groups),
                "block_2": ResidualBlock(before, before, time_size, dropout, groups),
            }
        )
        for number in reversed(range(self.levels)):
            outputs = widths[number]
            inputs = [(before if place == 0 else outputs) + kept.pop() for place in range(blocks + 1)]
            stage = level(inputs, outputs, number in attention_levels)
            if number > 0:
                stage["upsample"] = nn.ModuleDict({"conv": nn.Conv2d(outputs, outputs, 3, padding=1)})
            self.up.insert(0, stage)
            before = outputs
        self.norm_out = nn.GroupNorm(groups, before, eps=1e-6)
        self.conv_out = nn.Conv2d(before, in_channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        step = 2 ** (self.levels - 1)
        if x.shape[2] % step or x.shape[3] % step:
            raise UserError(
                f"images of {x.shape[2]}x{x.shape[3]} pixels do not halve {self.levels - 1} times: "
                f"this U-Net needs dataset.image_size to be a multiple of {step}"
            )
        first, second = self.temb["dense"]
        time = second(F.silu(first(embed_time(time, self.width))))
        maps = [self.conv_in(x)]
        for stage in self.down:
            for place in range(self.blocks):
                maps.append(_stage_step(stage, place, maps[-1], time))
            if "downsample" in stage:
                maps.append(stage["downsample"]["conv"](F.pad(maps[-1], (0, 1, 0, 1))))
        hidden = self.mid["block_1"](maps[-1], time)
        hidden = self.mid["block_2"](self.mid["attn_1"](hidden), time)
        for stage in reversed(self.up):
            for place in range(self.blocks + 1):
                hidden = _stage_step(stage, place, torch.cat([hidden, maps.pop()], 1), time)
            if "upsample" in stage:
                hidden = stage["upsample"]["conv"](F.interpolate(hidden, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(hidden)))


def _stage_step(stage: nn.ModuleDict, place: int, x: Tensor, time: Tensor) -> Tensor:
    hidden = stage["block"][place](x, time)
    return stage["attn"][place](hidden) if len(stage["attn"]) else hidden
