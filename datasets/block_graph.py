"""Generated graphs: a degree-corrected stochastic block model, features a block's prototype and noise. No download.

A pair of nodes is an edge with probability min(1, w_i w_j p), p larger by ``contrast`` within a block; the weights w
are of a power law with mean 1. The run's seed draws the graph. Made for two CPU cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from runner.errors import UserError
from runner.schema import AnyDataset

if TYPE_CHECKING:
    import numpy

    from runner.datasets.graphs import GraphData
    from runner.datasets.images import Limits

KIND = "graph"
Size = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]


@dataclass(kw_only=True)
class Settings(AnyDataset):
    nodes: Size = 1000
    blocks: Annotated[int, Field(ge=2)] = 4  # of equal size; the classes
    features: Size = 100
    average_degree: Positive = 10.0
    contrast: Positive = 8.0  # an edge's probability within a block over that between blocks
    degree_exponent: Annotated[float, Field(gt=2)] = 3.0  # of the power law of the weights
    noise: Annotated[float, Field(ge=0)] = 1.0  # standard deviation of every feature, a block's own of which is 1

    def __post_init__(self) -> None:
        if self.blocks > min(self.nodes, self.features):
            raise ValueError("blocks: as many nodes and features are needed")


def check(settings: Settings, data_root: Path, offline: bool) -> None:
    if settings.path is not None:
        raise UserError(f"dataset.path={settings.path}: block graphs are generated")


def load(settings: Settings, limits: Limits, data_root: Path) -> GraphData:
    import numpy

    from runner.datasets.graphs import GraphData

    generator = numpy.random.default_rng(numpy.random.randint(2**31))  # of the run's stream of data
    nodes = settings.nodes if limits.train is None else min(settings.nodes, limits.train)
    labels = numpy.arange(nodes) * settings.blocks // nodes
    edges = draw_edges(labels, settings, generator)
    features = numpy.eye(settings.features)[labels] + settings.noise * generator.normal(size=(nodes, settings.features))
    return GraphData(settings.name, features.astype(numpy.float32), edges, labels)


def draw_edges(labels: numpy.ndarray, settings: Settings, generator: numpy.random.Generator) -> numpy.ndarray:
    """(E, 2), i < j, of nodes with the given blocks (n,)."""
    import numpy

    nodes = len(labels)
    weights = generator.random(nodes) ** (-1 / (settings.degree_exponent - 1))
    weights /= weights.mean()
    inside, blocks = settings.contrast, settings.blocks
    between = settings.average_degree / nodes / (inside / blocks + 1 - 1 / blocks)
    first, second = numpy.triu_indices(nodes, 1)
    probability = weights[first] * weights[second] * between
    probability[labels[first] == labels[second]] *= inside
    chosen = generator.random(len(first)) < probability
    return numpy.stack([first[chosen], second[chosen]], 1)
