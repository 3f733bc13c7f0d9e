"""Distributions of points whose noise estimates are known exactly: what a sampler does wrong there is its own.

Each is data of shape (B, ``SIZE``) and a function ``noise(x, alpha_bar)``, the mean of the noise in x given x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MODES, RADIUS, MODE_DEVIATION = 8, 1.0, 0.1  # of the mixture


@dataclass(frozen=True)
class Gaussian:
    """N(0, deviation^2)."""

    deviation: float
    size: int = 1

    def noise(self, x: Tensor, alpha_bar: float) -> Tensor:
        return math.sqrt(1 - alpha_bar) * x / self._variance(alpha_bar)

    def moved(self, x: Tensor, alpha_bar: float, until: float) -> Tensor:
        """Where the flow takes x from one level to the other."""
        return x * math.sqrt(self._variance(until) / self._variance(alpha_bar))

    def _variance(self, alpha_bar: float) -> float:
        return alpha_bar * self.deviation**2 + 1 - alpha_bar


@dataclass(frozen=True)
class Mixture:
    """Eight round Gaussians of equal weight in the plane, their means evenly on a circle."""

    size: int = 2

    def noise(self, x: Tensor, alpha_bar: float) -> Tensor:
        angles = torch.arange(MODES, dtype=x.dtype, device=x.device) * (2 * math.pi / MODES)
        means = RADIUS * torch.stack([angles.cos(), angles.sin()], 1) * math.sqrt(alpha_bar)
        variance = alpha_bar * MODE_DEVIATION**2 + 1 - alpha_bar
        away = x[:, None] - means
        weights = torch.softmax(-away.square().sum(2) / (2 * variance), 1)
        return math.sqrt(1 - alpha_bar) / variance * (weights[:, :, None] * away).sum(1)
