"""Attention between the items of a batch at two depths of a network: a graph (B, B) a head.

Lee and Song 2019 (MHGD), arXiv:1907.02226, section 3; also the black-box branch of IEP, arXiv:2104.13561. Vectors of a
batch are (B, D), front from the lower depth, back from the upper one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.errors import UserError

if TYPE_CHECKING:
    from runner.schema import Recipe

EPSILON = 1e-6  # the smallest norm that vectors are divided by


def row_divergence(x: Tensor, y: Tensor) -> Tensor:
    """sum softmax(x) (log softmax(x) - log softmax(y)) over all rows of (..., B, B), in nats: a sum, not a mean."""
    return F.kl_div(y.log_softmax(-1), x.log_softmax(-1), reduction="sum", log_target=True)


def graph_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """``row_divergence`` of scores (A, B, B) that tanh has softened, the student's distribution first; MHGD, eq. 6."""
    return row_divergence(student.tanh(), teacher.tanh())


def linear(in_features: int, out_features: int, *, bias: bool = False) -> nn.Linear:
    """A linear map initialised by its fan-out, as all of the code base's; the bias is 0."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def linear_norm(in_features: int, out_features: int) -> nn.Sequential:
    """``linear`` without bias, and batch normalisation."""
    return nn.Sequential(linear(in_features, out_features), nn.BatchNorm1d(out_features))


class AttentionHeads(nn.Module):
    """Scores (A, B, B) of A heads: entry (a, i, j) relates item i's back vector to item j's front vector."""

    def __init__(self, front: int, back: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, (front + back) // 2
        self.front = linear_norm(front, self.width * heads)
        self.back = linear_norm(back, self.width * heads)

    def forward(self, front: Tensor, back: Tensor) -> Tensor:
        theta, phi = (
            part(vectors).view(len(vectors), self.heads, self.width).transpose(0, 1)
            for part, vectors in ((self.back, back), (self.front, front))
        )
        return theta @ phi.transpose(1, 2)


class Estimator(nn.Module):
    """Rebuilds back vectors from front vectors (B, D) along graphs (A, B, B); (B, D_back) of unit length."""

    def __init__(self, front: int, back: int, graphs: int) -> None:
        super().__init__()
        width = (front + back) // 2
        self.front = linear_norm(front, width)
        self.back = linear(width * graphs, back, bias=True)

    def forward(self, front: Tensor, graphs: Tensor) -> Tensor:
        gathered = drop_heads(graphs) @ self.front(front).relu()
        return F.normalize(self.back(gathered.transpose(0, 1).flatten(1)), dim=1, eps=EPSILON)


def drop_heads(graphs: Tensor) -> Tensor:
    """Graphs (A, B, B) of which each item keeps about half of the heads: 1 to A-1, those whose draw from N(0, 1) is
    above the mean over heads. Not rescaled. A single one is kept (the code's rule would always drop it)."""
    if len(graphs) == 1:
        return graphs
    noise = torch.randn(*graphs.shape[:2], 1, device=graphs.device)
    return graphs * (noise > noise.mean(0))


class GraphAttention(nn.Module):
    """The attention network of one transition between depths.

    Args:
        front, back: widths of the vectors.
        heads: trained ones.
        extrinsic: a graph (B, B) from elsewhere stands beside those of the heads.
    """

    def __init__(self, front: int, back: int, heads: int, *, extrinsic: bool = False) -> None:
        super().__init__()
        self.heads = AttentionHeads(front, back, heads)
        self.estimator = Estimator(front, back, heads + extrinsic)

    def forward(self, front: Tensor, back: Tensor) -> Tensor:
        """Scores (A, B, B)."""
        return self.heads(front, back)

    def estimation_loss(self, front: Tensor, back: Tensor, extrinsic: Tensor | None = None) -> Tensor:
        """Mean over the batch of 1 - <back, its estimate>; ``extrinsic`` (B, B) is used as it is, without gradient."""
        graphs = self.heads(front, back).softmax(-1)
        if extrinsic is not None:
            graphs = torch.cat([graphs, extrinsic.detach()[None]])
        return (1 - (back * self.estimator(front, graphs)).sum(1)).mean()


def squared_weights(module: nn.Module) -> Tensor:
    """The sum of squares of all parameters. The code base penalises those of a distiller without the factor 1/2 of an
    optimizer's weight decay: adding decay / 2 times this doubles it."""
    return torch.stack([item.square().sum() for item in module.parameters()]).sum()


def require_graphs(maps: Sequence[Tensor], images: int, recipe: Recipe) -> None:
    """Raises UserError for networks with a single point, and where the last batch would be a single image."""
    if len(maps) < 2:
        raise UserError("model: maps of one stage can be read, and this method needs two; name more in its `stages`")
    size = recipe.batch_size
    if min(images, size) == 1 or (images % size == 1 and not recipe.drop_last):
        raise UserError(
            f"recipe.batch_size={size}: of {images} training images the last batch has one alone, and this method "
            "compares the images of a batch; set recipe.drop_last=true or another batch size"
        )
