"""Networks that can do without batch normalisation: those of the study of ReLU'(0).

Bertoin et al. 2021 (arXiv:2106.12915; code deel-ai/relu-prime). Importing this module imports torch.
"""

from __future__ import annotations

from torch import nn

from runner.models.resnet import ResNet, conv3x3, imagenet_resnet

VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))  # Simonyan and Zisserman, arXiv:1409.1556, A


def vgg11(num_classes: int, in_channels: int, batch_norm: bool = True) -> nn.Sequential:
    """Images (B, in_channels, H, W) of 32 pixels or more to logits: 3x3 convolutions with a bias, five max-poolings, a
    mean over what places are left and one linear layer. PyTorch's own initialisation."""
    layers: list[nn.Module] = []
    channels = in_channels
    for block in VGG11:
        for width in block:
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            layers += [nn.BatchNorm2d(width), nn.ReLU()] if batch_norm else [nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def resnet18_pooled(num_classes: int, in_channels: int, batch_norm: bool = True) -> ResNet:
    """ResNet-18 with a 3x3 convolution of stride 1 before the max-pooling; logits (B, num_classes).

    Kernels: variance 2 / fan-out. Scales of batch normalisation 1, also at the ends of blocks; the linear layer has
    PyTorch's initialisation.
    """
    network = imagenet_resnet(
        18, num_classes=num_classes, in_channels=in_channels, stem="imagenet", padding="symmetric"
    )
    network.conv1 = conv3x3(in_channels, 64)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.fc.reset_parameters()
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            if not batch_norm:
                network.set_submodule(name, nn.Identity())
    return network
