"""How well an embedding of nodes tells clusters and missing edges."""

from __future__ import annotations

from typing import NamedTuple

import numpy
from scipy.optimize import linear_sum_assignment
from scipy.special import expit

from runner.errors import UserError


def matched(labels: numpy.ndarray, clusters: numpy.ndarray) -> numpy.ndarray:
    """(n,): the clusters under the names of classes, one to one, that give the most right nodes (Hungarian method).

    A cluster beyond the number of classes keeps a name of its own.
    """
    size = int(max(labels.max(), clusters.max())) + 1
    together = numpy.zeros((size, size), int)
    numpy.add.at(together, (clusters, labels), 1)
    return linear_sum_assignment(-together)[1][clusters]


def clustering_scores(labels: numpy.ndarray, clusters: numpy.ndarray) -> dict[str, float]:
    """accuracy and macro_f1 after matching, normalised mutual_information (arithmetic), adjusted_rand (at most 1)."""
    from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score

    named = matched(labels, clusters)
    return {
        "accuracy": float((named == labels).mean()),
        "mutual_information": float(normalized_mutual_info_score(labels, clusters)),
        "adjusted_rand": float(adjusted_rand_score(labels, clusters)),
        "macro_f1": float(f1_score(labels, named, average="macro")),
    }


class Links(NamedTuple):
    """Edges (m, 2) to train on, to find, and as many pairs that are none; validation is taken off and not used."""

    train: numpy.ndarray
    validation: numpy.ndarray
    test: numpy.ndarray
    absent: numpy.ndarray


def split_links(edges: numpy.ndarray, nodes: int, generator: numpy.random.Generator) -> Links:
    """A tenth of the edges for the test, a twentieth for validation, both rounded down; edges of a node with itself
    are left out.

    Args:
        edges: (E, 2), each pair once.

    Raises:
        UserError: too few pairs of nodes are no edges.
    """
    edges = numpy.sort(edges[edges[:, 0] != edges[:, 1]], 1).astype(numpy.int64)
    validation, test = len(edges) // 20, len(edges) // 10
    without = nodes * (nodes - 1) // 2 - len(edges)
    if without < test:
        raise UserError(f"dataset: of {nodes} nodes {without} pairs have no edge, and method.task needs {test} of them")
    order = generator.permutation(len(edges))
    taken = set((edges[:, 0] * nodes + edges[:, 1]).tolist())
    absent = []
    while len(absent) < test:
        first, second = sorted(generator.integers(0, nodes, 2).tolist())
        if first != second and first * nodes + second not in taken:
            taken.add(first * nodes + second)
            absent.append((first, second))
    return Links(
        train=edges[order[validation + test :]],
        validation=edges[order[:validation]],
        test=edges[order[validation : validation + test]],
        absent=numpy.array(absent, numpy.int64).reshape(-1, 2),
    )


def link_scores(embedding: numpy.ndarray, links: Links) -> dict[str, float]:
    """area_under_curve and average_precision of sigmoid(h_i . h_j), in the embedding's precision as in the released
    code: large products have equal scores."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    pairs = numpy.concatenate([links.test, links.absent])
    scores = expit(numpy.einsum("nf,nf->n", embedding[pairs[:, 0]], embedding[pairs[:, 1]]))
    truth = numpy.repeat([1, 0], [len(links.test), len(links.absent)])
    return {
        "area_under_curve": float(roc_auc_score(truth, scores)),
        "average_precision": float(average_precision_score(truth, scores)),
    }
