"""Wide residual networks for small images: WRN-d-k, pre-activation blocks of two 3x3 convolutions.

Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 1: widths 16, 16k, 32k, 64k and (d - 4) / 6 blocks a stage. Where
the shape changes, the shortcut is a 1x1 convolution of the block's normalised and activated input, as in the authors'
code; elsewhere it is the input itself. No dropout (the paper's, too, where images are augmented).
Importing this module imports torch; runner.models names the networks without it.
"""

from __future__ import annotations

from torch import Tensor, flatten, nn


class WideResNet(nn.Module):
    """Images (B, in_channels, H, W) to logits (B, num_classes). ``depth`` is 6n+4, ``widening`` is k."""

    def __init__(self, depth: int, widening: int, *, num_classes: int, in_channels: int):
        super().__init__()
        blocks, channels = (depth - 4) // 6, 16
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        for stage in range(3):
            width, layers = 16 * widening * 2**stage, []
            for index in range(blocks):
                layers.append(PreActivationBlock(channels, width, 2 if stage > 0 and index == 0 else 1))
                channels = width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        return self.fc(flatten(self.avgpool(self.relu(self.bn(x))), 1))


class PreActivationBlock(nn.Module):
    """Normalisation and activation come before each convolution; the first convolution has the stride."""

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None
        if stride > 1 or in_channels != width:
            self.shortcut = nn.Conv2d(in_channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu(self.bn1(x))
        residual = self.conv2(self.relu(self.bn2(self.conv1(activated))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))
