"""How a diffusion destroys data: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e, e ~ N(0, I), for t = 0 .. steps - 1.

Ho et al. 2020, arXiv:2006.11239, eq. 4 (linear betas); Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17 (cosine).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

COSINE_OFFSET, LARGEST_BETA = 0.008, 0.999  # of the cosine schedule
Beta = Annotated[float, Field(gt=0, lt=1)]


@dataclass(kw_only=True)
class Diffusion:
    """A noise schedule, and what a network is trained to predict the noise with."""

    schedule: Literal["linear", "quadratic", "cosine"] = "linear"  # of beta; quadratic: linear in its square root
    steps: Annotated[int, Field(gt=1)] = 1000  # T
    first_beta: Beta = 1e-4  # of the linear and the quadratic schedule
    last_beta: Beta = 0.02
    loss: Literal["squared", "absolute"] = "squared"  # of the noise
    antithetic: bool = False  # times come in pairs t and T - 1 - t

    def betas(self) -> Tensor:
        """(T,) float64."""
        if self.schedule == "cosine":
            edges = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
            kept = torch.cos((edges + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2
            return (1 - kept[1:] / kept[:-1]).clamp(max=LARGEST_BETA)
        power = 0.5 if self.schedule == "quadratic" else 1.0
        roots = torch.linspace(self.first_beta**power, self.last_beta**power, self.steps, dtype=torch.float64)
        return roots ** (1 / power)

    def alpha_bars(self) -> Tensor:
        """The share of the data's variance that is left at t = 0 .. T - 1: (T,) float64, falling."""
        return torch.cumprod(1 - self.betas(), 0)


def diffused(clean: Tensor, noise: Tensor, alpha_bar: Tensor | float) -> Tensor:
    """``clean`` (B, ...) with ``noise`` of its shape at level ``alpha_bar``, a number or (B,)."""
    if isinstance(alpha_bar, Tensor):
        alpha_bar = alpha_bar.to(clean).view(-1, *[1] * (clean.ndim - 1))
        return alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
    return math.sqrt(alpha_bar) * clean + math.sqrt(1 - alpha_bar) * noise


def antithetic_times(count: int, steps: int, device: torch.device) -> Tensor:
    """(count,) int64: the second half are the times T - 1 - t of the first."""
    half = torch.randint(steps, (count // 2 + 1,), device=device)
    return torch.cat([half, steps - 1 - half])[:count]
