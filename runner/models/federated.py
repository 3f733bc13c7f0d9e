"""The small networks of federated learning's papers, without batch normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

TRUNCATED = 0.87962566103423978  # standard deviation of a standard normal cut at -2 and 2


def scaled_normal(count: int, generator: torch.Generator) -> Tensor:
    """(count,) of a normal distribution cut at two deviations, of variance 1 / count: TensorFlow's VarianceScaling of a
    vector."""
    return scaled_normal_(torch.empty(count), generator)


def scaled_normal_(values: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fills a kernel (units, ...) or a vector in place as TensorFlow's VarianceScaling does: the variance is one over
    the inputs of a unit, of a vector one over its length."""
    inputs = values[0].numel() if values.ndim > 1 else len(values)
    spread = math.sqrt(1 / inputs) / TRUNCATED
    return nn.init.trunc_normal_(values, std=spread, a=-2 * spread, b=2 * spread, generator=generator)


def cnn(
    num_classes: int, in_channels: int, image_size: int, channels: Sequence[int] = (32, 64), width: int = 512
) -> nn.Module:
    """5x5 convolutions, each followed by 2x2 max-pooling, and one hidden layer (McMahan et al. 2017, section 3).

    Its 1,663,370 parameters of grey images of 28x28 tell that the convolutions keep the size.
    """
    layers: list[nn.Module] = []
    side = image_size
    for inputs, outputs in pairwise((in_channels, *channels)):
        layers += [nn.Conv2d(inputs, outputs, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
        side //= 2
    hidden = [nn.Flatten(), nn.Linear(channels[-1] * side**2, width), nn.ReLU()]
    return nn.Sequential(*layers, *hidden, nn.Linear(width, num_classes))


def lenet(
    num_classes: int,
    in_channels: int,
    image_size: int,
    channels: Sequence[int] = (20, 50),
    widths: Sequence[int] = (800, 500),
) -> nn.Module:
    """FedWeIT's LeNet: 5x5 convolutions with local response normalisation over 9 channels and 3x3 max-pooling by 2.

    Of 32x32 images the features before the hidden layers are 50 x 8 x 8 = 3,200, as in wyjeong/FedWeIT, and kernels and
    biases start as there; the last layer starts as a Dense layer of Keras.
    """
    layers: list[nn.Module] = []
    side = image_size
    for inputs, outputs in pairwise((in_channels, *channels)):
        # torch divides alpha by the number of channels, as the paper's 0.001 / 9 has it already
        norm = nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0)
        # on even sides windows begin at the first pixel and the last one stands over, as TensorFlow pads them
        layers += [nn.Conv2d(inputs, outputs, 5, padding=2), nn.ReLU(), norm, nn.MaxPool2d(3, 2, ceil_mode=True)]
        side //= 2
    layers.append(nn.Flatten())
    sizes = (channels[-1] * side**2, *widths)
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    for layer in layers:
        for values in layer.parameters():
            scaled_normal_(values.data)
    head = nn.Linear(sizes[-1], num_classes)
    nn.init.xavier_uniform_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(*layers, head)
