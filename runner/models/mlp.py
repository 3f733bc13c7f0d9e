"""A multi-layer perceptron for small images: cheap enough for grids of many runs."""

from __future__ import annotations

from torch import nn

SIDE = 8  # pixels after averaging; scikit-learn's digits are stored so


class MLP(nn.Sequential):
    """Images averaged to 8x8, then two hidden layers of 64 rectified units; logits (B, num_classes)."""

    def __init__(self, *, num_classes: int, in_channels: int, width: int = 64) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(SIDE),
            nn.Flatten(),
            nn.Linear(in_channels * SIDE**2, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, num_classes),
        )
