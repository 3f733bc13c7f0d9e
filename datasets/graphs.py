"""Graphs with features and classes of nodes, from an .npz file: ``cora``, ``citeseer`` (in ``paths.data``), your own.

The file's arrays, none of them pickled:

    edges (E, 2)                      pairs of node numbers from 0, each pair once or in both directions
    features (n, f)                   or as compressed rows: indptr (n + 1,), indices, data, shape (2,)
    labels (n,)                       classes from 0, -1: none; may be left out where no method asks for classes
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zipfile import BadZipFile

from runner.datasets import files
from runner.errors import UserError
from runner.schema import AnyDataset

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy
    import torch

    from runner.datasets.images import Limits

KIND = "graph"
ARRAYS = "edges (E, 2), features (n, f) or indptr, indices, data and shape of compressed rows, labels (n,)"


@dataclass(kw_only=True)
class Settings(AnyDataset):
    self_loops: Literal["keep", "drop"] = "keep"  # edges of a node with itself, where the file has some


def check(settings: Settings, data_root: Path, offline: bool) -> None:
    _place(settings, data_root)


def found(dataset: Mapping[str, Any], data_root: Path) -> Path | None:
    """The user's file in the data root, whose content enters the key as that of ``dataset.path`` does."""
    place = data_root / f"{dataset['name']}.npz"
    return place if dataset["name"] != "graph_file" and place.is_file() else None


def _place(settings: Settings, data_root: Path) -> Path:
    if settings.path is not None:
        return files.user_path(settings.path)
    if settings.name == "graph_file":
        raise UserError(f"dataset=graph_file needs dataset.path=FILE.npz with {ARRAYS}")
    place = found({"name": settings.name}, data_root)
    if place is None:
        raise UserError(
            f"dataset={settings.name}: there is no {data_root / settings.name}.npz; bring it (paths.data=FOLDER or "
            f"dataset.path=FILE.npz), an .npz of {ARRAYS}; dataset=block_graph needs no file"
        )
    return place


def load(settings: Settings, limits: Limits, data_root: Path) -> GraphData:
    place = _place(settings, data_root)
    edges, features, labels = _read(place)
    if settings.self_loops == "drop":
        edges = edges[edges[:, 0] != edges[:, 1]]
    name = place.stem if settings.name == "graph_file" else settings.name
    return GraphData(name, features, edges, labels).capped(limits.train)


def _read(place: Path) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray | None]:
    import numpy
    from scipy import sparse

    try:
        with numpy.load(place, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, BadZipFile, TypeError) as error:
        raise UserError(f"{place} is no .npz file of plain arrays: {error}") from None
    try:
        if "features" in arrays:
            features = arrays["features"].astype(numpy.float32)
        else:
            rows = (arrays["data"], arrays["indices"], arrays["indptr"])
            features = sparse.csr_array(rows, shape=tuple(arrays["shape"].tolist())).toarray().astype(numpy.float32)
        edges, labels = arrays["edges"].astype(numpy.int64), arrays.get("labels")
        labels = None if labels is None else labels.astype(numpy.int64)
    except KeyError as error:
        raise UserError(f"{place} has no array {error}; a graph is {ARRAYS}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{place}: {error}; a graph is {ARRAYS}") from None
    nodes = len(features) if features.ndim else 0
    shaped = nodes and features.ndim == 2 and edges.ndim == 2 and edges.shape[1] == 2
    if not shaped or (len(edges) and not 0 <= edges.min() <= edges.max() < nodes):
        raise UserError(f"{place}: features {features.shape} and edges {edges.shape} make no graph; it is {ARRAYS}")
    if labels is not None and labels.shape != (nodes,):
        raise UserError(f"{place}: labels {labels.shape} are not those of {nodes} nodes")
    if labels is not None and labels.max() >= nodes:
        raise UserError(f"{place}: the label {labels.max()} of {nodes} nodes; classes are numbered from 0")
    if not numpy.isfinite(features).all():
        raise UserError(f"{place}: features hold values that are not finite")
    return numpy.unique(numpy.sort(edges, 1), axis=0), features, labels


@dataclass
class GraphData:
    """features (n, f) float32, edges (E, 2) int64 with each pair once, labels (n,) int64 (-1: none) or None."""

    name: str
    features: numpy.ndarray
    edges: numpy.ndarray
    labels: numpy.ndarray | None
    kind: str = KIND
    whole: int | None = None  # nodes before a cap

    @property
    def display_name(self) -> str:
        return self.name

    @cached_property
    def classes(self) -> int:
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def to(self, device: torch.device) -> GraphData:
        return self

    def describe(self) -> str:
        count = f"{len(self.features)} nodes" + (f" of {self.whole}" if self.whole else "")
        return f"data {self.name}: {count}, {len(self.edges)} edges, {self.features.shape[1]} features, " + (
            f"{self.classes} classes" if self.classes else "no classes"
        )

    def capped(self, nodes: int | None) -> GraphData:
        """The graph between ``nodes`` nodes, found breadth first from that of the highest degree; None: whole."""
        import numpy
        from scipy import sparse
        from scipy.sparse.csgraph import breadth_first_order

        whole = len(self.features)
        if nodes is None or whole <= nodes:
            return self
        ones = numpy.ones(len(self.edges))
        matrix = sparse.csr_array((ones, (self.edges[:, 0], self.edges[:, 1])), shape=(whole, whole))
        start = int(numpy.bincount(self.edges.ravel(), minlength=whole).argmax())
        found = breadth_first_order(matrix, start, directed=False, return_predecessors=False)
        rest = numpy.setdiff1d(numpy.arange(whole), found)
        kept = numpy.sort(numpy.concatenate([found, rest])[:nodes])
        place = numpy.full(whole, -1)
        place[kept] = numpy.arange(len(kept))
        edges = place[self.edges]
        labels = None if self.labels is None else self.labels[kept]
        return GraphData(self.name, self.features[kept], edges[(edges >= 0).all(1)], labels, whole=whole)
