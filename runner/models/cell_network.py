"""The networks of NAS-Bench-201: one cell of six edges, repeated; an architecture is the operations on the edges.

Dong and Yang 2020, arXiv:2001.00326, section 2.1. A cell has four nodes; node t is the sum over all earlier nodes of
an operation on each. An architecture is written as there: "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|", where op~s is the
operation on the edge from node s. With five operations there are 5^6 = 15,625 of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from runner.errors import UserError, did_you_mean

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NODES = 4
EDGES = NODES * (NODES - 1) // 2
ARCHITECTURES = len(OPERATIONS) ** EDGES


def cell_network(
    num_classes: int, in_channels: int, architecture: str, channels: int = 16, stages: int = 3, cells: int = 5
) -> CellNetwork:
    """The network of an architecture; the published ones have 3 stages of 5 cells, 16 channels in the first."""
    return CellNetwork(read_architecture(architecture), channels, stages, cells, num_classes, in_channels)


def read_architecture(text: str) -> tuple[str, ...]:
    """The six operations, in the order of the text: edges 0-1, 0-2, 1-2, 0-3, 1-3, 2-3.

    Raises UserError: it is written in another way, or an operation has another name.
    """
    nodes = [node.strip("|").split("|") for node in text.split("+")]
    pairs = [edge.rpartition("~") for node in nodes for edge in node]
    if [source for _, _, source in pairs] != [str(source) for node in range(1, NODES) for source in range(node)]:
        raise UserError(
            f"model.arguments.architecture={text}: write it as |op~0|+|op~0|op~1|+|op~0|op~1|op~2|, with operations "
            f"{', '.join(OPERATIONS)}"
        )
    operations = tuple(name for name, _, _ in pairs)
    for name in operations:
        if name not in OPERATIONS:
            raise UserError(
                f"model.arguments.architecture: there is no operation '{name}'; {did_you_mean(name, OPERATIONS)}"
            )
    return operations


def write_architecture(operations: Sequence[str]) -> str:
    """The inverse of ``read_architecture``."""
    edges = iter(operations)
    return "+".join("".join(["|", *(f"{next(edges)}~{source}|" for source in range(node))]) for node in range(1, NODES))


def architecture(number: int) -> str:
    """The architecture of a number 0..15,624: its digits to the base 5 are the operations, the last edge's first."""
    digits = [number // len(OPERATIONS) ** edge % len(OPERATIONS) for edge in reversed(range(EDGES))]
    return write_architecture([OPERATIONS[digit] for digit in digits])


class CellNetwork(nn.Module):
    """Images (B, in_channels, H, W) to logits (B, num_classes).

    A 3x3 stem, ``stages`` of ``cells`` cells with a residual block between them that halves the image and doubles the
    channels, batch normalisation, ReLU, the mean over all places, one linear layer.
    """

    def __init__(
        self, operations: tuple[str, ...], channels: int, stages: int, cells: int, num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        widths = [channels * 2**stage for stage in range(stages)]
        layers: list[nn.Module] = [Cell(operations, channels) for _ in range(cells)]
        for before, width in pairwise(widths):
            layers += [Reduction(before, width), *(Cell(operations, width) for _ in range(cells))]
        self.cells = nn.Sequential(*layers)
        self.end = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.end(self.cells(self.stem(images))))


class Cell(nn.Module):
    """Four nodes, each the sum of an operation on every earlier one."""

    def __init__(self, operations: tuple[str, ...], channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList([edge(name, channels) for name in operations])

    def forward(self, x: Tensor) -> Tensor:
        nodes, edges = [x], iter(self.edges)
        for _ in range(1, NODES):
            nodes.append(sum(next(edges)(node) for node in list(nodes)))
        return nodes[-1]


class Reduction(nn.Module):
    """Residual block with stride 2; its shortcut is an average and a 1x1 convolution."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            convolution(before, channels, 3, stride=2), convolution(channels, channels, 3, stride=1)
        )
        # ceil_mode: as many places as the strided convolution has, where the side is odd
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, stride=2, ceil_mode=True), nn.Conv2d(before, channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x) + self.shortcut(x)


class Zero(nn.Module):
    """The operation none. A product, as published: what stands before it still takes part in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.mul(x, 0.0)


def edge(name: str, channels: int) -> nn.Module:
    """The module of an operation."""
    if name == "none":
        return Zero()
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return convolution(channels, channels, 1 if name == "nor_conv_1x1" else 3, stride=1)


def convolution(before: int, channels: int, kernel: int, stride: int) -> nn.Sequential:
    """ReLU, convolution, batch normalisation."""
    layer = nn.Conv2d(before, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), layer, nn.BatchNorm2d(channels))
