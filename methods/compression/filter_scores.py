"""How important each filter of a gate is: EKG's own score and the three it is compared with.

ekg     |sum over images and positions of gradient * activation| at the places of the gate, per mini-batch and call, of
        the search score (cross-entropy to labels and to the ensemble). Lee and Song 2022, eq. 9.
taylor  the same sum at the outputs of the batch normalisations behind the gate's convolutions, of the cross-entropy to
        the labels: the gradient of a gate on BN times its value. You et al. 2019, "Gate Decorator", arXiv:1909.08174.
l1      the l1 norm of the filter. Li et al. 2017, arXiv:1608.08710.
fpgm    the sum of distances to the other filters of its layer, small near the geometric median. He et al. 2019,
        arXiv:1811.00250.
Scores add over the layers and calls of a gate; a removed filter scores 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from runner.methods.compression.executor import SlicedExecutor, Weights


def l1_norms(kernel: Tensor) -> Tensor:
    """Sum of absolute weights of every filter of a kernel (filters, channels, height, width) -> (filters,)."""
    return kernel.abs().flatten(1).sum(1)


def geometric_median_distances(kernel: Tensor) -> Tensor:
    """Sum of Euclidean distances of every filter to all others; kernel (filters, ...) -> (filters,)."""
    filters = kernel.flatten(1)
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def weight_scores(
    executor: SlicedExecutor, weights: Weights, kept: Sequence[Tensor], filter_score: str
) -> list[Tensor]:
    """Scores (C_g,) of every gate from the kept weights; ``filter_score`` is l1 or fpgm."""
    measure = {"l1": l1_norms, "fpgm": geometric_median_distances}[filter_score]
    sums = [sum(measure(weights[name][0]) for name in gate.producers) for gate in executor.gated.gates]
    return _spread(executor, sums, kept)


def tapped_nodes(executor: SlicedExecutor, filter_score: str) -> list[list[Node]]:
    """The nodes of every gate at which ``filter_score`` (ekg or taylor) multiplies gradient and value."""
    if filter_score == "ekg":
        return [[executor.node_named[place] for place in gate.places] for gate in executor.gated.gates]
    norms = {name for name, layer in executor.gated.layers.items() if layer.kind == "norm"}
    node_of = {node.target: node for node in executor.nodes if node.op == "call_module"}
    taps = []
    for gate in executor.gated.gates:
        taps.append([])
        for name in gate.producers:
            users = list(node_of[name].users)
            behind = len(users) == 1 and users[0].op == "call_module" and users[0].target in norms
            taps[-1].append(users[0] if behind else node_of[name])  # a convolution without normalisation: its output
    return taps


def tap_scores(
    executor: SlicedExecutor, taps: list[list[Node]], sums: Mapping[Node, Tensor], kept: Sequence[Tensor]
) -> list[Tensor]:
    """Scores (C_g,) of every gate from the channel sums of its taps."""
    return _spread(executor, [sum(sums[node] for node in nodes) for nodes in taps], kept)


def ranks(scores: Tensor, kept: Tensor) -> Tensor:
    """Rank of every channel by falling score, 0 = most important; removed channels stay last, ties by index."""
    keys = torch.full_like(scores, -1.0)
    keys[kept] = scores[kept]
    order = torch.empty(len(scores), dtype=torch.int64, device=scores.device)
    order[torch.argsort(keys, descending=True, stable=True)] = torch.arange(len(scores), device=scores.device)
    return order


def _spread(executor: SlicedExecutor, sums: Sequence[Tensor], kept: Sequence[Tensor]) -> list[Tensor]:
    scores = []
    for gate, values, channels in zip(executor.gated.gates, sums, kept, strict=True):
        scores.append(torch.zeros(gate.channels, dtype=torch.float64, device=values.device))
        scores[-1][channels] = values.double()
    return scores
