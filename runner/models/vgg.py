"""VGG networks for small images: 3x3 convolutions with batch normalisation, pooling, and one linear layer.

Simonyan and Zisserman 2015, arXiv:1409.1556, whose configurations B (13) and D (16) give the widths, without the two
hidden linear layers. Importing this module imports torch; runner.models names the networks without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class VGGPlan:
    """Widths of the convolutions of every block, whether the last blocks are pooled, and the side before the linear."""

    blocks: Sequence[Sequence[int]]
    pooled: int  # so many blocks, from the first, end with 2x2 max-pooling
    side: int  # what the last feature maps are averaged to


PLANS = {
    # Four convolutions and a linear layer, for checks on two cores
    "vgg5_narrow": VGGPlan(((16, 16), (32, 32)), 2, 1),
    # VGG-Small of the quantization papers (Zhang et al. 2018, LQ-Nets, arXiv:1807.10029): 32x32 images end at 4x4
    "vgg7": VGGPlan(((128, 128), (256, 256), (512, 512)), 3, 4),
    # The pair of the distillation papers (Tian et al. 2020, arXiv:1910.10699): the last two blocks stay at 4x4
    "vgg8": VGGPlan(((64,), (128,), (256,), (512,), (512,)), 3, 1),
    "vgg13": VGGPlan(((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)), 3, 1),
    # The one of the pruning papers (Li et al. 2017, arXiv:1608.08710, with a single linear layer)
    "vgg16": VGGPlan(((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)), 5, 1),
}


class VGG(nn.Module):
    """Images (B, in_channels, H, W), H and W at least 32, to logits (B, num_classes). ``plan`` is a name in PLANS."""

    def __init__(self, plan: str, *, num_classes: int, in_channels: int):
        super().__init__()
        layout, layers, channels = PLANS[plan], [], in_channels
        for number, widths in enumerate(layout.blocks, 1):
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            if number <= layout.pooled:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(layout.side)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels * layout.side**2, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.avgpool(self.features(images))))
