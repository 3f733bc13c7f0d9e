"""Multi-layer perceptrons for small images: cheap enough for grids of many runs, or for a dense curvature."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor, nn

SIDE = 8  # pixels after averaging; scikit-learn's digits are stored so


class MLP(nn.Sequential):
    """Images averaged to 8x8, then two hidden layers of 64 rectified units; logits (B, num_classes)."""

    def __init__(self, *, num_classes: int, in_channels: int, width: int = 64) -> None:
        hidden = hidden_layers((in_channels * SIDE**2, width, width))
        super().__init__(nn.AdaptiveAvgPool2d(SIDE), nn.Flatten(), *hidden, nn.Linear(width, num_classes))


def perceptron(
    num_classes: int,
    in_channels: int,
    image_size: int,
    widths: Sequence[int] = (256, 256, 256),
    batch_norm: bool = False,
    side: int | None = None,
    grey: bool = False,
) -> nn.Sequential:
    """Images (B, in_channels, H, W) to logits (B, num_classes) through hidden layers of ``widths`` rectified units.

    PyTorch's own initialisation.

    Args:
        batch_norm: before every ReLU.
        side: pixels that images are averaged to first; None: every pixel is an input.
        grey: only the first channel is an input, for grey images that are stored with three.
    """
    first = [FirstChannel()] if grey else []
    averaging = [] if side is None else [nn.AdaptiveAvgPool2d(side)]
    sizes = ((1 if grey else in_channels) * (side or image_size) ** 2, *widths)
    hidden = hidden_layers(sizes, batch_norm)
    return nn.Sequential(*first, *averaging, nn.Flatten(), *hidden, nn.Linear(sizes[-1], num_classes))


def hidden_layers(sizes: Sequence[int], batch_norm: bool = False) -> Iterator[nn.Module]:
    """Linear layers between ``sizes``, each with its ReLU."""
    for inputs, outputs in pairwise(sizes):
        yield nn.Linear(inputs, outputs)
        if batch_norm:
            yield nn.BatchNorm1d(outputs)
        yield nn.ReLU()


class FirstChannel(nn.Module):
    """Images (B, C, H, W) to (B, 1, H, W)."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :1]


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
