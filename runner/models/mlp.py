"""Multi-layer perceptrons for small images: cheap enough for grids of many runs, or for a dense curvature."""

from __future__ import annotations

from torch import Tensor, nn

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


class GreyPerceptron(nn.Module):
    """Images averaged over channels and to 8x8, one hidden layer of ``width`` units; logits (B, num_classes).

    With 20 units and 10 classes 1,510 weights, so that a Hessian fits in memory.
    """

    def __init__(self, *, num_classes: int, in_channels: int, width: int, activation: str) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(SIDE)
        self.layers = nn.Sequential(
            nn.Linear(SIDE**2, width), {"relu": nn.ReLU, "tanh": nn.Tanh}[activation](), nn.Linear(width, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(self.pool(images).mean(1).flatten(1))
