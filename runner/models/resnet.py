"""Residual networks: the CIFAR family (depth 6n+2) and the ImageNet family (18, 34, 50).

He et al. 2016, arXiv:1512.03385. Module names and shapes of the ImageNet family are torchvision's, so its weights fit.
Every shortcut that changes shape is a 1x1 convolution with batch normalisation, in the CIFAR family too, and the
bottleneck strides on its 3x3 convolution.
Importing this module imports torch; runner.models names the networks without it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, flatten, nn

IMAGENET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def cifar_resnet(
    depth: int,
    width: int = 16,
    *,
    stem_width: int | None = None,
    num_classes: int,
    in_channels: int,
    padding: str,
    zero_init_residual: bool = True,
) -> ResNet:
    """ResNet of ``depth`` = 6n+2: three stages of n basic blocks, of 1, 2 and 4 times ``width`` channels.

    ``stem_width`` is the first convolution's number of channels, by default ``width``.
    """
    blocks = (depth - 2) // 6
    return ResNet(
        BasicBlock,
        (blocks,) * 3,
        (width, 2 * width, 4 * width),
        stem_width=stem_width,
        num_classes=num_classes,
        in_channels=in_channels,
        stem="cifar",
        padding=padding,
        zero_init_residual=zero_init_residual,
    )


def imagenet_resnet(
    depth: int, *, num_classes: int, in_channels: int, stem: str, padding: str, zero_init_residual: bool = True
) -> ResNet:
    """ResNet-18 or -34 (basic blocks) or -50 (bottlenecks): four stages, widths 64, 128, 256, 512."""
    return ResNet(
        Bottleneck if depth >= 50 else BasicBlock,
        IMAGENET_BLOCKS[depth],
        (64, 128, 256, 512),
        num_classes=num_classes,
        in_channels=in_channels,
        stem=stem,
        padding=padding,
        zero_init_residual=zero_init_residual,
    )


class ResNet(nn.Module):
    """Images (B, in_channels, H, W) to logits (B, num_classes).

    Attributes: ``stem`` is ``imagenet`` (7x7 convolution with stride 2, then max-pooling) or ``cifar`` (3x3, stride 1);
    ``padding`` is ``symmetric`` or ``tensorflow`` (3x3 convolutions with stride 2 pad one row below and one column to
    the right only, which needs even feature maps; the 7x7 stem and the pooling stay symmetric).

    Kernels begin with variance 2 / fan-out. With ``zero_init_residual`` the last scale of every block begins with 0 (a
    block as its shortcut) and the classifier with N(0, 0.01) (Goyal et al. 2017, arXiv:1706.02677, section 5.1; EKG,
    arXiv:2203.02651); without it with 1 and PyTorch's own, as in torchvision and RepDistiller.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, ...],
        widths: tuple[int, ...],
        *,
        stem_width: int | None = None,
        num_classes: int,
        in_channels: int,
        stem: str,
        padding: str,
        zero_init_residual: bool = True,
    ):
        super().__init__()
        self.stem, self.padding = stem, padding
        channels = stem_width or widths[0]
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = conv3x3(in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        if stem == "imagenet":
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = [f"layer{number}" for number in range(1, len(blocks) + 1)]
        for stage, count, width in zip(self.stages, blocks, widths, strict=True):
            layers = []
            for index in range(count):
                stride = 2 if index == 0 and stage != "layer1" else 1
                layers.append(block(channels, width, stride, padding))
                channels = width * block.expansion
            self.add_module(stage, nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self._initialise(zero_init_residual)

    def _initialise(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if not zero_init_residual:
            return
        for module in self.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_normalisation().weight)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(images)))
        if self.stem == "imagenet":
            x = self.maxpool(x)
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.fc(flatten(self.avgpool(x), 1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the first has the stride."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, padding: str):
        super().__init__()
        self.pad_right_bottom = pads_right_bottom(stride, padding)
        self.conv1 = conv3x3(in_channels, width, stride, padding)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, width, stride)

    def last_normalisation(self) -> nn.BatchNorm2d:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.pad_right_bottom:
            x = F.pad(x, (0, 1, 0, 1))
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 (has the stride), 1x1 convolutions; four times as many channels leave as the inner width."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, padding: str):
        super().__init__()
        self.pad_right_bottom = pads_right_bottom(stride, padding)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride, padding)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, width * self.expansion, stride)

    def last_normalisation(self) -> nn.BatchNorm2d:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        if self.pad_right_bottom:
            x = F.pad(x, (0, 1, 0, 1))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu(x + shortcut)


def pads_right_bottom(stride: int, padding: str) -> bool:
    """Whether a 3x3 convolution is preceded by one-sided padding (then its own padding is 0)."""
    return stride == 2 and padding == "tensorflow"


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, padding: str = "symmetric") -> nn.Conv2d:
    own_padding = 0 if pads_right_bottom(stride, padding) else 1
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=own_padding, bias=False)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The shortcut where shape changes; None where it does not."""
    if stride == 1 and in_channels == out_channels:
        return None
    convolution = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))
