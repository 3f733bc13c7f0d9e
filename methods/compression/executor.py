"""Runs a gated network with some of its channels removed, in training mode, without touching its moving averages.

Two executors give the same numbers. The masked one is the paper's own way: whole kernels are masked and brought back to
the Frobenius norm of the full kernel, activations are multiplied by the gates. The sliced one computes kept channels
only, can start in the middle of the network from stored activations, and is the one that searches use.

Normalisation uses the statistics of the batch; dropout is the identity; weights are constants.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from runner.methods.compression.gates import GatedNetwork, Layer, is_dropout

Weights = Mapping[str, tuple[Tensor | None, Tensor | None]]  # module name -> (weight, bias) as they are used

_RELUS = (torch.relu, F.relu)
_ADDITIONS = (operator.add, operator.iadd, torch.add)
_SMALLEST_NORM = 1e-6  # guards the division for a kernel whose kept part is all zeros


def slice_layer(layer: Layer, module: nn.Module, kept: Sequence[Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
    """The kept part of a layer's weight and bias; kernels are brought back to the norm of the full kernel.

    ``kept`` holds the kept channels of every gate (int64, ascending).
    """
    weight, bias = module.weight, module.bias
    rows = None if layer.output_gate is None else kept[layer.output_gate]
    columns = None if layer.input_gate is None else kept[layer.input_gate]
    if layer.features_per_channel > 1 and columns is not None:
        features = torch.arange(layer.features_per_channel, device=columns.device)
        columns = (columns[:, None] * layer.features_per_channel + features).flatten()
    if rows is not None:
        weight = None if weight is None else weight.index_select(0, rows)
        bias = None if bias is None else bias.index_select(0, rows)
    if layer.kind in ("convolution", "linear") and columns is not None:
        weight = weight.index_select(1, columns)
    if layer.kind != "norm" and (rows is not None or columns is not None):
        weight = weight * (module.weight.norm() / weight.norm().clamp_min(_SMALLEST_NORM))
    return weight, bias


@dataclass(frozen=True)
class Cut:
    """A node whose value is all that the ``nodes`` behind it read; the value depends on the channels of ``gates``."""

    node: Node
    gates: list[int]
    nodes: list[Node]


class Executor:
    """Computes logits of a gated network from chosen weights; ``SlicedExecutor`` and ``MaskedExecutor`` choose them.

    ``channels_last`` decides the memory format of images and kernels.
    """

    def __init__(self, gated: GatedNetwork, *, channels_last: bool = True):
        self.gated = gated
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.nodes = [node for node in gated.nodes if node.op not in ("placeholder", "output")]
        self.node_named = {node.name: node for node in self.nodes}
        inputs = [node for node in gated.nodes if node.op == "placeholder"]
        self.input, self.output = inputs[0], gated.nodes[-1].args[0]
        self.operations = {node: self._operation(node) for node in self.nodes}
        self.reusable = {node: self._reusable_argument(node) for node in self.nodes}

    def run(
        self,
        start: Mapping[Node, Tensor],
        weights: Weights,
        *,
        nodes: Sequence[Node] | None = None,
        masks: Mapping[Node, Tensor] | None = None,
        taps: Collection[Node] = (),
        keep: Collection[Node] = (),
    ) -> tuple[Tensor, dict[Node, Tensor]]:
        """Execute ``nodes`` (default: all) from the values in ``start``; returns the logits and the kept values.

        Values of ``taps`` are returned with gradient recorded from there on; values of ``keep`` are returned for later
        starts, and nothing writes into them. ``masks`` multiplies the values of its nodes.
        """
        nodes = self.nodes if nodes is None else nodes
        values, held = dict(start), {}
        protected = set(start) | set(taps) | set(keep) | {self.output}
        last_reader = {argument: node for node in nodes for argument in node.all_input_nodes}
        for node in nodes:
            reusable = self.reusable[node]
            in_place = reusable is not None and reusable not in protected
            value = self.operations[node](values, weights, in_place)
            if masks is not None and node in masks:
                value = value * masks[node]
            if node in taps and not value.requires_grad:
                value.requires_grad_()
            values[node] = value
            if node in keep or node in taps:
                held[node] = value
            for argument in node.all_input_nodes:
                if last_reader[argument] is node and argument is not self.output:
                    values.pop(argument, None)
        return values[self.output], held

    def _operation(self, node: Node) -> Callable[[dict, Weights, bool], Tensor]:
        """A function (values, weights, in_place) -> value of the node."""
        module = self.gated.modules.get(node.target) if node.op == "call_module" else None
        name, layer = node.target, self.gated.layers.get(node.target) if module is not None else None
        source = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        if layer is not None and layer.kind == "convolution":
            return lambda values, weights, _: module._conv_forward(values[source], *weights[name])
        if layer is not None and layer.kind == "depthwise":

            def depthwise(values: dict, weights: Weights, _: bool) -> Tensor:
                weight, bias = weights[name]
                geometry = module.stride, module.padding, module.dilation
                return F.conv2d(values[source], weight, bias, *geometry, groups=weight.shape[0])

            return depthwise
        if layer is not None and layer.kind == "linear":
            return lambda values, weights, _: F.linear(values[source], *weights[name])
        if isinstance(module, _BatchNorm):

            def normalise(values: dict, weights: Weights, _: bool) -> Tensor:
                weight, bias = weights.get(name, (module.weight, module.bias))
                # not F.batch_norm, which refuses one value a channel (one image, one position): the result is the bias
                return torch.batch_norm(values[source], weight, bias, None, None, True, 0.0, module.eps, False)

            return normalise
        if is_dropout(node, self.gated.modules):
            return lambda values, weights, _: values[source]
        if isinstance(module, nn.ReLU) or node.target in _RELUS:
            return lambda values, weights, in_place: (F.relu_ if in_place else F.relu)(values[source])
        if node.target in _ADDITIONS and not node.kwargs and all(isinstance(item, Node) for item in node.args):
            left, right = self._ordered(node)
            return lambda values, weights, in_place: (
                values[left].add_(values[right]) if in_place else values[left] + values[right]
            )
        return self._general(node, module)

    def _general(self, node: Node, module: nn.Module | None) -> Callable[[dict, Weights, bool], Tensor]:
        if node.op == "get_attr":
            value = operator.attrgetter(node.target)(self.gated.graph_module)
            return lambda values, weights, _: value
        function = module if module is not None else node.target
        if module is not None and getattr(module, "inplace", False):
            function = copy.copy(module)  # without tensors of its own: only the flag differs
            function.inplace = False
        if node.op == "call_method":
            method = node.target if node.target.startswith("__") else node.target.rstrip("_")
            function = operator.methodcaller
        functional = {operator.iadd: operator.add, operator.imul: operator.mul, operator.isub: operator.sub}
        keywords = {key: item for key, item in node.kwargs.items() if key != "inplace"}

        def call(values: dict, weights: Weights, _: bool) -> Tensor:
            args = map_arg(node.args, values.__getitem__)
            kwargs = map_arg(keywords, values.__getitem__)
            if node.op == "call_method":
                return function(method, *args[1:], **kwargs)(args[0])
            return functional.get(function, function)(*args, **kwargs)

        return call

    def _fresh(self, node: Node) -> bool:
        """Whether the node's value is a tensor of its own that one node reads."""
        layer = self.gated.layers.get(node.target) if node.op == "call_module" else None
        produces = layer is not None and layer.kind in ("convolution", "depthwise", "norm")
        return (produces or node.target in _ADDITIONS) and len(node.users) == 1

    def _ordered(self, node: Node) -> tuple[Node, Node]:
        """The operands of a sum, one that may be overwritten first (a sum of two floats does not depend on it)."""
        left, right = node.args
        return (left, right) if self._overwritable(node, left) or not self._overwritable(node, right) else (right, left)

    def _overwritable(self, node: Node, argument: Node) -> bool:
        return self._fresh(argument) and argument.meta["tensor_meta"].shape == node.meta["tensor_meta"].shape

    def _reusable_argument(self, node: Node) -> Node | None:
        """The argument that the operation may overwrite with its result, if nobody else needs it."""
        module = self.gated.modules.get(node.target) if node.op == "call_module" else None
        if isinstance(module, nn.ReLU) or node.target in _RELUS:
            return node.args[0] if self._fresh(node.args[0]) else None
        if node.target in _ADDITIONS and not node.kwargs and all(isinstance(item, Node) for item in node.args):
            left, _ = self._ordered(node)
            return left if self._overwritable(node, left) else None
        return None


class MaskedExecutor(Executor):
    """The reference: all channels are computed, masked kernels and activations."""

    def masked_weights(self, kept: Sequence[Tensor]) -> tuple[dict, dict[Node, Tensor]]:
        """(weights, masks of the gates' places) for the kept channels of every gate."""
        vectors = []
        for gate, channels in zip(self.gated.gates, kept, strict=True):
            weight = self.gated.modules[gate.producers[0]].weight
            vectors.append(torch.zeros(gate.channels, dtype=weight.dtype, device=weight.device))
            vectors[-1][channels] = 1
        weights = {}
        for name, layer in self.gated.layers.items():
            module = self.gated.modules[name]
            weight, bias = module.weight, module.bias
            if layer.kind != "norm":
                weight = self._mask_kernel(layer, weight.detach(), vectors)
                weight = weight.contiguous(memory_format=self.memory_format) if weight.dim() == 4 else weight
            weights[name] = weight if weight is None else weight.detach(), bias if bias is None else bias.detach()
        masks = {
            self.node_named[place]: vector.view(1, -1, *[1] * (len(self._shape(place)) - 2))
            for gate, vector in zip(self.gated.gates, vectors, strict=True)
            for place in gate.places
        }
        return weights, masks

    def logits(self, images: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W) in training mode."""
        weights, masks = self.masked_weights(kept)
        images = images.contiguous(memory_format=self.memory_format)
        with torch.no_grad():
            return self.run({self.input: images}, weights, masks=masks)[0]

    def _shape(self, place: str) -> tuple[int, ...]:
        return self.node_named[place].meta["tensor_meta"].shape

    @staticmethod
    def _mask_kernel(layer: Layer, weight: Tensor, vectors: list[Tensor]) -> Tensor:
        if layer.input_gate is None and layer.output_gate is None:
            return weight
        masked = weight
        if layer.output_gate is not None:
            masked = masked * vectors[layer.output_gate].view(-1, *[1] * (weight.dim() - 1))
        if layer.input_gate is not None and layer.kind != "depthwise":
            columns = vectors[layer.input_gate].repeat_interleave(layer.features_per_channel)
            masked = masked * columns.view(1, -1, *[1] * (weight.dim() - 2))
        return masked * (weight.norm() / masked.norm().clamp_min(_SMALLEST_NORM))


class SlicedExecutor(Executor):
    """Only kept channels exist; a network that differs in one gate starts from the first value that can differ."""

    def __init__(self, gated: GatedNetwork, *, channels_last: bool = True):
        super().__init__(gated, channels_last=channels_last)
        node_of = {node.target: node for node in self.nodes if node.op == "call_module"}
        self.suffixes: list[list[Node]] = []  # of every gate: the nodes that change with it
        self.starts: list[list[Node]] = []  # of every gate: the unchanged values that the suffix reads
        for gate in gated.gates:
            changed = {node_of[name] for name in gate.producers}
            for node in self.nodes:
                if any(argument in changed for argument in node.all_input_nodes):
                    changed.add(node)
            suffix = [node for node in self.nodes if node in changed]
            reads = dict.fromkeys(argument for node in suffix for argument in node.all_input_nodes)
            self.suffixes.append(suffix)
            self.starts.append([node for node in reads if node not in changed])
        self.touched = [
            [name for name, layer in gated.layers.items() if index in (layer.input_gate, layer.output_gate)]
            for index in range(len(gated.gates))
        ]
        self.cuts = self._find_cuts()

    def _find_cuts(self) -> list[Cut]:
        """The narrow places nearest behind a third, a half, two thirds and five sixths of the network."""
        position = {node: index for index, node in enumerate(self.nodes)}
        readers = [max((position.get(user, len(self.nodes)) for user in node.users), default=-1) for node in self.nodes]
        reach, narrow = max(position[user] for user in self.input.users), []  # nodes that alone are read behind them
        for index in range(len(self.nodes) - 1):
            if reach <= index < readers[index] and _is_tensor(self.nodes[index]):
                narrow.append(index)
            reach = max(reach, readers[index])
        places = {
            next((index for index in narrow if index >= share * len(self.nodes)), -1)
            for share in (1 / 3, 1 / 2, 2 / 3, 5 / 6)
        }
        layers = {node.target: index for index, node in enumerate(self.nodes) if node.op == "call_module"}
        return [
            Cut(
                node=self.nodes[place],
                gates=[gate for gate, names in enumerate(self.touched) if min(layers[name] for name in names) <= place],
                nodes=self.nodes[place + 1 :],
            )
            for place in sorted(places - {-1})
        ]

    def weights(self, kept: Sequence[Tensor], names: Collection[str] | None = None) -> dict:
        """Weights of the layers ``names`` (default: all) for the kept channels of every gate."""
        weights = {}
        with torch.no_grad():
            for name in self.gated.layers if names is None else names:
                weight, bias = slice_layer(self.gated.layers[name], self.gated.modules[name], kept)
                if weight is not None and weight.dim() == 4:
                    weight = weight.contiguous(memory_format=self.memory_format)
                weights[name] = weight if weight is None else weight.detach(), bias if bias is None else bias.detach()
        return weights

    def prepare(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=self.memory_format)

    def logits(self, images: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W) in training mode."""
        with torch.no_grad():
            return self.run({self.input: self.prepare(images)}, self.weights(kept))[0]

    def forward(
        self, images: Tensor, weights: Weights, keep: Collection[Node] = ()
    ) -> tuple[Tensor, dict[Node, Tensor]]:
        """Logits, and the values of ``keep`` for ``candidate_logits``."""
        with torch.no_grad():
            logits, held = self.run({self.input: self.prepare(images)}, weights, keep=keep)
        return logits, self._with_input(images, held)

    def tapped(
        self, images: Tensor, weights: Weights, taps: Collection[Node], keep: Collection[Node] = ()
    ) -> tuple[Tensor, dict[Node, Tensor], dict[Node, Tensor]]:
        """Logits with gradient from the ``taps`` on, the values of the taps, and the detached values of ``keep``."""
        with torch.enable_grad():
            logits, held = self.run({self.input: self.prepare(images)}, weights, taps=taps, keep=keep)
        kept_values = {node: held[node].detach() for node in keep if node in held}
        return logits, {node: held[node] for node in taps}, self._with_input(images, kept_values)

    def candidate_logits(
        self, gate: int, weights: Weights, stored: Mapping[Node, Tensor], keep: Collection[Node] = ()
    ) -> tuple[Tensor, dict[Node, Tensor]]:
        """Logits of a network that differs from the stored one in ``gate`` alone, and those values of ``keep`` it met.

        ``weights`` are the candidate's.
        """
        starts = self.starts[gate]
        with torch.no_grad():
            if all(node in stored for node in starts):
                return self.run({node: stored[node] for node in starts}, weights, nodes=self.suffixes[gate], keep=keep)
            return self.run({self.input: stored[self.input]}, weights, keep=keep)

    def resumed_logits(
        self, cut: Cut, value: Tensor, weights: Weights, keep: Collection[Node] = ()
    ) -> tuple[Tensor, dict[Node, Tensor]]:
        """As ``candidate_logits`` from the ``value`` at a cut on."""
        with torch.no_grad():
            return self.run({cut.node: value}, weights, nodes=cut.nodes, keep=keep)

    def _with_input(self, images: Tensor, held: dict[Node, Tensor]) -> dict[Node, Tensor]:
        return {**held, self.input: self.prepare(images)}

    def storable(self, batch_size: int, budget: int) -> set[Node]:
        """Values worth storing for ``candidate_logits`` of ``batch_size`` images within ``budget`` bytes.

        Taken from the last gate backwards: there the values are small and the saved prefix is long.
        """
        chosen: set[Node] = set()
        used = 0
        for index in sorted(range(len(self.starts)), key=lambda index: len(self.suffixes[index])):
            missing = [node for node in self.starts[index] if node not in chosen and node is not self.input]
            if not all(_is_tensor(node) for node in missing):
                continue  # the parts of a split value, or a size
            metas = [node.meta["tensor_meta"] for node in missing]
            size = sum(meta.shape.numel() * meta.dtype.itemsize for meta in metas) * batch_size
            if used + size <= budget:
                chosen.update(missing)
                used += size
        return chosen

    def channel_sums(self, taps: Mapping[Node, Tensor], objective: Tensor) -> dict[Node, Tensor]:
        """|sum over batch and positions of gradient * value| for every channel of every tapped value (card 2.2)."""
        nodes = list(taps)
        gradients = torch.autograd.grad(objective, [taps[node] for node in nodes])
        return {
            node: (gradient * taps[node].detach()).sum([0, *range(2, gradient.ndim)]).abs()
            for node, gradient in zip(nodes, gradients, strict=True)
        }


def _is_tensor(node: Node) -> bool:
    return hasattr(node.meta.get("tensor_meta"), "shape")
