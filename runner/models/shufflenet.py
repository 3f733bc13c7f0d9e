"""ShuffleNetV1, x1 with three groups, as the distillation papers have it for 32x32 images.

Zhang et al. 2018, arXiv:1707.01083; form for small images: Tian et al. 2020 (arXiv:1910.10699), CRD's benchmark, whose
student has 949,258 parameters at 100 classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = ((240, 4), (480, 8), (960, 4))  # channels and blocks; the first block of each halves the map
STEM = 24
GROUPS = 3
BOTTLENECK = 4  # channels of a block over those inside it


class ShuffleUnit(nn.Module):
    """1x1 convolution in groups, shuffle, 3x3 depthwise, 1x1 in groups; beside it the input, pooled where it halves.

    A halving unit joins both along the channels, so that its own part is what the stage adds. Unlike in the paper a
    ReLU follows the depthwise convolution (as in the benchmark's code).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        own = outputs - inputs if stride == 2 else outputs
        inner = own // BOTTLENECK
        self.halves = stride == 2
        self.first_groups = 1 if inputs == STEM else GROUPS
        self.conv1 = nn.Conv2d(inputs, inner, 1, groups=self.first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, own, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(own)

    def forward(self, x: Tensor) -> Tensor:
        own = shuffle(F.relu(self.bn1(self.conv1(x))), self.first_groups)
        own = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(own)))))
        return F.relu(torch.cat([own, F.avg_pool2d(x, 3, 2, 1)], 1) if self.halves else own + x)


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Channels (B, C, H, W) of ``groups`` groups, dealt out in turn."""
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


class ShuffleNetV1(nn.Module):
    """Images (B, in_channels, H, W) to logits (B, num_classes); 32x32 images end at 4x4."""

    stages = ("layer1", "layer2", "layer3")

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        inputs = STEM
        for name, (outputs, blocks) in zip(self.stages, STAGES, strict=True):
            units = [ShuffleUnit(inputs, outputs, 2), *(ShuffleUnit(outputs, outputs, 1) for _ in range(blocks - 1))]
            setattr(self, name, nn.Sequential(*units))
            inputs = outputs
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))
