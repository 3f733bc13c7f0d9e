"""Networks just large enough for their tasks: one or two convolutions, and linear maps without a non-linearity.

Arnold et al. 2021 (arXiv:1910.13603); the convolutions are those of Sha-Lab/kfo (on CIFAR-FS; CNN4 of learn2learn).
``lenet_small`` is that of Antoran et al. 2023 (arXiv:2210.04994).
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from runner.models.few_shot import FewShotNetwork, batch_norm


def shallow(
    num_classes: int,
    in_channels: int,
    image_size: int,
    channels: int = 32,
    layers: int = 2,
    pool: int = 1,
) -> FewShotNetwork:
    """Blocks of 3x3 convolution with a bias, batch normalisation, ReLU and max-pooling by ``pool``.

    Xavier-uniform weights, zero biases, scales of batch normalisation uniform in (0, 1).

    Args:
        pool: 1: none, and the features are means over all places; else they are flattened.
    """
    side = image_size // pool**layers
    if side < 1:
        raise ValueError(f"shallow: images of {image_size} pixels are too small for {layers} poolings by {pool}")
    blocks: list[nn.Module] = []
    for layer in range(layers):
        inputs = in_channels if layer == 0 else channels
        pooling = [nn.MaxPool2d(pool)] if pool > 1 else []
        blocks.append(
            nn.Sequential(nn.Conv2d(inputs, channels, 3, padding=1), batch_norm(channels), nn.ReLU(), *pooling)
        )
    end = [] if pool > 1 else [nn.AdaptiveAvgPool2d(1)]
    width = channels * side**2 if pool > 1 else channels
    network = FewShotNetwork(nn.Sequential(*blocks, *end, nn.Flatten()), width, num_classes)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
    return network


def linear(num_classes: int, in_channels: int, widths: tuple[int, ...] = ()) -> FewShotNetwork:
    """Numbers (B, in_channels) through linear layers alone to logits (B, num_classes): one linear map, or a product."""
    sizes = (in_channels, *widths)
    layers = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes)]
    return FewShotNetwork(nn.Sequential(*layers), sizes[-1], num_classes)


def lenet_small(num_classes: int, in_channels: int, channels: tuple[int, ...] = (16, 32, 32)) -> nn.Sequential:
    """Convolutions with stride 2 and no bias, ReLU and then batch normalisation; features are means over all places.

    The first kernel is 5x5, the others 3x3. LeNetSmall of shreyaspadhy/jaxutils, which cambridge-mlg/sampled-laplace
    trains on MNIST; PyTorch's own initialisation.
    """
    layers: list[nn.Module] = []
    for layer, (inputs, outputs) in enumerate(pairwise((in_channels, *channels))):
        size = 3 if layer else 5
        convolution = nn.Conv2d(inputs, outputs, size, stride=2, padding=size // 2, bias=False)
        layers += [convolution, nn.ReLU(), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], num_classes))
