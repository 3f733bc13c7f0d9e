"""Uniform fake quantization, straight-through gradients, and the memory that numbers of few bits take.

Pure functions that methods of quantization-aware training share. A fake quantizer returns floating-point numbers on the
grid of the integers that hardware would hold. Sources: NICE (Baskin et al. 2018, arXiv:1810.00162, sections 3.1-3.3 and
released code) for clamps, noise and 16-bit constants; Uhlich et al. 2020, arXiv:1905.11452, for the sizes.
Ties round to even, as torch.round does.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

WIDE_BITS = 16  # of biases and of batch normalisation
SMALLEST_CLAMP = 1e-8  # of a tensor that is constant 0
LARGEST_FACTOR = 8  # of a hardware step: three bits


def through(x: Tensor, value: Tensor) -> Tensor:
    """``value``, with the gradient of ``x`` (straight-through)."""
    return value.detach() + (x - x.detach())


def round_through(x: Tensor) -> Tensor:
    """The nearest integers, with gradient 1."""
    return through(x, x.round())


def weight_levels(bits: int) -> int:
    """n of the symmetric narrow range -n..n: 2^(bits-1) - 1."""
    return 2 ** (bits - 1) - 1


def activation_levels(bits: int) -> int:
    """n of the range 0..n: 2^bits - 1."""
    return 2**bits - 1


def quantize_symmetric(x: Tensor, clamp: Tensor | float, bits: int) -> Tensor:
    """Clipped to -clamp..clamp and rounded to multiples of clamp / n: 2n + 1 values, n of ``weight_levels``."""
    levels = weight_levels(bits)
    return (x.clamp(-clamp, clamp) * (levels / clamp)).round() * (clamp / levels)


def with_uniform_noise(x: Tensor, clamp: Tensor | float, bits: int) -> Tensor:
    """x + e, clipped to -clamp..clamp, with e uniform and as wide as one step of ``quantize_symmetric``."""
    step = clamp / weight_levels(bits)
    return (x + (torch.rand_like(x) - 0.5) * step).clamp(-clamp, clamp)


def mixed(quantized: Tensor, noisy: Tensor, share: float) -> Tensor:
    """Each element noisy with probability ``share``, else quantized."""
    return torch.where(torch.rand_like(quantized) < share, noisy, quantized)


def clamped_relu(x: Tensor, clamp: Tensor) -> Tensor:
    """relu(x) - relu(x - |clamp|). Gradient in x: 1 for 0 < x <= |clamp|; in |clamp|: 1 above it."""
    return x.relu() - (x - clamp.abs()).relu()


def quantize_unsigned(x: Tensor, clamp: Tensor, bits: int) -> Tensor:
    """Of 0 <= x <= |clamp|: rounded to multiples of |clamp| / n, 2^bits values; n of ``activation_levels``.

    Straight-through: gradient 1 in x, and (q - x) / |clamp| in |clamp|.
    """
    levels = activation_levels(bits)
    return round_through(x * (levels / clamp.abs())) * (clamp.abs() / levels)


def quantize_bias(bias: Tensor, step: Tensor | float, bits: int = WIDE_BITS) -> Tensor:
    """Rounded to multiples of ``step``, at most 2^(bits-1) - 1 of them."""
    return quantize_symmetric(bias, step * weight_levels(bits), bits)


def quantize_spread(x: Tensor, bits: int = WIDE_BITS) -> Tensor:
    """Rounded to multiples of (max - min) / (2^bits - 1), without a zero point; what is constant stays as it is."""
    step = (x.max() - x.min()) / activation_levels(bits)
    return torch.where(step > 0, (x / step).round() * step, x)


def weight_clamp(weight: Tensor, deviations: float) -> Tensor:
    """|mean| + deviations x standard deviation of all elements (with the correction of Bessel)."""
    return (weight.mean().abs() + deviations * weight.std()).clamp_min(SMALLEST_CLAMP)


def hardware_clamp(clamp: Tensor, levels: int) -> Tensor:
    """The clamp whose step is b x 2^p with the smallest p that an integer b of 1..8 allows, rounded up."""
    step = clamp / levels
    power = torch.exp2((step / LARGEST_FACTOR).log2().ceil())
    return (step / power).clamp(1, LARGEST_FACTOR).ceil() * power * levels


def size_kilobytes(tensors: Iterable[tuple[int, float]]) -> float:
    """The memory of tensors, each of (elements, bits of an element), in KB of 1,024 bytes."""
    return sum(elements * bits for elements, bits in tensors) / 8 / 1024


def bit_operations(layers: Iterable[tuple[int, float, float]]) -> float:
    """The sum over layers of (multiply-adds, weight bits, bits of the inputs): the product of the three.

    What a multiplier of these widths costs; the smaller cost of the additions is left out.
    """
    return float(sum(operations * weight_bits * input_bits for operations, weight_bits, input_bits in layers))
