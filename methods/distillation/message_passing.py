"""Affinity between the items of a batch at one depth, and a network that predicts it at the next depth by messages.

Lee and Song 2021 (IEP), arXiv:2104.13561, section "message passing"; the formulas are those of the authors' code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.methods.distillation.graph_attention import EPSILON, linear, linear_norm


def affinity(codes: Tensor) -> Tensor:
    """Cosines (B, B) between codes (B, D); 0 for a code of length 0."""
    units = F.normalize(codes, dim=1, eps=EPSILON)
    return units @ units.T


class MessagePassing(nn.Module):
    """From codes (B, D_front) and (B, D_back) of two depths to the affinity at the upper one.

    An edge between two items is a vector of D_back entries whose mean is their affinity. At the start it is that of
    the front codes behind a linear map and batch normalisation; messages, made of the difference of the back codes
    and the edge's mean, are added to it. One set of weights serves all iterations.
    """

    def __init__(self, front: int, back: int, iterations: int = 2) -> None:
        super().__init__()
        self.iterations = iterations
        self.edge = linear_norm(front, back)
        self.message, self.gate = linear(back + 1, back), linear(back + 1, back)
        self.message_norm, self.gate_norm = nn.BatchNorm1d(back), nn.BatchNorm1d(back)

    def forward(self, front: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
        """Affinity (B, B) and messages (B, B, iterations * D_back)."""
        edges = self.edges(front)
        of_message, of_gate = (_of_differences(layer, back) for layer in (self.message, self.gate))
        messages = []
        for _ in range(self.iterations):
            mean = edges.mean(-1, keepdim=True)
            message = _over_pairs(self.message_norm, of_message + mean * self.message.weight[:, -1])
            gate = _over_pairs(self.gate_norm, of_gate + mean * self.gate.weight[:, -1])
            messages.append(message * gate.sigmoid())
            edges = edges + messages[-1]
        return edges.mean(-1), torch.cat(messages, -1)

    def edges(self, front: Tensor) -> Tensor:
        """(B, B, D_back) before any message."""
        units = F.normalize(self.edge(front), dim=1, eps=EPSILON)
        return units.shape[1] * units[:, None] * units[None]

    def relation(self, messages: Tensor) -> Tensor:
        """The sum over iterations of the mean message (B, B): IEP's extrinsic attention."""
        return messages.mean(-1) * self.iterations


def _of_differences(layer: nn.Linear, codes: Tensor) -> Tensor:
    """The part of ``layer`` that reads codes[v] - codes[w], (B, B, D): the map first, then the difference, so that it
    costs B products instead of B^2."""
    mapped = codes @ layer.weight[:, :-1].T
    return mapped[:, None] - mapped[None]


def _over_pairs(norm: nn.BatchNorm1d, pairs: Tensor) -> Tensor:
    return norm(pairs.flatten(0, 1)).view_as(pairs)
