"""Networks of few-shot learning: the four convolutions, ResNet-12 and the sinusoid's perceptron.

Each is ``features`` and a linear ``head``, so that a method can adapt one of them, or leave the head out. Batch
normalisation always uses the statistics of the batch and keeps no moving averages.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FewShotNetwork(nn.Module):
    """``features``: (B, ...) -> (B, D), and ``head``: (B, D) -> logits (B, num_classes)."""

    def __init__(self, features: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs))


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False)


def conv4(
    num_classes: int,
    in_channels: int,
    image_size: int,
    channels: int = 64,
    layers: int = 4,
    bias: bool = True,
    negative_slope: float = 0.0,
    downsampling: Literal["pool", "stride"] = "pool",
    initialisation: Literal["torch", "xavier"] = "torch",
) -> FewShotNetwork:
    """Blocks of 3x3 convolution, batch normalisation, rectifier and 2x2 max-pooling (Vinyals et al. 2016, 4.1.1).

    Args:
        negative_slope: of the leaky rectifier; 0: ReLU.
        downsampling: stride: convolutions of stride 2 instead of pooling (MAML on Omniglot).
        initialisation: xavier: Xavier-uniform weights and zero biases (MAML++).
    """
    blocks: list[nn.Module] = []
    side = image_size
    for layer in range(layers):
        strided = downsampling == "stride"
        inputs = in_channels if layer == 0 else channels
        block = [
            nn.Conv2d(inputs, channels, 3, stride=2 if strided else 1, padding=1, bias=bias),
            batch_norm(channels),
            nn.LeakyReLU(negative_slope) if negative_slope else nn.ReLU(),
        ]
        blocks.append(nn.Sequential(*block, *([] if strided else [nn.MaxPool2d(2)])))
        side = (side + 1) // 2 if strided else side // 2
    if side < 1:
        raise ValueError(f"conv4: images of {image_size} pixels are too small for {layers} halvings")
    network = FewShotNetwork(nn.Sequential(*blocks, nn.Flatten()), channels * side**2, num_classes)
    if initialisation == "xavier":
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return network


class Block(nn.Module):
    """Three 3x3 convolutions beside a 1x1 shortcut, then 2x2 max-pooling and, where asked, DropBlock."""

    def __init__(self, inputs: int, outputs: int, *, pool: bool, drop: float, block_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number in range(3):
            layers += [nn.Conv2d(inputs if number == 0 else outputs, outputs, 3, padding=1, bias=False)]
            layers += [batch_norm(outputs)]
            layers += [nn.LeakyReLU(0.1)] if number < 2 else []
        self.body = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), batch_norm(outputs))
        self.pool, self.drop, self.block_size = pool, drop, block_size

    def forward(self, images: Tensor) -> Tensor:
        maps = F.leaky_relu(self.body(images) + self.shortcut(images), 0.1)
        maps = F.max_pool2d(maps, 2) if self.pool else maps
        if self.training and self.drop:
            maps = drop_block(maps, self.drop, self.block_size) if self.block_size > 1 else F.dropout(maps, self.drop)
        return maps


def drop_block(maps: Tensor, drop: float, size: int) -> Tensor:
    """Removes squares of each channel of maps (B,C,H,W) and keeps the mean size (Ghiasi et al., arXiv:1810.12890)."""
    height, width = maps.shape[-2:]
    size = min(size, height, width)
    rate = drop / size**2 * height * width / ((height - size + 1) * (width - size + 1))
    centres = (torch.rand_like(maps[..., size - 1 :, size - 1 :]) < rate).to(maps.dtype)
    removed = F.max_pool2d(F.pad(centres, [size - 1] * 4), size, stride=1)
    kept = 1 - removed
    return maps * kept * (kept.numel() / kept.sum().clamp(min=1))


def resnet12(
    num_classes: int,
    in_channels: int,
    channels: tuple[int, ...] = (64, 160, 320, 640),
    drop: float = 0.1,
    last_pool: bool = True,
) -> FewShotNetwork:
    """ResNet-12 of MetaOptNet (Lee et al. 2019, arXiv:1904.03758): DropBlock of size 5 in the last two blocks.

    Args:
        channels: (64, 128, 256, 512) with drop 0 and last_pool false is the network of second-order MAML studies.
        drop: probability, of dropout in the first two blocks and of DropBlock in the others; 0: none.
        last_pool: pooling behind the fourth block too.
    """
    blocks, inputs = [], in_channels
    for number, outputs in enumerate(channels):
        pool = last_pool or number + 1 < len(channels)
        blocks.append(Block(inputs, outputs, pool=pool, drop=drop, block_size=5 if number >= 2 else 1))
        inputs = outputs
    return FewShotNetwork(nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()), inputs, num_classes)


def perceptron(num_classes: int, in_channels: int, widths: tuple[int, ...] = (40, 40)) -> FewShotNetwork:
    """Numbers (B, in_channels) through rectified layers to (B, num_classes); Finn et al. 2017, section 5.1."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip((in_channels, *widths[:-1]), widths, strict=True):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return FewShotNetwork(nn.Sequential(*layers), widths[-1], num_classes)
