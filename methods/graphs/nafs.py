"""NAFS: node-adaptive feature smoothing, an embedding of a graph's nodes without any training.

Zhang, Sheng, Yang, Li, Shen, Yang and Cui, "NAFS: A Simple yet Tough-to-Beat Baseline for Graph Representation
Learning", ICML 2022, arXiv:2206.08583. Official code: PKU-DAIR/NAFS. Formulas: ``smoothing``. Deviations: the class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy
import torch
from pydantic import Field

from runner.errors import UserError
from runner.methods.graphs.scores import Links, clustering_scores, link_scores, split_links
from runner.methods.graphs.smoothing import Ensemble, Weighting, adjacency, embed
from runner.storage import replace_atomic

if TYPE_CHECKING:
    from runner.context import Context
    from runner.datasets.graphs import GraphData

Hops = Annotated[int, Field(ge=0)]
PUBLISHED_HOPS = {  # of the released scripts: chosen for each data set and variant by test scores
    "clustering": {
        "cora": {"simple": 8, "mean": 17, "max": 10, "concat": 19},
        "citeseer": {"simple": 8, "mean": 15, "max": 10, "concat": 10},
        "pubmed": {"simple": 8, "mean": 56, "max": 65, "concat": 55},
        "wiki": {"simple": 2, "mean": 8, "max": 10, "concat": 7},
    },
    "link_prediction": {
        "cora": {"simple": 2, "mean": 9, "max": 8, "concat": 10},
        "citeseer": {"simple": 2, "mean": 4, "max": 4, "concat": 12},
        "pubmed": {"simple": 2, "mean": 6, "max": 5, "concat": 6},
    },
}
OTHER_HOPS = 20  # the scripts' own default


@dataclass(kw_only=True)
class NAFS:
    """Smoothed features, each node weighting its hops by their similarity to its own; then k-means, or dot products."""

    task: Literal["clustering", "link_prediction"] = "clustering"
    weighting: Weighting = "adaptive"  # uniform: all hops alike; last: hop K alone (SGC's features; at 0 hops the raw)
    ensemble: Ensemble = "concat"  # of the exponents
    exponents: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)] = field(
        default_factory=lambda: [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    )  # r of D^(r-1) (A + I) D^(-r)
    hops: Hops | None = None  # K; null: the released scripts' for the data set and variant, else 20
    sweep: list[Hops] = field(default_factory=list)  # other K that are measured too
    restarts: Annotated[int, Field(gt=0)] = 20  # of k-means, of which the least inertia counts
    save_embedding: bool = False  # artifacts/embedding.npy

    paper: ClassVar[str] = "arXiv:2206.08583"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "Smoothed features whose hops each node weights by itself match or beat trained graph autoencoders, and do not "
        "over-smooth."
    )
    data: ClassVar[tuple[str, ...]] = ("graph",)
    model: ClassVar[tuple[str, ...]] = ("none",)
    citation: ClassVar[str] = (
        "Zhang, Sheng, Yang, Li, Shen, Yang, Cui. NAFS: A Simple yet Tough-to-Beat Baseline for Graph Representation "
        "Learning. ICML 2022."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "the released loader keeps 124 self-loops of Citeseer, so that these nodes have 2 on the diagonal of A + I; a "
        "citeseer.npz without them cannot (dataset.self_loops=keep|drop is for files that have them)",
        "random streams of the split of edges are not those of the released code",
        "the number of hops was chosen with test scores in the paper; hops=null takes those numbers over",
        "nodes without a label count as class 0 in the scores, as in the released loader",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns of clustering accuracy (Hungarian method), mutual_information (normalised), adjusted_rand and
        macro_f1, of link prediction area_under_curve and average_precision; the same with _at_K for every K of
        ``sweep``, and FIRST_best, the best of them and hops, chosen on what is measured."""
        data = ctx.data
        if self.task == "clustering" and data.classes < 2:
            raise UserError(f"dataset {data.name} has no classes: method.task=link_prediction needs none")
        hops = published_hops(self.task, self._variant(), data.name) if self.hops is None else self.hops
        links = self._split(ctx, data) if self.task == "link_prediction" else None
        depths = sorted({hops, *self.sweep})

        @cache
        def embeddings() -> dict[int, numpy.ndarray]:
            matrix = adjacency(links.train if links else data.edges, len(data.features))
            return embed(data.features, matrix, depths, self.exponents, self.weighting, self.ensemble)

        found = {}
        for depth in depths:
            found[depth] = ctx.once(f"{depth} hops", lambda depth=depth: self._score(ctx, embeddings, depth, links))
        if self.save_embedding:
            replace_atomic(ctx.artifact("embedding.npy"), lambda path: _save(path, embeddings()[hops]))
        metrics = dict(found[hops])
        if self.sweep:
            first = next(iter(metrics))
            metrics |= {f"{name}_at_{depth}": found[depth][name] for depth in self.sweep for name in found[hops]}
            metrics[f"{first}_best"] = max(scores[first] for scores in found.values())
        ctx.log(**metrics)
        return metrics

    def _variant(self) -> str:
        return "simple" if self.weighting == "last" else self.ensemble

    def _split(self, ctx: Context, data: GraphData) -> Links:
        def split() -> list[torch.Tensor]:
            generator = numpy.random.default_rng(numpy.random.randint(2**31))
            return [torch.from_numpy(part) for part in split_links(data.edges, len(data.features), generator)]

        links = Links(*(part.numpy() for part in ctx.once("split", split)))
        if not len(links.test):
            raise UserError(f"dataset {data.name} has {len(data.edges)} edges: too few to hide a tenth of them")
        return links

    def _score(
        self, ctx: Context, embeddings: Callable[[], dict[int, numpy.ndarray]], depth: int, links: Links | None
    ) -> dict[str, float]:
        embedding = embeddings()[depth]
        if links is not None:
            return link_scores(embedding, links)
        from sklearn.cluster import KMeans

        kmeans = KMeans(ctx.data.classes, n_init=self.restarts, random_state=ctx.seed)
        return clustering_scores(numpy.maximum(ctx.data.labels, 0), kmeans.fit_predict(embedding))


def published_hops(task: str, variant: str, graph: str) -> int:
    """K of the released script for a data set and variant (simple, mean, max, concat); 20 where there is none."""
    return PUBLISHED_HOPS[task].get(graph, {}).get(variant, OTHER_HOPS)


def _save(path, embedding: numpy.ndarray) -> None:
    with path.open("wb") as file:
        numpy.save(file, embedding)
