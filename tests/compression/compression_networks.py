"""Small networks for the tests of this folder: a residual network with torchvision's forward pass and module names."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or width_in != width:
            self.downsample = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, images: Tensor) -> Tensor:
        identity = images if self.downsample is None else self.downsample(images)
        hidden = self.relu(self.bn1(self.conv1(images)))
        hidden = self.bn2(self.conv2(hidden))
        hidden += identity
        return self.relu(hidden)


class ResidualNetwork(nn.Module):
    """``blocks`` basic blocks for each width, stride 2 between widths: (16, 32, 64) with 3 or 9 is ResNet-20 or 56."""

    def __init__(self, widths: tuple[int, ...] = (4, 6, 8), blocks: int = 1, classes: int = 5):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        previous = widths[0]
        for index, width in enumerate(widths):
            stage = []
            for block in range(blocks):
                stage.append(Block(previous, width, 2 if index and not block else 1))
                previous = width
            setattr(self, f"layer{index + 1}", nn.Sequential(*stage))
        self.stages = len(widths)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(previous, classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.relu(self.bn1(self.conv1(images)))
        for index in range(self.stages):
            hidden = getattr(self, f"layer{index + 1}")(hidden)
        return self.fc(torch.flatten(self.avgpool(hidden), 1))


def small_network(seed: int = 0, **arguments) -> ResidualNetwork:
    """A residual network in float64 whose normalisation weights are random, so that channels differ in importance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ResidualNetwork(**arguments).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = 0.5 + torch.rand(module.num_features, generator=generator, dtype=torch.float64)
            module.bias.data = 0.3 * torch.randn(module.num_features, generator=generator, dtype=torch.float64)
    return network


def labelled_images(count: int, classes: int = 5, size: int = 8, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random images (count, 3, size, size) in float64 and balanced labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)
    return images, torch.arange(count) % classes


def shared_data() -> Path:
    """The folder of development data beside the clone, or where RUNNER_SHARED points; it may not exist."""
    import os

    root = os.environ.get("RUNNER_SHARED")
    return (Path(root) if root else Path(__file__).parents[2].parent / "shared") / "data"
