"""Networks that are torchvision's own, with a stem for small images where there is a customary one.

Importing this module imports torch and torchvision; runner.models names the networks without it.
"""

from __future__ import annotations

from torch import nn
from torchvision import models

# (expansion, channels, blocks, stride) of MobileNetV2, table 2 of arXiv:1801.04381; small images keep their size longer
MOBILENET_STAGES = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]  # fmt: skip  # noqa: E501


def mobilenet_v2(*, num_classes: int, in_channels: int, stem: str) -> nn.Module:
    """MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381).

    The stem for small images has stride 1 in the first convolution and in the first stage that would halve, so that
    32x32 images end at 4x4: the customary CIFAR form.
    """
    small = stem == "cifar"
    stages = [list(stage) for stage in MOBILENET_STAGES]
    if small:
        stages[1][3] = 1
    network = models.mobilenet_v2(weights=None, num_classes=num_classes, inverted_residual_setting=stages)
    _first_convolution(network.features[0], "0", in_channels, 1 if small else 2)
    return network


def mobilenet_v2_half(*, num_classes: int, in_channels: int) -> nn.Module:
    """MobileNetV2 at half width as the distillation papers have it for 32x32 images (Tian et al., arXiv:1910.10699).

    Stride 2 in the first convolution, 1 in the stage of 24, ReLU in place of ReLU6, no dropout. Their code also expands
    in the first stage, by the factor 1: 288 parameters more.
    """
    stages = [list(stage) for stage in MOBILENET_STAGES]
    stages[1][3] = 1
    network = models.mobilenet_v2(
        weights=None,
        num_classes=num_classes,
        width_mult=0.5,
        round_nearest=1,
        inverted_residual_setting=stages,
        dropout=0.0,
    )
    for name in [name for name, module in network.named_modules() if isinstance(module, nn.ReLU6)]:
        network.set_submodule(name, nn.ReLU(inplace=True))
    _first_convolution(network.features[0], "0", in_channels, 2)
    return network


def vgg16_bn(*, num_classes: int, in_channels: int) -> nn.Module:
    """VGG-16 with batch normalisation (arXiv:1409.1556, configuration D): 7x7 maps, then three linear layers."""
    network = models.vgg16_bn(weights=None, num_classes=num_classes)
    _first_convolution(network.features, "0", in_channels, 1)
    return network


def shufflenet_v2(*, num_classes: int, in_channels: int, stem: str) -> nn.Module:
    """ShuffleNetV2 x1.0 (Ma et al. 2018, arXiv:1807.11164).

    The stem for small images is a 3x3 convolution with stride 1 and no pooling, so that 32x32 images end at 4x4.
    """
    small = stem == "cifar"
    network = models.shufflenet_v2_x1_0(weights=None, num_classes=num_classes)
    _first_convolution(network.conv1, "0", in_channels, 1 if small else 2)
    if small:
        network.maxpool = nn.Identity()
    return network


def _first_convolution(parent: nn.Module, name: str, in_channels: int, stride: int) -> None:
    """Give the first convolution, ``parent.name``, its stride and, where the images ask for it, other channels."""
    old = getattr(parent, name)
    old.stride = (stride, stride)
    if in_channels != old.in_channels:
        new = nn.Conv2d(in_channels, old.out_channels, 3, stride, 1, bias=old.bias is not None)
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
        if new.bias is not None:
            nn.init.zeros_(new.bias)
        setattr(parent, name, new)
