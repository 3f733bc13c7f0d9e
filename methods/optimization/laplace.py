"""Posterior and prediction of a linear model with Gaussian prior and curvature-weighted data: formulas and dense forms.

Antoran et al., ICLR 2023, arXiv:2210.04994. M = sum_n J_n' B_n J_n, H = M + lam I with the prior precision lam.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def effective_dimension(squares: Tensor, precision: float, size: int, *, weight_space: bool) -> float:
    """gamma = tr(H^-1 M) as the mean over samples, clipped to 1..P - 1.

    Args:
        squares: (K,): in function space sum_n |J_n z_k|^2 in the metric B_n; in weight space |z_k|^2.
        size: P.
    """
    gamma = float(squares.mean())
    if weight_space:
        gamma = size - precision * gamma
    return min(max(gamma, 1.0), max(size - 1.0, 1.0))


def updated_precision(gamma: float, mode: Tensor) -> float:
    """MacKay's fixed point: gamma / |theta|^2 at the mode of the linear model (P,)."""
    return gamma / max(float(mode.square().sum()), 1e-12)


def prior_scale(squares: Tensor, samples: int) -> Tensor:
    """The g-prior: diag(M)^-1/2 from sums of squared J' eps over the data and ``samples`` draws, (P,)."""
    return (samples / squares.clamp_min(1e-6)).sqrt()


def gibbs_probit(logits: Tensor, variances: Tensor) -> Tensor:
    """Log-probabilities of softmax(f / sqrt(1 + pi v / 8)); both (B, O)."""
    return (logits / (1 + math.pi / 8 * variances).sqrt()).log_softmax(-1)


def averaged_softmax(logits: Tensor, samples: Tensor) -> Tensor:
    """Log of the mean over samples (K, B, O) of softmax(f + sample), (B, O)."""
    return (logits + samples).log_softmax(-1).logsumexp(0) - math.log(len(samples))


def joint_log_likelihood(log_likelihoods: Tensor, counts: Tensor) -> float:
    """Mean over pairs of inputs of log mean_k prod p_k, nats a pair, for log_likelihoods (K, N).

    Pair i is the inputs i and i + G, which occur ``counts`` (2, G) times; an odd last input is left out.
    """
    pairs = log_likelihoods[:, : counts.numel()].unflatten(1, counts.shape)
    joint = (pairs * counts).sum(1).logsumexp(0) - math.log(len(log_likelihoods))
    return float(joint.mean())


def dyadic_counts(pairs: int, members: int = 10) -> Tensor:
    """How often the two inputs of each pair occur among ``members``, (2, pairs): the first 1 to members - 2 times.

    After Osband et al. 2022, with the released code's uniform counts.
    """
    first = torch.randint(1, members - 1, (pairs,))
    return torch.stack((first, members - first))


class Dense:
    """The exact posterior where P is small: Jacobians (N, O, P), curvature (N, O, O) of the training set."""

    def __init__(self, jacobians: Tensor, curvature: Tensor) -> None:
        values, vectors = torch.linalg.eigh(curvature)
        roots = (values.clamp_min(0).sqrt()[:, :, None] * vectors.mT) @ jacobians
        rows = roots.flatten(0, 1)
        self.jacobians = jacobians
        self.values, self.vectors = torch.linalg.eigh(rows.T @ rows)
        self.values = self.values.clamp_min(0)

    def effective_dimension(self, precision: float) -> float:
        """tr(H^-1 M)"""
        return float((self.values / (self.values + precision)).sum())

    def variances(self, jacobians: Tensor, precision: float) -> Tensor:
        """diag(J H^-1 J') of inputs with Jacobians (B, O, P): (B, O)."""
        rotated = jacobians @ self.vectors
        return (rotated.square() / (self.values + precision)).sum(-1)

    def mode(self, labels: Tensor, precision: float, start: Tensor) -> Tensor:
        """argmin sum_n CE(J_n theta, y_n) + lam / 2 |theta|^2, by L-BFGS from ``start`` (P,)."""
        theta = start.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([theta], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(self.jacobians @ theta, labels, reduction="sum") / len(labels)
            loss = loss + precision / (2 * len(labels)) * theta.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return theta.detach()
