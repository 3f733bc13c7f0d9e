"""An adaptive optimizer that keeps one small second-moment matrix for each block of coordinates.

Yun, Lozano and Yang 2019, arXiv:1905.10757 (AdaBlock, AISTATS 2022). Between the diagonal methods (blocks of one
coordinate: Adam, RMSprop, Adagrad) and the full matrix. Spectrum clipping bounds the eigenvalues of the preconditioner
by bounds that meet, as AdaBound (Luo et al., arXiv:1902.09843) does with the rates of single coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Grouping = Literal["rows", "columns", "kernels", "random"]
Accumulation = Literal["moving", "mean"]


def to_blocks(values: Tensor, size: int, grouping: Grouping, order: Tensor | None = None) -> Tensor:
    """The coordinates of a tensor as blocks (N, size), the last of every line filled up with zeros.

    Lines are a neuron's or filter's incoming weights (rows), an input's outgoing ones (columns), the single kernels of
    a convolution (kernels; of other tensors rows), or everything in the order ``order`` (random).
    """
    lines = values.flatten()[order][None] if grouping == "random" else _lines(values, grouping)
    missing = -lines.shape[1] % size
    return F.pad(lines, (0, missing)).reshape(-1, size)


def from_blocks(blocks: Tensor, like: Tensor, grouping: Grouping, order: Tensor | None = None) -> Tensor:
    """The inverse of ``to_blocks``: a tensor of the shape of ``like``."""
    if grouping == "random":
        values = torch.empty_like(like).flatten()
        values[order] = blocks.flatten()[: like.numel()]
        return values.view(like.shape)
    shape = _lines(like, grouping).shape
    lines = blocks.reshape(shape[0], -1)[:, : shape[1]]
    return (lines.T if grouping == "columns" else lines).reshape(like.shape)


def _lines(values: Tensor, grouping: Grouping) -> Tensor:
    if grouping == "kernels" and values.ndim > 2:
        return values.flatten(2).flatten(0, 1)
    matrix = values.reshape(len(values), -1)
    return matrix.T if grouping == "columns" else matrix


def preconditioner(second: Tensor, delta: float, bounds: tuple[float, float] | None = None) -> Tensor:
    """(V^(1/2) + delta I)^-1 of matrices (N, b, b), its eigenvalues cut to ``bounds``."""
    if second.shape[-1] == 1:
        values, vectors = second[:, :, 0], None
    else:
        values, vectors = torch.linalg.eigh(second)
    scales = 1 / (values.clamp(min=0).sqrt() + delta)
    if bounds is not None:
        scales = scales.clamp(*bounds)
    return scales[:, :, None] if vectors is None else (vectors * scales[:, None, :]) @ vectors.mT


def clipping_bounds(step: int, final: float, speed: float) -> tuple[float, float]:
    """Of the eigenvalues at a step from 1 on; both go to ``final``, where the method is SGD with momentum."""
    return final * (1 - 1 / (speed * step + 1)), final * (1 + 1 / (speed * step))


class BlockOptimizer(torch.optim.Optimizer):
    """x <- x - rate P m, with m the moving mean of gradients and P = (V^(1/2) + delta)^-1 in every block.

    Args:
        momentum: b1; 0: RMSprop's kind.
        decay: b2, of the moving mean of g g'.
        accumulation: moving (Adam's kind), or mean: over all steps, with the rate over sqrt(step) (Adagrad's kind).
        block_size: of tensors with two dimensions or more; the others have blocks of one.
        bias_correction: of both moving means, as Adam has it.
        clipping: (final, speed) of ``clipping_bounds``; None: off.
        refresh_every: steps between eigendecompositions; V moves at every step.
        refresh_share: chance of a tensor to take part in a refresh; without, its V stays too.
        weight_decay: decoupled from the gradient.
        seed: of the orders of grouping=random, one for each tensor.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        *,
        momentum: float = 0.9,
        decay: float = 0.999,
        delta: float = 1e-4,
        accumulation: Accumulation = "moving",
        block_size: int = 10,
        grouping: Grouping = "rows",
        bias_correction: bool = True,
        clipping: tuple[float, float] | None = None,
        refresh_every: int = 1,
        refresh_share: float = 1.0,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.momentum, self.decay, self.delta, self.accumulation = momentum, decay, delta, accumulation
        self.block_size, self.grouping, self.bias_correction = block_size, grouping, bias_correction
        self.clipping, self.refresh_every, self.refresh_share = clipping, refresh_every, refresh_share
        self._orders: dict[nn.Parameter, Tensor] = {}
        if grouping == "random":
            draws = torch.Generator().manual_seed(seed)
            for weight in self.param_groups[0]["params"]:
                self._orders[weight] = torch.randperm(weight.numel(), generator=draws).to(weight.device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update; ``closure`` is not supported."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group["lr"], group["weight_decay"])

    def _update(self, weight: Tensor, rate: float, weight_decay: float) -> None:
        state, size, gradient = self.state[weight], self.block_size if weight.ndim > 1 else 1, weight.grad
        if not state:
            self._begin(state, weight, size)
        order = self._orders.get(weight)
        state["step"] += 1
        step = int(state["step"])
        mean = state["mean"].lerp_(gradient, 1 - self.momentum)
        chosen = step == 1 or self.refresh_share == 1 or torch.rand(()).item() < self.refresh_share
        if chosen:
            blocks = to_blocks(gradient, size, self.grouping, order)
            self._accumulate(state, blocks)
            if (step - 1) % self.refresh_every == 0 or self.refresh_share < 1:
                self._refresh(state, step)
        if self.bias_correction:
            mean = mean / (1 - self.momentum**step)
        moved = state["preconditioner"] @ to_blocks(mean, size, self.grouping, order)[:, :, None]
        if weight_decay:
            weight.mul_(1 - rate * weight_decay)
        if self.accumulation == "mean":
            rate = rate / math.sqrt(step)
        weight.sub_(from_blocks(moved[:, :, 0], weight, self.grouping, order), alpha=rate)

    def _begin(self, state: dict, weight: Tensor, size: int) -> None:
        count = len(to_blocks(weight, size, self.grouping, self._orders.get(weight)))
        state["step"] = torch.zeros(())
        state["updates"] = torch.zeros(())  # of V
        state["mean"] = torch.zeros_like(weight)
        state["second"] = weight.new_zeros(count, size, size)
        state["preconditioner"] = weight.new_zeros(count, size, size)

    def _accumulate(self, state: dict, blocks: Tensor) -> None:
        state["updates"] += 1
        kept = self.decay if self.accumulation == "moving" else 1 - 1 / int(state["updates"])
        state["second"].mul_(kept).add_(blocks[:, :, None] * blocks[:, None, :], alpha=1 - kept)

    def _refresh(self, state: dict, step: int) -> None:
        second = state["second"]
        if self.bias_correction and self.accumulation == "moving":
            second = second / (1 - self.decay ** int(state["updates"]))
        bounds = None if self.clipping is None else clipping_bounds(step, *self.clipping)
        state["preconditioner"] = preconditioner(second, self.delta, bounds)
