"""PyramidNet of basic blocks for small images: the width grows with every block.

Han et al. 2017, arXiv:1610.02915, as ShakeDrop's code has it (imenurok/ShakeDrop; Yamada et al., arXiv:1802.02375).
Importing this module imports torch.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, flatten, nn

from runner.models.resnet import conv3x3

STEM = 16


def block_widths(depth: int, widening: int) -> list[int]:
    """Channels of the (depth - 2) / 2 blocks: 16 and equal parts of ``widening``, rounded up."""
    blocks = (depth - 2) // 6 * 3
    return [STEM + -(-number * widening // blocks) for number in range(1, blocks + 1)]


class PyramidNet(nn.Module):
    """Images (B, in_channels, H, W) to logits (B, num_classes): three groups of (depth - 2) / 6 blocks.

    No ReLU follows the first normalisation. Kernels: variance 2 / fan-out.
    """

    def __init__(self, num_classes: int, in_channels: int, depth: int = 110, widening: int = 270) -> None:
        super().__init__()
        widths = block_widths(depth, widening)
        if not widths:
            raise ValueError(f"depth={depth}: a PyramidNet has 6n + 2 layers, 8 or more")
        self.conv1, self.bn1 = conv3x3(in_channels, STEM), nn.BatchNorm2d(STEM)
        self.stages = ["layer1", "layer2", "layer3"]
        channels, size = STEM, len(widths) // 3
        for group, stage in enumerate(self.stages):
            blocks = []
            for index, width in enumerate(widths[group * size : (group + 1) * size]):
                blocks.append(PyramidBlock(channels, width, 2 if group and index == 0 else 1))
                channels = width
            self.add_module(stage, nn.Sequential(*blocks))
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.bn1(self.conv1(images))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.fc(flatten(self.avgpool(self.relu(self.bn(x))), 1))


class PyramidBlock(nn.Module):
    """Normalisation, 3x3 convolution, normalisation, ReLU, 3x3 convolution, normalisation; the shortcut is halved by
    averaging and filled up with channels of zeros."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(width, width)
        self.bn3 = nn.BatchNorm2d(width)
        self.missing = width - in_channels
        self.downsample = None if stride == 1 else nn.AvgPool2d(2, ceil_mode=True)

    def last_normalisation(self) -> nn.BatchNorm2d:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn3(self.conv2(self.relu(self.bn2(self.conv1(self.bn1(x))))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return residual + F.pad(shortcut, (0, 0, 0, 0, 0, self.missing))
