"""Extreme eigenvalues of a loss's Hessian, matrix-free: products by double backward, Lanczos for the spectrum's ends.

Source: Lanczos 1950; Pearlmutter 1994 (exact multiplication by the Hessian). Every new vector is orthogonalised against
all earlier ones, twice, so that rounding brings back no eigenvalue that was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class HessianProduct:
    """``product(v)`` is H v for the Hessian H of a sum of scalars with respect to all ``parameters`` together.

    Args:
        shares: functions without arguments that return a scalar each; their sum is the loss. One batch is one share:
            the graph of a single share is built once and kept, several are built in turn, which bounds the memory.
        parameters: leaf tensors that require gradients; vectors (n,) hold them flattened, in this order.
    """

    def __init__(self, shares: Sequence[Callable[[], Tensor]], parameters: Sequence[Tensor]):
        self.shares, self.parameters = list(shares), list(parameters)
        self.sizes = [item.numel() for item in self.parameters]
        self._kept = self._gradients(self.shares[0]) if len(self.shares) == 1 else None

    @property
    def size(self) -> int:
        """n, the number of parameters."""
        return sum(self.sizes)

    def __call__(self, vector: Tensor) -> Tensor:
        pieces = [piece.view_as(item) for piece, item in zip(vector.split(self.sizes), self.parameters, strict=True)]
        total = torch.zeros_like(vector)
        for share in self.shares:
            gradients = self._kept or self._gradients(share)
            pairs = [(one, piece) for one, piece in zip(gradients, pieces, strict=True) if one.requires_grad]
            if not pairs:  # a linear share
                continue
            products = torch.autograd.grad(
                [one for one, _ in pairs],
                self.parameters,
                [piece for _, piece in pairs],
                retain_graph=self._kept is not None,
                materialize_grads=True,
            )
            total += torch.cat([item.reshape(-1) for item in products])
        return total

    def _gradients(self, share: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            return torch.autograd.grad(share(), self.parameters, create_graph=True, materialize_grads=True)


@dataclass(frozen=True)
class Extremes:
    """Both ends of a symmetric matrix's spectrum.

    ``residual`` is the larger of the two ||H v - lambda v|| over the largest |lambda|: an eigenvalue lies that near.
    ``converged``: the residual is within the tolerance asked for.
    """

    largest: float
    smallest: float
    residual: float
    steps: int
    converged: bool

    @property
    def condition_number(self) -> float:
        """|lambda_min / lambda_max|: 0 looks convex, the larger the more curvature points down (EKG card, section 4).

        NaN for a Hessian of zeros.
        """
        return abs(self.smallest / self.largest) if self.largest else math.nan


def extreme_eigenvalues(
    product: Callable[[Tensor], Tensor], start: Tensor, *, steps: int, tolerance: float
) -> Extremes:
    """Largest and smallest eigenvalue of the symmetric matrix behind ``product``, by at most ``steps`` products.

    Args:
        start: (n,), not zero, in the precision of the vectors; random, so that it holds all eigenvectors.
        tolerance: of the relative residual (see ``Extremes``) at which both ends count as found.
    """
    size = start.numel()
    basis = start.new_empty(min(steps, size), size)
    vector = start / start.norm()
    diagonal: list[float] = []
    beside: list[float] = []
    rounding = 10 * torch.finfo(start.dtype).eps
    while True:
        count = len(diagonal) + 1
        basis[count - 1] = vector
        following = product(vector)
        diagonal.append(torch.dot(vector, following).item())
        for _ in range(2):
            following -= basis[:count].T @ (basis[:count] @ following)
        norm = following.norm().item()
        values, last = _ritz(diagonal, beside)
        scale = max(abs(values[0]), abs(values[-1]))
        residual = norm * max(abs(last[0]), abs(last[-1])) / scale if scale else norm
        exhausted = norm <= rounding * scale or count == size  # the basis spans a subspace that H maps to itself
        if residual <= tolerance or exhausted or count == steps:
            return Extremes(values[-1], values[0], residual, count, residual <= tolerance or exhausted)
        beside.append(norm)
        vector = following / norm


def _ritz(diagonal: Sequence[float], beside: Sequence[float]) -> tuple[list[float], list[float]]:
    """Eigenvalues, ascending, of the tridiagonal matrix, and the last component of every eigenvector."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if beside:
        off = torch.tensor(beside, dtype=torch.float64)
        matrix += torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values.tolist(), vectors[-1].tolist()
