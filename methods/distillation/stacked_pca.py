"""Feature maps compressed twice: the first singular vector of each image's map, then the leading axes of the batch.

Lee and Song 2021 (IEP), arXiv:2104.13561, section "stacked PCA"; the formulas are those of the authors' code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.methods.distillation.singular_vectors import fix_sign, leading


def first_axes(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The first PCA: of each map (B, C, H, W) the first left singular vector (B, H*W) and the right one (B, C).

    Both of unit length and without gradient; the entry of largest magnitude of the right one is positive.
    """
    left, _, right = leading(maps, 1, gram=True)
    sign = fix_sign(right)
    return (left * sign)[..., 0], (right * sign)[..., 0]


def sphere_to_plane(units: Tensor) -> Tensor:
    """Unit vectors (B, D) projected from -c onto the plane that touches the sphere at c = (1, ..., 1) / sqrt(D).

    2 / (1 + <v, c>) (v + c) - 2 c: orthogonal to c, with the length 2 tan(t/2), t the angle between v and c; finite
    unless v = -c.
    """
    center = torch.full_like(units[:1], units.shape[1] ** -0.5)
    cosine = (units * center).sum(1, keepdim=True)
    return 2 / (1 + cosine).clamp_min(1e-6) * (units + center) - 2 * center


def principal_axes(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The leading singular values (count,) and right singular vectors (D, count) of (N, D), their sign fixed; zeros
    where there are fewer than ``count``. Without gradient."""
    with torch.no_grad():
        _, values, axes = torch.linalg.svd(rows.float(), full_matrices=False)
        values, axes = values[:count], axes[:count].T
        axes = axes * fix_sign(axes[None])[0]
        missing = count - len(values)
        return F.pad(values, (0, missing)), F.pad(axes, (0, missing))


class IncrementalPCA(nn.Module):
    """The second PCA: codes (B, D/2) of points (B, D) on axes that follow the batches they are updated with.

    Attributes (buffers, 0 at the start): ``mean`` (1, D), ``values`` (D/2,), ``axes`` (D, D/2).

    Args:
        rate: how fast the mean follows, 0..1.
    """

    def __init__(self, width: int, rate: float = 0.9) -> None:
        super().__init__()
        self.rate, self.count = rate, max(width // 2, 1)
        self.register_buffer("mean", torch.zeros(1, width))
        self.register_buffer("values", torch.zeros(self.count))
        self.register_buffer("axes", torch.zeros(width, self.count))

    def forward(self, points: Tensor) -> Tensor:
        """Codes (B, D/2), with gradient, on the axes of the last update; 0 before the first one."""
        return (points - self.mean) @ self.axes

    def observe(self, points: Tensor) -> Tensor:
        """Codes of points that, in training mode, move the axes afterwards."""
        codes = self(points)
        if self.training:
            self.update(points)
        return codes

    @torch.no_grad()
    def update(self, points: Tensor) -> None:
        """The axes become those of the centred batch, the old axes times their values, and the shift of the mean."""
        points = points.float()
        now = points.mean(0, keepdim=True)
        before = torch.where(self.values.any(), self.mean, now)  # nothing has shifted yet in the first batch
        rows = torch.cat([points - now, (self.values * self.axes).T, before - now])
        values, axes = principal_axes(rows, self.count)
        self.mean.lerp_(now, self.rate)
        self.values.copy_(values)
        self.axes.copy_(axes)


class BatchPCA(IncrementalPCA):
    """The same with the axes of the last batch alone (the paper's plain PCA)."""

    def observe(self, points: Tensor) -> Tensor:
        """Codes of points on their own axes."""
        self.update(points)
        return self(points)

    @torch.no_grad()
    def update(self, points: Tensor) -> None:
        points = points.float()
        self.mean.copy_(points.mean(0, keepdim=True))
        values, axes = principal_axes(points - self.mean, self.count)
        self.values.copy_(values)
        self.axes.copy_(axes)
