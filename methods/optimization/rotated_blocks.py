"""A noisy quadratic whose Hessian has blocks, ill-conditioned and rotated: what blocks of coordinates are good for.

f(x) = x' H x / 2 of 50 coordinates; H has ten blocks Q diag(10^-2 .. 10^1) Q', each with its own random rotation Q.
Gradients have noise of 0.3 sqrt(diag H). Made for two CPU cores after Yun et al. 2019, arXiv:1905.10757.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCKS, SIZE = 10, 5
SMALLEST, LARGEST = -2.0, 1.0  # decimal logarithms of the eigenvalues
NOISE = 0.3
HALVING = 100.0  # steps after which the rate has fallen by sqrt(2)


def draw_hessian(permuted: bool) -> Tensor:
    """(50, 50) float64; permuted: rows and columns in a random order, so that neighbours share no block."""
    eigenvalues = torch.logspace(SMALLEST, LARGEST, SIZE, dtype=torch.float64)
    blocks = []
    for _ in range(BLOCKS):
        rotation, upper = torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=torch.float64))
        rotation = rotation * upper.diagonal().sign()  # uniform over rotations and reflections
        blocks.append((rotation * eigenvalues) @ rotation.T)
    hessian = torch.block_diag(*blocks)
    if not permuted:
        return hessian
    order = torch.randperm(len(hessian))
    return hessian[order][:, order]


def value(x: Tensor, hessian: Tensor) -> Tensor:
    return x @ hessian @ x / 2


def noisy_gradient(x: Tensor, hessian: Tensor) -> Tensor:
    return hessian @ x + NOISE * hessian.diagonal().sqrt() * torch.randn_like(x)


def rate_at(step: int, rate: float) -> float:
    """Of a 0-based step."""
    return rate / math.sqrt(1 + step / HALVING)
