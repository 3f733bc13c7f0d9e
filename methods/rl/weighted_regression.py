"""Actors that imitate logged actions, weighted by how good the critics find them: what IQL and AWAC share."""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHT_CAP = 100.0


def advantage_weights(advantages: Tensor, temperature: float, cap: float = WEIGHT_CAP) -> Tensor:
    """min(exp(temperature * A), cap), (B,), without gradient."""
    return (temperature * advantages.detach()).exp().clamp(max=cap)


def weighted_likelihood_loss(log_density: Tensor, weights: Tensor) -> Tensor:
    """-mean_B w log pi(a|s)."""
    return -(weights * log_density).mean()


def expectile_loss(errors: Tensor, expectile: float) -> Tensor:
    """mean |tau - 1(u < 0)| u^2 of errors u; at tau = 0.5 half the mean square."""
    return (torch.where(errors < 0, 1 - expectile, expectile) * errors.square()).mean()
