"""What federated methods share about clients: who holds which examples, who takes part, means of what they send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

VALUE_BYTES = INDEX_BYTES = 4  # of a number, and of its place in a sparse message


def iid_parts(labels: Tensor, clients: int, generator: numpy.random.Generator) -> list[Tensor]:
    """Shuffled rows in parts whose sizes differ by one at most (McMahan et al. 2017, section 3)."""
    return _parts(numpy.array_split(generator.permutation(len(labels)), clients))


def shard_parts(labels: Tensor, clients: int, shards: int, generator: numpy.random.Generator) -> list[Tensor]:
    """Rows sorted by label in clients * shards equal shards, of which each client gets ``shards`` at random.

    With 2 shards most clients see two classes: the pathological non-IID split of McMahan et al. 2017, section 3.
    """
    order = generator.permutation(len(labels))
    order = order[numpy.argsort(labels.cpu().numpy()[order], kind="stable")]
    cut = numpy.array_split(order, clients * shards)
    dealt = generator.permutation(clients * shards).reshape(clients, shards)
    return _parts([numpy.concatenate([cut[shard] for shard in row]) for row in dealt])


def dirichlet_parts(
    labels: Tensor, clients: int, concentration: float, generator: numpy.random.Generator
) -> list[Tensor]:
    """Parts of equal size (to one example) whose shares of the classes are drawn from a Dirichlet distribution.

    Hsu et al. 2019, arXiv:1909.06335. Its parameters are ``concentration`` times the set's own class shares, scaled to
    a mean of 1 over the classes. Examples are drawn without replacement; where a class runs out, the client's other
    shares grow in proportion. A large concentration is IID, a small one gives clients of one class.
    """
    labels = labels.cpu().numpy()
    classes, counts = numpy.unique(labels, return_counts=True)
    pools = [generator.permutation(numpy.flatnonzero(labels == label)) for label in classes]
    parts = []
    for size in [len(part) for part in numpy.array_split(labels, clients)]:
        shares = generator.dirichlet(concentration * counts / counts.mean())
        taken: list[numpy.ndarray] = []
        while size:
            left = numpy.array([len(pool) for pool in pools])
            weights = numpy.where(left > 0, shares, 0.0)
            weights = weights if weights.sum() > 0 else (left > 0).astype(float)  # nothing is left that it wants
            drawn = numpy.minimum(generator.multinomial(size, weights / weights.sum()), left)
            for label, count in enumerate(drawn):
                taken.append(pools[label][:count])
                pools[label] = pools[label][count:]
            size -= drawn.sum()
        parts.append(numpy.concatenate(taken) if taken else numpy.empty(0, dtype=numpy.int64))
    return _parts(parts)


def participants(clients: int, share: float, generator: numpy.random.Generator) -> list[int]:
    """max(share * clients, 1) different clients, uniformly at random (McMahan et al. 2017, algorithm 1)."""
    return generator.permutation(clients)[: max(round(share * clients), 1)].tolist()


class RunningMean:
    """sum_k weight_k state_k / sum_k weight_k of what clients send one after the other; state that a loop can save.

    Counters (integers) are not averaged: the last client's stay.
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self.sums: dict[str, Tensor] = {}

    def add(self, state: Mapping[str, Tensor], weight: float) -> None:
        """``weight`` > 0, as a rule the client's number of examples."""
        for name, item in state.items():
            if item.is_floating_point():
                self.sums[name] = self.sums.get(name, 0) + weight * item
            else:
                self.sums[name] = item.clone()
        self.weight += weight

    def take(self) -> dict[str, Tensor]:
        """The mean; afterwards a new one begins."""
        sums, weight = self.sums, self.weight
        self.sums, self.weight = {}, 0.0
        return {name: item / weight if item.is_floating_point() else item for name, item in sums.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight, self.sums = state["weight"], state["sums"]


def dense_bytes(state: Mapping[str, Tensor]) -> int:
    """Of all tensors as they are."""
    return sum(item.numel() * item.element_size() for item in state.values())


def sparse_bytes(state: Mapping[str, Tensor]) -> int:
    """Of the entries that are not 0, each with its place in the tensor."""
    return sum(int(item.count_nonzero()) for item in state.values()) * (VALUE_BYTES + INDEX_BYTES)


def _parts(parts: Sequence[numpy.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(numpy.asarray(part, dtype=numpy.int64)) for part in parts]
