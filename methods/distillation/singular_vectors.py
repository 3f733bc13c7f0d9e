"""Leading singular vectors of feature maps, with a gradient that stays finite, and what is made of them.

A map (B, C, H, W) is read as one matrix (H*W, C) an image: left vectors say where, right vectors which channels.
Lee et al. 2018 (KD-SVD), arXiv:1807.06819; Lee and Song 2019 (MHGD), arXiv:1907.02226.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_GAP = 1e-6  # of squared singular values, below it two vectors count as one space and exchange no gradient


def matrices(maps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C)."""
    return maps.flatten(2).transpose(1, 2)


def right_vectors(maps: Tensor, count: int, *, gram: bool = False) -> Tensor:
    """The leading ``count`` right singular vectors (B, C, count) of unit length, with gradient.

    Args:
        gram: by the eigenvectors of the smaller of the two products of the matrix with itself, where its sides differ
            by more than half (EID); else by the singular value decomposition.
    """
    return _RightVectors.apply(matrices(maps), count, gram)


def leading(maps: Tensor, count: int, *, gram: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors (B, H*W, count), singular values (B, count) and right vectors (B, C, count), without gradient."""
    with torch.no_grad():
        u, s, v = decompose(matrices(maps.float()), gram)
    return u[..., :count], s[..., :count], v[..., :count]


def decompose(matrix: Tensor, gram: bool) -> tuple[Tensor, Tensor, Tensor]:
    """U (B, M, R), S (B, R) falling, V (B, N, R) of (B, M, N), R the smaller side; zeros in place of what is not
    finite."""
    rows, columns = matrix.shape[1:]
    if not gram or 2 / 3 < rows / columns < 3 / 2:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        v = vh.transpose(1, 2)
    elif columns < rows:
        v = torch.linalg.eigh(matrix.transpose(1, 2) @ matrix).eigenvectors.flip(2)
        s = (matrix @ v).norm(dim=1)
        u = matrix @ v / s[:, None].clamp_min(1e-12)
    else:
        u = torch.linalg.eigh(matrix @ matrix.transpose(1, 2)).eigenvectors.flip(2)
        s = (matrix.transpose(1, 2) @ u).norm(dim=1)
        v = matrix.transpose(1, 2) @ u / s[:, None].clamp_min(1e-12)
    return tuple(torch.nan_to_num(item, 0.0, 0.0, 0.0) for item in (u, s, v))


class _RightVectors(torch.autograd.Function):
    """dX = U S (K * (V' dV - dV' V)) V' + U S^-1 dV' (I - V V'), K_ij = 1 / (s_j^2 - s_i^2), 0 at small gaps.

    The exact derivative (the released code's is twice its first part, a factor that its clipping hides).
    """

    @staticmethod
    def forward(ctx, matrix: Tensor, count: int, gram: bool) -> Tensor:
        u, s, v = decompose(matrix if matrix.dtype == torch.float64 else matrix.float(), gram)
        ctx.save_for_backward(u, s, v)
        ctx.kind = matrix.dtype
        return v[..., :count].to(matrix.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        u, s, v = ctx.saved_tensors
        full = torch.zeros_like(v)
        full[..., : gradient.shape[2]] = gradient.to(v.dtype)
        squares = s.square()
        gaps = squares[:, None, :] - squares[:, :, None]
        inverse = torch.where(gaps.abs() < SMALLEST_GAP, torch.zeros_like(gaps), 1 / gaps)
        turned = v.transpose(1, 2) @ full
        inside = (u * s[:, None]) @ (inverse * (turned - turned.transpose(1, 2))) @ v.transpose(1, 2)
        over = torch.where(s > SMALLEST_GAP**0.5, 1 / s, torch.zeros_like(s))
        outside = (u * over[:, None]) @ (full - v @ turned).transpose(1, 2)
        return (inside + outside).to(ctx.kind), None, None


def fix_sign(vectors: Tensor) -> Tensor:
    """The sign (B, 1, K) that makes the entry of largest magnitude of each column of (B, C, K) positive (IEP)."""
    return torch.where(vectors.amax(1, keepdim=True) + vectors.amin(1, keepdim=True) < 0, -1.0, 1.0)


def align(student: Tensor, teacher: Tensor) -> Tensor:
    """For each teacher vector (B, C, K) the student vector (of B, C, L) nearest in direction, with its sign; (B, C, K).

    The choice is a constant: gradient flows through the chosen vectors alone. MHGD, post-processing.
    """
    cosines = student.detach().transpose(1, 2) @ teacher
    chosen = cosines.abs().argmax(1, keepdim=True)
    sign = torch.where(cosines.gather(1, chosen) < 0, -1.0, 1.0)
    return student.gather(2, chosen.expand(-1, student.shape[1], -1)) * sign


def project(student: Tensor, left: Tensor) -> Tensor:
    """The student's map (B, C, H, W) weighted by the teacher's left vectors (B, H*W, K); (B, C, K) of unit length."""
    return F.normalize(matrices(student).transpose(1, 2) @ left, dim=1)


def relation(lower: Tensor, upper: Tensor) -> Tensor:
    """exp(-(upper_i - lower_j)^2 / 8) for all entries of vectors (B, D, K) and (B, E, K); (B, E, D, K)."""
    return (-(upper[:, :, None] - lower[:, None]).square() / 8).exp()


def relation_differences(student: Sequence[Tensor], teacher: Sequence[Tensor], *, gram: bool = False) -> Tensor:
    """KD-SVD: the sum over the batch and adjacent points of squared differences of ``relation``; a scalar.

    Of the teacher's maps the first right vector, its sign fixed; of the student's the nearest of the first four. Maps
    (B, C, H, W) have equal widths; a single vector makes its scale, the normalised singular value, 1.
    """
    vectors = []
    for s, t in zip(student, teacher, strict=True):
        _, _, of_teacher = leading(t, 1, gram=gram)
        of_teacher = of_teacher * fix_sign(of_teacher)
        vectors.append((align(right_vectors(s, 4, gram=gram), of_teacher), of_teacher))
    return _adjacent(vectors)


def projected_differences(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The same with the teacher's first four pairs of vectors: the student's right vectors are its maps weighted by
    the teacher's left ones, all scaled by the normalised singular values (the TF2 code base). A scalar."""
    vectors = []
    for s, t in zip(student, teacher, strict=True):
        left, values, right = leading(t, 4, gram=True)
        sign, scale = fix_sign(right), F.normalize(values, dim=1)[:, None]
        vectors.append((project(s, left * sign) * scale, right * sign * scale))
    return _adjacent(vectors)


def _adjacent(vectors: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    differences = [
        (relation(lower[0], upper[0]) - relation(lower[1], upper[1])).square().sum()
        for lower, upper in pairwise(vectors)
    ]
    return torch.stack(differences).sum()
