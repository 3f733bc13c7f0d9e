"""The perceptron of methods on vectors (``ctx.network``): actors, critics and the like."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def perceptron(in_features: int, out_features: int, hidden: Sequence[int] = (256, 256)) -> nn.Sequential:
    """(B, in_features) to (B, out_features): linear layers with ReLU between, in torch's own initialisation."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(in_features, width), nn.ReLU(inplace=True)]
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, out_features))
