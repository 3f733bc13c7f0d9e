"""Optimizers with larger preconditioning matrices, to compare with: GGT (low rank, all of a tensor) and Shampoo."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class GGT(torch.optim.Optimizer):
    """(G G')^(1/2) + delta, inverted, times the mean gradient; G has the last ``window`` gradients, ever fainter.

    Agarwal et al. 2018, arXiv:1806.02958, algorithm 1, of every tensor by itself. Outside of the span of G the mean
    gradient is divided by delta there; here it is left out, as momentum alone has parts outside.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        *,
        momentum: float = 0.9,
        decay: float = 0.999,
        delta: float = 1e-4,
        window: int = 100,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.momentum, self.decay, self.delta, self.window = momentum, decay, delta, window

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update; ``closure`` is not supported."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state, gradient = self.state[weight], weight.grad.flatten()
                if not state:
                    state["step"], state["mean"] = torch.zeros(()), torch.zeros_like(gradient)
                    state["past"] = gradient.new_zeros(0, len(gradient))
                state["step"] += 1
                state["mean"].lerp_(gradient, 1 - self.momentum)
                root = self.decay**0.5
                state["past"] = torch.cat([gradient[None], root * state["past"]])[: self.window]
                mean = state["mean"] / (1 - self.momentum ** int(state["step"]))
                # of G G' over the sum of the weights, so that it is a mean of squares
                weights = (1 - self.decay ** len(state["past"])) / (1 - self.decay)
                update = low_rank_update(state["past"] / weights**0.5, mean, self.delta)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(update.view(weight.shape), alpha=group["lr"])


def low_rank_update(past: Tensor, mean: Tensor, delta: float) -> Tensor:
    """((G G')^(1/2) + delta)^-1 ``mean`` on the span of G = ``past``' (window, d); a matrix of the window's size alone
    is decomposed."""
    values, vectors = torch.linalg.eigh(past @ past.T)
    kept = values > values[-1] * 1e-6
    sizes = values[kept].sqrt()
    basis = past.T @ (vectors[:, kept] / sizes)
    return basis @ ((basis.T @ mean) / (sizes + delta))


class Shampoo(torch.optim.Optimizer):
    """Kronecker-factored: the gradient as a matrix G, between (sum of G G')^(-1/4) and (sum of G' G)^(-1/4).

    Gupta, Koren and Singer 2018, arXiv:1802.09568, algorithm 1; a convolution's kernel is a matrix of one row for each
    filter, a vector has a diagonal matrix and the power -1/2.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        *,
        momentum: float = 0.9,
        delta: float = 1e-4,
        refresh_every: int = 1,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.momentum, self.delta, self.refresh_every = momentum, delta, refresh_every

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update; ``closure`` is not supported."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    update = self._direction(self.state[weight], weight.grad)
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(update, alpha=group["lr"])

    def _direction(self, state: dict, gradient: Tensor) -> Tensor:
        matrix = gradient.reshape(len(gradient), -1)
        vector = gradient.ndim < 2
        if not state:
            state["step"], state["mean"] = torch.zeros(()), torch.zeros_like(gradient)
            state["left"] = torch.full_like(matrix, self.delta) if vector else self._start(matrix.shape[0], matrix)
            state["right"] = matrix.new_zeros(0) if vector else self._start(matrix.shape[1], matrix)
        due = int(state["step"]) % self.refresh_every == 0
        state["step"] += 1
        if vector:
            state["left"] += matrix.square()
            scaled = matrix / state["left"].sqrt()
        else:
            state["left"] += matrix @ matrix.T
            state["right"] += matrix.T @ matrix
            if due:
                state["left_root"] = inverse_fourth_root(state["left"])
                state["right_root"] = inverse_fourth_root(state["right"])
            scaled = state["left_root"] @ matrix @ state["right_root"]
        return state["mean"].lerp_(scaled.view(gradient.shape), 1 - self.momentum).clone()

    def _start(self, size: int, like: Tensor) -> Tensor:
        return self.delta * torch.eye(size, dtype=like.dtype, device=like.device)


def inverse_fourth_root(matrix: Tensor) -> Tensor:
    """M^(-1/4) of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=values[-1] * 1e-7) ** -0.25) @ vectors.T
