"""Cuts removed channels out of a network for good: real, smaller modules with the same function in training mode."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from runner.methods.compression.executor import slice_layer
from runner.methods.compression.gates import GatedNetwork


def cut(gated: GatedNetwork, kept: Sequence[Tensor]) -> nn.Module:
    """A smaller copy of the network with only the ``kept`` channels (int64, ascending) of every gate.

    Kernels of convolutions and linear layers are brought back to the Frobenius norm of the full kernel, biases and
    normalisation weights are cut, moving averages too. With batch statistics its logits equal those of the masked
    network; with moving averages they mean nothing before it was trained again. EKG, card 2.9.
    """
    slim = copy.deepcopy(gated.network)
    modules = dict(slim.named_modules())
    with torch.no_grad():
        for name, layer in gated.layers.items():
            module = modules[name]
            weight, bias = slice_layer(layer, gated.modules[name], kept)
            module.weight = _parameter(module.weight, weight)
            module.bias = _parameter(module.bias, bias)
            if layer.kind == "norm":
                rows = None if layer.output_gate is None else kept[layer.output_gate]
                if rows is not None:
                    module.num_features = len(rows)
                    if module.running_mean is not None:
                        module.running_mean = module.running_mean[rows].clone()
                        module.running_var = module.running_var[rows].clone()
            elif layer.kind == "linear":
                module.in_features = weight.shape[1]
            else:
                module.out_channels = weight.shape[0]
                module.in_channels = weight.shape[0] if layer.kind == "depthwise" else weight.shape[1]
                module.groups = weight.shape[0] if layer.kind == "depthwise" else 1
    return slim


def _parameter(old: nn.Parameter | None, value: Tensor | None) -> nn.Parameter | None:
    return None if value is None else nn.Parameter(value.detach().clone(), requires_grad=old.requires_grad)
