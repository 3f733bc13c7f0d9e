"""Residual branches that are dropped or shaken at random: what ShakeDrop and stochastic depth share.

Yamada, Iwamura, Akiba and Kise, arXiv:1802.02375; imenurok/ShakeDrop. The layer stands last in a branch, behind its
last normalisation and before the addition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from runner.errors import UserError
from runner.fit import fit, test_metrics
from runner.models.wide_resnet import PreActivationBlock

if TYPE_CHECKING:
    from runner.context import Context

Decay = Literal["linear", "uniform"]
Granularity = Literal["batch", "image", "channel", "pixel"]
Gate = Literal["batch", "image"]
Probability = Annotated[float, Field(ge=0, le=1)]
SHARED_FROM = {"batch": 0, "image": 1, "channel": 2, "pixel": None}  # the first dimension that shares a draw


def survival_rates(blocks: int, last: float, decay: Decay = "linear") -> list[float]:
    """p_l of blocks l = 1..L, counted over all groups: 1 - (l / L)(1 - p_L), or p_L for all."""
    return [last if decay == "uniform" else 1 - number / blocks * (1 - last) for number in range(1, blocks + 1)]


@dataclass
class ShakeDrop:
    """A forward hook of the last layer of a residual branch F.

    In training F is multiplied by b + alpha - b alpha, and its gradient by b + beta - b beta, with b ~ Bernoulli(
    survival) drawn once a forward pass, and alpha and beta uniform in their ranges; in evaluation by ``expected``.
    """

    survival: float
    forward_range: tuple[float, float] = (-1.0, 1.0)  # of alpha
    backward_range: tuple[float, float] = (0.0, 1.0)  # of beta, drawn anew in the backward pass
    granularity: Granularity = "pixel"  # what has an alpha and a beta of its own
    gate: Gate = "batch"  # what has a b of its own

    @property
    def expected(self) -> float:
        """E[b + alpha - b alpha]; the survival probability where alpha is symmetric."""
        return self.survival + (1 - self.survival) * sum(self.forward_range) / 2

    def __call__(self, module: nn.Module, inputs: Any, branch: Tensor) -> Tensor:
        if not module.training:
            return branch * self.expected
        if self.gate == "image":
            kept = torch.rand(_draws(branch, "image"), device=branch.device) < self.survival
            return _Shake.apply(branch, self, kept)
        # on the CPU, where its value is needed: no wait for the device
        return branch if float(torch.rand(())) < self.survival else _Shake.apply(branch, self, None)


def _draws(branch: Tensor, granularity: Granularity) -> list[int]:
    """The shape of draws for branch (B, C, ...)."""
    shared = SHARED_FROM[granularity]
    return [size if shared is None or place < shared else 1 for place, size in enumerate(branch.shape)]


def _scaled(tensor: Tensor, limits: tuple[float, float], granularity: Granularity, kept: Tensor | None) -> Tensor:
    factors = torch.empty(_draws(tensor, granularity), device=tensor.device, dtype=tensor.dtype).uniform_(*limits)
    return tensor * (factors if kept is None else torch.where(kept, torch.ones_like(factors), factors))


class _Shake(torch.autograd.Function):
    """Scales forward and, by other draws, backward; of the forward pass only the images' gates are kept."""

    @staticmethod
    def forward(ctx: Any, branch: Tensor, shake: ShakeDrop, kept: Tensor | None) -> Tensor:
        ctx.shake, ctx.kept = shake, kept
        return _scaled(branch, shake.forward_range, shake.granularity, kept)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _scaled(gradient, ctx.shake.backward_range, ctx.shake.granularity, ctx.kept), None, None


def branch_ends(network: nn.Module) -> list[nn.Module]:
    """The last layers of the residual branches, from the first block to the last.

    A block is a module with ``last_normalisation()``, or one of a wide residual network, whose branch ends in a
    convolution. Raises UserError where there is none.
    """
    ends = []
    for module in network.modules():
        if hasattr(module, "last_normalisation"):
            ends.append(module.last_normalisation())
        elif isinstance(module, PreActivationBlock):
            ends.append(module.conv2)
    if not ends:
        raise UserError(
            "model: this network has no residual blocks that are known; use a resnet, wrn or pyramidnet, or give the "
            "blocks of yours a function last_normalisation()"
        )
    return ends


def shake_branches(network: nn.Module, last: float, decay: Decay, **settings: Any) -> None:
    """Hooks a ShakeDrop behind every residual branch, with survival by depth."""
    ends = branch_ends(network)
    for end, survival in zip(ends, survival_rates(len(ends), last, decay), strict=True):
        end.register_forward_hook(ShakeDrop(survival, **settings))


@torch.no_grad()
def fold(network: nn.Module) -> None:
    """Takes the hooks away and multiplies the last layers' weights by what evaluation multiplies their output with, so
    that the network computes the same as it is."""
    for end in branch_ends(network):
        for key, hook in list(end._forward_hooks.items()):
            if isinstance(hook, ShakeDrop):
                del end._forward_hooks[key]
                for weight in end.parameters(recurse=False):
                    weight *= hook.expected


def train_shaken(ctx: Context, last: float, decay: Decay, **settings: Any) -> dict[str, float]:
    """Supervised training with ``shake_branches``. Returns accuracy (0..1) and loss (nats) on the test split, and
    accuracy_train and loss_train on the un-augmented training split."""
    network = ctx.model()
    shake_branches(network, last, decay, **settings)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(network(images), labels, label_smoothing=ctx.recipe.label_smoothing)

    fitted = fit(ctx, network, loss)
    for trained in (network, fitted.best, fitted.averaged):
        if trained is not None:
            fold(trained)
    train = ctx.evaluate(network, "train")
    ctx.profile(network, "final")
    ctx.save_model(network)
    return test_metrics(ctx, network, fitted) | {f"{name}_train": value for name, value in train.items()}
