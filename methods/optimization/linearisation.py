"""A network's first-order expansion in its weights, by products with its Jacobian; the Gauss-Newton curvature.

Shapes: P weights, B inputs, O outputs, K vectors at once. J_n = df(x_n)/dw, (O, P), is formed by ``jacobian`` alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vjp, vmap
from torch.nn.modules.batchnorm import _NormBase

Weights = dict[str, Tensor]


class Linearisation:
    """h(x) = J(x) diag(scale) theta at the weights that ``network`` has, in evaluation mode.

    Weights of normalisation layers stay fixed and are no part of P. ``scale`` (P,) starts as ones.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()
        kinds = (_NormBase, nn.LayerNorm, nn.GroupNorm)
        fixed = {id(p) for module in network.modules() if isinstance(module, kinds) for p in module.parameters(False)}
        self.weights = {name: p.detach() for name, p in network.named_parameters() if id(p) not in fixed}
        self.fixed = {name: p.detach() for name, p in network.named_parameters() if id(p) in fixed}
        self.fixed |= dict(network.named_buffers())
        self.size = sum(weight.numel() for weight in self.weights.values())
        self.scale = torch.ones(self.size, device=next(iter(self.weights.values())).device)

    def outputs(self, weights: Weights, inputs: Tensor) -> Tensor:
        """f(inputs; weights), (B, O)."""
        return functional_call(self.network, {**self.fixed, **weights}, (inputs,))

    def products(self, inputs: Tensor, vectors: Tensor) -> Tensor:
        """J_n diag(scale) v for vectors (K, P): (K, B, O).

        J' u is linear in u, so J v is the product of its transpose with v: reverse mode alone, which every layer has.
        """
        outputs, pull = vjp(lambda weights: self.outputs(weights, inputs), self.weights)
        _, push = vjp(lambda cotangent: pull(cotangent)[0], torch.zeros_like(outputs))
        return vmap(lambda vector: push(self._split(vector))[0])(vectors * self.scale)

    def transposed(self, inputs: Tensor, cotangents: Tensor) -> Tensor:
        """sum_n diag(scale) J_n' c_n for cotangents (K, B, O): (K, P)."""
        _, pull = vjp(lambda weights: self.outputs(weights, inputs), self.weights)
        return vmap(lambda cotangent: self._joined(pull(cotangent)[0]))(cotangents) * self.scale

    def squares(self, inputs: Tensor, cotangents: Tensor) -> Tensor:
        """sum_n sum_k (J_n' c_kn)^2, elementwise and without the scale: (P,)."""

        def of_one(image: Tensor, cotangent: Tensor) -> Tensor:
            _, pull = vjp(lambda weights: self.outputs(weights, image[None])[0], self.weights)
            return self._joined(pull(cotangent)[0])

        parts = (vmap(of_one)(inputs, part).square().sum(0) for part in cotangents)
        return sum(parts, torch.zeros_like(self.scale))

    def jacobian(self, inputs: Tensor) -> Tensor:
        """J_n diag(scale) of every input: (B, O, P)."""

        def of_one(image: Tensor) -> Tensor:
            rows = jacrev(lambda weights: self.outputs(weights, image[None])[0])(self.weights)
            return torch.cat([rows[name].flatten(1) for name in self.weights], 1)

        return vmap(of_one)(inputs) * self.scale

    def _split(self, vector: Tensor) -> Weights:
        parts = vector.split([weight.numel() for weight in self.weights.values()])
        return {name: part.view_as(weight) for part, (name, weight) in zip(parts, self.weights.items(), strict=True)}

    def _joined(self, weights: Weights) -> Tensor:
        return torch.cat([weights[name].flatten() for name in self.weights])


def softmax_curvature(logits: Tensor, jitter: float = 0.0) -> Tensor:
    """diag(p) - p p' + jitter I of logits (B, O): the Hessian of the cross-entropy by the logits, (B, O, O)."""
    p = logits.softmax(-1)
    identity = torch.eye(logits.shape[-1], dtype=p.dtype, device=p.device)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None] + jitter * identity


def curvature_roots(curvature: Tensor) -> tuple[Tensor, Tensor]:
    """U S^1/2 and U S^-1/2 of B = U S U' (B, O, O), which needs positive eigenvalues."""
    values, vectors = torch.linalg.eigh(curvature)
    root = values.clamp_min(torch.finfo(values.dtype).tiny).sqrt()
    return vectors * root[:, None], vectors / root[:, None]


def weighted_squares(outputs: Tensor, curvature: Tensor) -> Tensor:
    """sum_n h_n' B_n h_n for each of K outputs (K, B, O): (K,)."""
    return torch.einsum("kno,nop,knp->k", outputs, curvature, outputs)
