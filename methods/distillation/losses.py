"""Losses between logits and between maps. s is the student's tensor, t the teacher's; all return a scalar.

Maps are (B, C, H, W), logits (B, classes). Which code base uses which form stands at the methods.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def kl_divergence(s: Tensor, t: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(t / T) || softmax(s / T)) in nats, mean over the batch; no factor T^2. Hinton et al. 2015, eq. 2."""
    s, t = (s / temperature).log_softmax(1), (t / temperature).log_softmax(1)
    return F.kl_div(s, t, reduction="batchmean", log_target=True)


def attention(maps: Tensor) -> Tensor:
    """Where a map is strong: mean over channels of squares, of unit length over pixels; (B, H*W). Zagoruyko and
    Komodakis 2017, arXiv:1612.03928."""
    return F.normalize(maps.square().mean(1).flatten(1))


def attention_difference(s: Tensor, t: Tensor) -> Tensor:
    """Mean over batch and pixels of the squared difference of ``attention``; the maps have equal sizes."""
    return (attention(s) - attention(t)).square().mean()


def channel_attention_difference(s: Tensor, t: Tensor) -> Tensor:
    """Mean over all entries of the squared difference of maps whose every channel has unit length over pixels."""
    return (F.normalize(s.flatten(2), dim=2) - F.normalize(t.flatten(2), dim=2)).square().mean()


def flow(lower: Tensor, upper: Tensor, pooling: str) -> Tensor:
    """The flow of solution procedure between two depths: (B, C_lower, C_upper), mean over pixels of products.

    The larger map is pooled to the size of the smaller, by ``max`` or ``average``. Yim et al. 2017, eq. 1.
    """
    side = min(lower.shape[2], upper.shape[2])
    pool = F.adaptive_max_pool2d if pooling == "max" else F.adaptive_avg_pool2d
    lower, upper = (pool(maps, side) if maps.shape[2] > side else maps for maps in (lower, upper))
    return lower.flatten(2) @ upper.flatten(2).transpose(1, 2) / side**2


def sum_per_position(difference: Tensor) -> Tensor:
    """The sum over all entries of (B, C, H, W) divided by B*H*W."""
    return difference.sum() / difference[:, 0].numel()


def boundary_difference(s: Tensor, t: Tensor, margin: float = 1.0) -> Tensor:
    """How far the student's pre-activations lie on the wrong side of the teacher's activation boundaries; (B, C, H, W).

    (s + m)^2 where s > -m and t <= 0, (s - m)^2 where s <= m and t > 0. Heo et al. 2019, arXiv:1811.03233, eq. 6.
    """
    return (s + margin).square() * ((s > -margin) & (t <= 0)) + (s - margin).square() * ((s <= margin) & (t > 0))


def overhaul_margin(norm: nn.BatchNorm2d) -> Tensor:
    """The margin (1, C, 1, 1) of each channel: the mean of its negative values, x ~ N(bias, weight^2) as batch
    normalisation leaves it; -3 |weight| where P(x < 0) < 1e-3. Heo et al. 2019, arXiv:1904.01866, eq. 4."""
    weight, bias = norm.weight.detach().abs().clamp_min(1e-12), norm.bias.detach()
    below = torch.special.ndtr(-bias / weight)
    density = (-(bias / weight).square() / 2).exp() / math.sqrt(2 * math.pi)
    expected = bias - weight * density / below.clamp_min(1e-3)
    return torch.where(below > 1e-3, expected, -3 * weight).view(1, -1, 1, 1)


def partial_difference(s: Tensor, t: Tensor, margin: Tensor) -> Tensor:
    """Sum over all entries of (s - max(t, margin))^2 where s is above it or it is positive. arXiv:1904.01866, eq. 2."""
    t = torch.maximum(t, margin)
    return ((s - t).square() * ((s > t) | (t > 0))).sum()


def gaussian_surprise(mean: Tensor, variance: Tensor, t: Tensor) -> Tensor:
    """Mean over all entries of (log variance + (t - mean)^2 / variance) / 2, in nats without the constant.

    Ahn et al. 2019, arXiv:1904.05835, eq. 5.
    """
    return (variance.log() + (t - mean).square() / variance).mean() / 2


def selectivity_discrepancy(s: Tensor, t: Tensor) -> Tensor:
    """Maximum mean discrepancy of channels, as vectors of unit length over pixels, with the kernel <a, b>^2.

    Every term is a mean over the batch and all pairs of channels. Huang and Wang 2017, arXiv:1707.01219, eq. 5.
    """
    s, t = (F.normalize(maps.flatten(2), dim=2) for maps in (s, t))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.transpose(1, 2)).square().mean()

    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)
