"""Layers whose weights and outputs are fake-quantized, and stages of training in which they are not yet.

A layer's ``phase`` says what training sees; evaluation always sees the quantized layer:
- full: weights as they are, activations clamped;
- mixed: of the weights a share with uniform noise, the others quantized; activations clamped;
- quantized: all of it quantized, with straight-through gradients.
The stored weights never change in a forward pass. NICE, arXiv:1810.00162; the formulas stand in ``quantizers``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.methods.compression.quantizers import (
    WIDE_BITS,
    activation_levels,
    clamped_relu,
    hardware_clamp,
    mixed,
    quantize_bias,
    quantize_spread,
    quantize_symmetric,
    quantize_unsigned,
    through,
    weight_levels,
    with_uniform_noise,
)

Phase = Literal["full", "mixed", "quantized"]


class _QuantizedWeights:
    """What a convolution and a linear layer share. ``clamp`` and ``activation_step`` are constants (buffers)."""

    bits: int
    noise_share: float
    phase: Phase
    weight: Tensor
    bias: Tensor | None
    clamp: Tensor
    activation_step: Tensor

    def prepare(self, bits: int, noise_share: float) -> None:
        self.bits, self.noise_share, self.phase = bits, noise_share, "quantized"
        self.register_buffer("clamp", torch.ones(()))  # c_w
        self.register_buffer("activation_step", torch.ones(()))  # of the bias's grid: one for the whole network

    def seen(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as this pass has them."""
        phase = self.phase if self.training else "quantized"
        if phase == "full":
            return self.weight, self.bias
        stored = self.weight.detach()
        weight = quantize_symmetric(stored, self.clamp, self.bits)
        if phase == "mixed":
            weight = mixed(weight, with_uniform_noise(stored, self.clamp, self.bits), self.noise_share)
        weight = through(self.weight, weight)
        if self.bias is None:
            return weight, None
        stored = self.bias.detach()
        step = self.clamp / weight_levels(self.bits) * self.activation_step
        bias = quantize_bias(stored, step)
        if phase == "mixed":
            noisy = with_uniform_noise(stored, step * weight_levels(WIDE_BITS), WIDE_BITS)
            bias = mixed(bias, noisy, self.noise_share)
        return weight, through(self.bias, bias)


class QuantizedConv2d(_QuantizedWeights, nn.Conv2d):
    """A convolution with weights of few bits."""

    @classmethod
    def of(cls, layer: nn.Conv2d, bits: int, noise_share: float) -> QuantizedConv2d:
        """With the parameters of ``layer``."""
        made = cls(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            layer.bias is not None,
            layer.padding_mode,
            device="meta",  # nothing is drawn
        )
        made.weight, made.bias = layer.weight, layer.bias
        made.prepare(bits, noise_share)
        return made

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, *self.seen())


class QuantizedLinear(_QuantizedWeights, nn.Linear):
    """A linear layer with weights of few bits."""

    @classmethod
    def of(cls, layer: nn.Linear, bits: int, noise_share: float) -> QuantizedLinear:
        """With the parameters of ``layer``."""
        made = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        made.prepare(bits, noise_share)
        return made

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.seen())


class QuantizedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose scale, shift and moving averages have 16 bits; in phase mixed it is as ever."""

    phase: Phase = "quantized"

    @classmethod
    def of(cls, layer: nn.BatchNorm2d) -> QuantizedBatchNorm2d:
        """With the parameters and moving averages of ``layer``."""
        made = cls(
            layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats, device="meta"
        )
        made.weight, made.bias = layer.weight, layer.bias
        for name, buffer in layer.named_buffers():
            setattr(made, name, buffer)
        return made

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.phase != "quantized":
            return super().forward(x)
        weight, bias = (
            None if item is None else through(item, quantize_spread(item)) for item in (self.weight, self.bias)
        )
        if self.training:
            momentum = self.momentum
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
                if momentum is None:
                    momentum = 1 / float(self.num_batches_tracked)
            return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, True, momentum or 0.0, self.eps)
        averages = [None if item is None else quantize_spread(item) for item in (self.running_mean, self.running_var)]
        return F.batch_norm(x, *averages, weight, bias, averages[0] is None, 0.0, self.eps)


class QuantizedReLU(nn.Module):
    """ReLU with an upper end that is learned, and outputs of few bits."""

    def __init__(self, bits: int, hardware: bool = False) -> None:
        super().__init__()
        self.bits, self.hardware = bits, hardware
        self.phase: Phase = "quantized"
        self.clamp = nn.Parameter(torch.ones(()))  # c_a; its size counts

    def forward(self, x: Tensor) -> Tensor:
        clamp = self.clamp
        if self.hardware and not self.training:
            clamp = hardware_clamp(clamp.abs(), activation_levels(self.bits))
        clamped = clamped_relu(x, clamp)
        if self.training and self.phase != "quantized":
            return clamped
        return quantize_unsigned(clamped, clamp, self.bits)
