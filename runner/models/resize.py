"""Rebuild a pruned network from the shapes of its weights: a full-size network is cut to them, still trainable.

It needs nothing of the method that chose what to keep, so a product is loaded without importing that method.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from runner.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn


def widths_of(model: nn.Module) -> dict[str, list[int]]:
    """Weight shape of every Conv2d (out, in per group, height, width), Linear (out, in) and BatchNorm2d (channels)."""
    from torch import nn

    shapes = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            shapes[name] = [module.num_features]
        elif isinstance(module, nn.Conv2d | nn.Linear):
            shapes[name] = list(module.weight.shape)
    return shapes


def resize_to(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give the modules of ``model`` the shapes that ``widths_of`` read from another network, in place.

    A parameter that changes shape is created again with the same type, device and requires_grad, and its values are to
    be loaded (zeros until then); the others keep theirs. A depthwise convolution keeps one group a channel, another
    grouped convolution its number of groups. Raises UserError where the two do not have the same modules and kernels.
    """
    current = widths_of(model)
    strange = sorted(current.keys() ^ shapes.keys())
    strange += [n for n in current.keys() & shapes.keys() if list(current[n][2:]) != list(shapes[n][2:])]
    strange += [n for n in current.keys() & shapes.keys() if len(current[n]) != len(shapes[n])]
    if strange:
        raise UserError(
            f"the stored widths are of another network: {len(strange)} modules differ ({', '.join(strange[:3])}); "
            "the code of the network changed, or model.name does not belong to these weights"
        )
    for name, shape in shapes.items():
        if list(shape) != current[name]:
            _resize(model.get_submodule(name), [int(size) for size in shape])


def resized_copy(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of ``model`` with the shapes and values of ``weights``, the state dict of a pruned version of it."""
    slim = copy.deepcopy(model)
    names = {
        name: next(f"{name}.{part}" for part in ("weight", "running_mean") if f"{name}.{part}" in weights)
        for name in widths_of(model)
    }
    resize_to(slim, {name: list(weights[tensor].shape) for name, tensor in names.items()})
    slim.load_state_dict(weights)
    return slim


def _resize(module: nn.Module, shape: list[int]) -> None:
    from torch import nn

    if isinstance(module, nn.BatchNorm2d):
        module.num_features = shape[0]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    else:
        if module.groups == module.in_channels > 1:
            module.groups = shape[0] // (module.out_channels // module.groups)
        module.out_channels, module.in_channels = shape[0], shape[1] * module.groups
    for name in ("weight", "bias"):
        old = getattr(module, name)
        if old is not None:
            new = old.new_zeros(shape if name == "weight" else shape[:1])
            setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
    for name in ("running_mean", "running_var"):
        old = getattr(module, name, None)
        if old is not None:
            setattr(module, name, old.new_zeros(shape))
