"""A network's quantized form: which layers it has in which order, the stages in which they are quantized, its size.

NICE, arXiv:1810.00162, section 3.4 and released code. The network is traced by torch.fx: the order is that of one
forward pass, and a ReLU that is called several times becomes several, each with a range of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from runner.errors import UserError
from runner.methods.compression.gates import is_dropout
from runner.methods.compression.quantized_layers import (
    QuantizedBatchNorm2d,
    QuantizedConv2d,
    QuantizedLinear,
    QuantizedReLU,
)
from runner.methods.compression.quantizers import WIDE_BITS, bit_operations, size_kilobytes
from runner.models import build_network

FULL_BITS = 32
RELU_FUNCTIONS = {torch.relu, F.relu, torch.relu_, F.relu_, F.relu6}
KINDS: dict[str, tuple[type, ...]] = {
    "layer": (nn.Conv2d, nn.Linear),
    "normalisation": (nn.BatchNorm2d,),
    "activation": (nn.ReLU, nn.ReLU6, QuantizedReLU),
}
QUANTIZED = (QuantizedConv2d, QuantizedLinear, QuantizedBatchNorm2d, QuantizedReLU)


@dataclass(frozen=True)
class Place:
    """A module that can be quantized; ``kind`` is layer, normalisation or activation."""

    name: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Bits of weights and activations, and whether the two ends have them."""

    weight_bits: int
    activation_bits: int
    quantize_first: bool  # the first layer
    quantize_last: bool  # the last layer and the activation before it
    noise_share: float = 0.0
    hardware_clamps: bool = False


def traced(network: nn.Module) -> fx.GraphModule:
    """The network as a graph of modules in which every call of a ReLU is a module of its own, not in place.

    Raises UserError: it cannot be traced, is quantized, or drops at random outside of a module (a trace would fix the
    mode).
    """
    if any(isinstance(module, QUANTIZED) for module in network.modules()):
        raise UserError("this network is quantized already; start from the one in full precision")
    try:
        graph = fx.symbolic_trace(network)
    except Exception as error:
        raise UserError(
            f"this network cannot be quantized: torch.fx cannot trace it ({str(error).splitlines()[0]})"
        ) from error
    modules = dict(graph.named_modules())
    number = 0
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and is_dropout(node, modules):
            raise UserError("this network drops at random by a function; nn.Dropout as a module can be quantized")
        called = modules.get(node.target) if node.op == "call_module" else None
        is_method = node.op == "call_method" and node.target in ("relu", "relu_")
        if not (isinstance(called, (nn.ReLU, nn.ReLU6)) or is_method or node.target in RELU_FUNCTIONS):
            continue
        limited = isinstance(called, nn.ReLU6) or node.target is F.relu6
        name = f"traced_activation{number}"
        number += 1
        graph.add_module(name, nn.ReLU6() if limited else nn.ReLU())
        with graph.graph.inserting_after(node):
            new = graph.graph.call_module(name, (node.args[0] if node.args else node.kwargs["input"],))
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()
    graph.train(network.training)
    return graph


def places(graph: fx.GraphModule) -> list[Place]:
    """The modules that can be quantized, each at its first call."""
    modules, found = dict(graph.named_modules()), {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            for kind, types in KINDS.items():
                if isinstance(modules[node.target], types):
                    found.setdefault(node.target, Place(node.target, kind))
    return list(found.values())


def without_ends(order: Sequence[Place], *, first: bool, last: bool) -> list[Place]:
    """Without the first layer, and without the last one and the activation before it; those named true stay."""
    left_out = set()
    layers = [number for number, place in enumerate(order) if place.kind == "layer"]
    if not first:
        left_out |= set(layers[:1])
    if not last and layers:
        before = [number for number in range(layers[-1]) if order[number].kind == "activation"]
        left_out |= {layers[-1], *before[-1:]}
    return [place for number, place in enumerate(order) if number not in left_out]


def stages(order: Sequence[Place], layers_each: int) -> list[list[Place]]:
    """Stages of ``layers_each`` layers, each with what follows them; what stands before the first is in the first."""
    found: list[list[Place]] = [[]]
    for place in order:
        if place.kind == "layer" and sum(item.kind == "layer" for item in found[-1]) == layers_each:
            found.append([])
        found[-1].append(place)
    return found


def quantized(graph: fx.GraphModule, order: Iterable[Place], widths: Widths) -> None:
    """Puts quantized modules in the places of ``order``; clamps are 1 until they are set."""
    device = next(graph.parameters()).device
    for place in order:
        parent, _, name = place.name.rpartition(".")
        module = graph.get_submodule(place.name)
        if place.kind == "activation":
            new: nn.Module = QuantizedReLU(widths.activation_bits, widths.hardware_clamps)
        elif place.kind == "normalisation":
            new = QuantizedBatchNorm2d.of(module)
        else:
            kind = QuantizedConv2d if isinstance(module, nn.Conv2d) else QuantizedLinear
            new = kind.of(module, widths.weight_bits, widths.noise_share)
        setattr(graph.get_submodule(parent), name, new.to(device).train(module.training))


class Schedule:
    """Which stage is in training: grows by one every ``stage_steps`` steps, and ends with all stages quantized.

    ``state_dict`` holds the number of steps done, so that a loop that tracks it goes on in the right stage.
    """

    def __init__(self, graph: fx.GraphModule, parts: list[list[Place]], stage_steps: float) -> None:
        self.modules = [[graph.get_submodule(place.name) for place in part] for part in parts]
        self.stage_steps = stage_steps
        self.steps = 0

    @property
    def stage(self) -> int:
        """The stage in training; the number of stages once all are quantized."""
        return min(int(self.steps / self.stage_steps), len(self.modules))

    def step(self) -> None:
        """Gives every module the phase of the next step, and counts it."""
        for number, modules in enumerate(self.modules):
            phase = "full" if number > self.stage else "mixed" if number == self.stage else "quantized"
            for module in modules:
                module.phase = phase
        self.steps += 1

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


def sizes(graph: nn.Module, input_shape: Sequence[int]) -> dict[str, float]:
    """Memory and operations of a (quantized) network for one input of ``input_shape`` (channels, height, width).

    Returns: weights_kilobytes (parameters of all layers, with moving averages), activations_kilobytes (outputs of the
    activations, summed), largest_activation_kilobytes, bit_operations (multiply-adds x weight bits x input bits; the
    input of a layer has the bits of the activation before it, 32 where that is not quantized), and each with the
    ending _full: the same at 32 bits.
    """
    weights: list[tuple[int, int, int]] = []  # elements, bits, 32
    activations: list[tuple[int, int, int]] = []
    operations: list[tuple[int, int, int]] = []
    input_bits = FULL_BITS

    def see(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal input_bits
        if isinstance(module, KINDS["activation"]):
            input_bits = module.bits if isinstance(module, QuantizedReLU) else FULL_BITS
            activations.append((output[0].numel(), input_bits, FULL_BITS))
        elif isinstance(module, KINDS["layer"]):
            bits = module.bits if isinstance(module, QUANTIZED) else FULL_BITS
            operations.append((output[0].numel() * module.weight[0].numel(), bits, input_bits))

    for module in graph.modules():
        wide = WIDE_BITS if isinstance(module, QUANTIZED) else FULL_BITS
        narrow = module.bits if isinstance(module, (QuantizedConv2d, QuantizedLinear)) else wide
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if name in ("weight", "bias", "running_mean", "running_var"):
                layer = isinstance(module, KINDS["layer"])
                weights.append((tensor.numel(), narrow if layer and name == "weight" else wide, FULL_BITS))
    watched = [module for module in graph.modules() if isinstance(module, (*KINDS["activation"], *KINDS["layer"]))]
    hooks = [module.register_forward_hook(see) for module in watched]
    was_training = graph.training
    graph.eval()
    try:
        with torch.no_grad():
            graph(torch.zeros(1, *input_shape, device=next(graph.parameters()).device))
    finally:
        graph.train(was_training)
        for hook in hooks:
            hook.remove()
    found = {}
    for ending, column in (("", 1), ("_full", 2)):
        kilobytes = [size_kilobytes([(row[0], row[column])]) for row in activations]
        found |= {
            f"weights_kilobytes{ending}": size_kilobytes((row[0], row[column]) for row in weights),
            f"activations_kilobytes{ending}": sum(kilobytes),
            f"largest_activation_kilobytes{ending}": max(kilobytes, default=0.0),
            f"bit_operations{ending}": bit_operations(
                row if not ending else (row[0], FULL_BITS, FULL_BITS) for row in operations
            ),
        }
    return found


def rebuilt(
    num_classes: int, in_channels: int, image_size: int, network: dict[str, Any], widths: dict[str, Any]
) -> fx.GraphModule:
    """The quantized form of a network that is built from ``network`` (name, target, arguments, stem, padding).

    What runner.load calls for the product of a method that quantizes; its weights and clamps are loaded afterwards.
    """
    built = build_network(num_classes=num_classes, channels=in_channels, image_size=image_size, **network)
    return quantized_form(built, Widths(**widths))[0]


def quantized_form(network: nn.Module, widths: Widths) -> tuple[fx.GraphModule, list[Place]]:
    """The network traced, with quantized modules, and their places in order. Raises UserError: nothing to quantize."""
    graph = traced(network)
    order = quantizable(graph, widths)
    quantized(graph, order, widths)
    return graph, order


def quantizable(graph: fx.GraphModule, widths: Widths) -> list[Place]:
    """The places that ``widths`` quantizes. Raises UserError: no layer or no activation among them."""
    order = without_ends(places(graph), first=widths.quantize_first, last=widths.quantize_last)
    if not {"layer", "activation"} <= {place.kind for place in order}:
        raise UserError(
            "this network has no layer (Conv2d, Linear) or no ReLU to quantize besides its ends; "
            "method.quantize_first=true method.quantize_last=true takes those too"
        )
    return order
