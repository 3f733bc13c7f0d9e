"""The loss around a network on a plane through its weights, spanned by two filter-normalised random directions.

Source: Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, arXiv:1712.09913, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

Direction = dict[str, Tensor]


def filter_normalised_direction(parameters: Mapping[str, Tensor]) -> Direction:
    """A Gaussian direction, drawn from torch's global generator, in which every filter has the norm of its weights.

    A filter is one row of the first axis of a kernel: a neuron in a linear layer. Biases and the weights of
    normalisations (tensors of one axis) do not move.
    """
    return {name: _normalised(torch.randn_like(item), item) for name, item in parameters.items()}


def _normalised(noise: Tensor, weight: Tensor) -> Tensor:
    if weight.dim() < 2:
        return torch.zeros_like(weight)
    axes = list(range(1, weight.dim()))
    norm = partial(torch.linalg.vector_norm, dim=axes, keepdim=True)
    return noise * (norm(weight.detach()) / norm(noise))


def losses_along(
    network: nn.Module,
    loss: Callable[[Callable[[Tensor], Tensor]], float],
    first: tuple[Direction, float],
    second: Direction,
    places: Tensor,
) -> Tensor:
    """One row of a surface: losses (P,) float64 at weights + a * first + b * second for every b in ``places`` (P,).

    ``first`` is the pair (direction, a). ``loss`` takes the network as a function of images; nothing is changed.
    """
    direction, at = first
    weights = {name: item.detach() for name, item in network.named_parameters()}
    line = {name: item + at * direction[name] for name, item in weights.items()}
    row = []
    with torch.no_grad():
        for place in places.tolist():
            moved = {name: item + place * second[name] for name, item in line.items()}
            row.append(loss(lambda images, moved=moved: functional_call(network, moved, (images,))))
    return torch.tensor(row, dtype=torch.float64)
