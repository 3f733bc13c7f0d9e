"""Rectifiers whose derivative at their kinks is chosen, and networks computed in a given number format.

Bertoin et al. 2021, NeurIPS, arXiv:2106.12915; code deel-ai/relu-prime.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.errors import UserError

Kind = Literal["relu", "relu6", "leaky_relu"]
Format = Literal["float16", "bfloat16", "float32", "float64"]
LEAK = 0.01  # slope of leaky_relu below 0
SIX = 6.0
FORWARD = {"relu": F.relu, "relu6": F.relu6, "leaky_relu": F.leaky_relu}


class Rectifier(nn.Module):
    """relu, relu6 or leaky_relu; where the input is exactly 0 (relu6: or 6) the derivative is the chosen value.

    ``value`` may be changed between two backward passes of one forward pass. With ``watched`` the last forward pass
    leaves ``zeros`` and ``inputs``, the numbers of inputs that are exactly 0 and of all, and ``smallest``, the
    smallest |input|.

    Args:
        value: of the derivative at 0, any real; None: drawn from U[0, 1] for every input that is 0.
        value_at_six: of the derivative at 6, of relu6.
        official_backward: the released code of relu and relu6 returns the value itself at a kink, not the value times
            the incoming gradient.
    """

    def __init__(
        self,
        kind: Kind = "relu",
        value: float | None = 0.0,
        value_at_six: float = 0.0,
        *,
        official_backward: bool = False,
    ) -> None:
        super().__init__()
        self.kind, self.value, self.value_at_six = kind, value, value_at_six
        self.official_backward = official_backward and kind != "leaky_relu"
        self.watched = False
        self.zeros = self.inputs = self.smallest = None

    def forward(self, x: Tensor) -> Tensor:
        if self.watched:
            with torch.no_grad():
                self.zeros, self.inputs, self.smallest = (x == 0).sum(), x.numel(), x.abs().min()
        return _Rectify.apply(x, self)


class _Rectify(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rectifier: Rectifier) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rectifier = rectifier
        return FORWARD[rectifier.kind](x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,), rectifier = ctx.saved_tensors, ctx.rectifier
        below = LEAK * gradient if rectifier.kind == "leaky_relu" else torch.zeros_like(gradient)
        found = torch.where(x > 0, gradient, below)
        incoming = torch.ones_like(gradient) if rectifier.official_backward else gradient
        value = torch.rand_like(gradient) if rectifier.value is None else rectifier.value
        found = torch.where(x == 0, value * incoming, found)
        if rectifier.kind == "relu6":
            found = torch.where(x > SIX, torch.zeros_like(gradient), found)
            found = torch.where(x == SIX, rectifier.value_at_six * incoming, found)
        return found, None


def put_rectifiers(network: nn.Module, kind: Kind | None = None, **settings: Any) -> dict[str, nn.Module]:
    """Puts a Rectifier in place of every nn.ReLU and nn.ReLU6; returns those, by name, for ``put_back``.

    ``kind``: None keeps each what it is. Raises UserError where there is none.
    """
    places = {name: item for name, item in network.named_modules() if isinstance(item, nn.ReLU | nn.ReLU6) and name}
    if not places:
        raise UserError("model: this network has no nn.ReLU modules, which this method replaces; choose another model")
    for name, item in places.items():
        own = "relu6" if isinstance(item, nn.ReLU6) else "relu"
        network.set_submodule(name, Rectifier(kind or own, **settings))
    return places


def put_back(network: nn.Module, places: dict[str, nn.Module]) -> None:
    """Undoes ``put_rectifiers``."""
    for name, item in places.items():
        network.set_submodule(name, item)


def rectifiers(network: nn.Module) -> list[Rectifier]:
    """In the order of the modules."""
    return [item for item in network.modules() if isinstance(item, Rectifier)]


def watch(network: nn.Module, on: bool = True) -> None:
    for item in rectifiers(network):
        item.watched = on


def zero_share(network: nn.Module) -> Tensor:
    """Of the inputs of all rectifiers in the last forward pass, the share (0..1) that is exactly 0."""
    seen = [item for item in rectifiers(network) if item.zeros is not None]
    return torch.stack([item.zeros for item in seen]).sum() / sum(item.inputs for item in seen)


def in_format(network: nn.Module, name: Format) -> nn.Module:
    """The network with weights and activations in a number format: images are converted on the way in, half-precision
    logits to float32 on the way out."""
    kind = getattr(torch, name)
    network.to(kind)
    if kind != torch.float32:
        network.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(kind),))
        network.register_forward_hook(lambda _, inputs, logits: logits.float() if logits.itemsize == 2 else logits)
    return network
