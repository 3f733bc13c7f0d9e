"""Channel gates of a convolutional network: which filters can be removed, and what must be removed with them.

A network is traced with torch.fx and the identity of its channels is followed from every convolution onwards. Batch
normalisation, activations, pooling, spatial padding and dropout keep it; element-wise additions and products join the
channels of their operands; a depthwise convolution keeps it; flattening spreads a channel over several features.
Whatever else happens to a value (concatenation, reshape, split, an unknown module) pins its channels: they are left
alone. One group of joined, unpinned channels is one Gate.

Source: Lee and Song, "Ensemble Knowledge Guided Sub-network Search and Fine-tuning for Filter Pruning", ECCV 2022,
arXiv:2203.02651; the released code attaches these gates to ResNets by hand, the groups found here are the same.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule, Node, Tracer
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from runner.errors import UserError

_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.SiLU, nn.GELU, nn.Mish, nn.Softplus, nn.Hardswish,
    nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Identity,
)  # fmt: skip
_ACTIVATION_FUNCTIONS = {
    torch.relu, F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.silu, F.gelu, F.mish, F.softplus, F.hardswish,
    F.hardsigmoid, F.hardtanh, torch.sigmoid, F.sigmoid, torch.tanh, F.tanh,
}  # fmt: skip
_ACTIVATION_METHODS = {"relu", "sigmoid", "tanh", "contiguous", "clone"}
_DROPOUTS = (nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_DROPOUT_FUNCTIONS = {F.dropout, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout}
_POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.Upsample)
_POOLING_FUNCTIONS = {F.max_pool2d, torch.max_pool2d, F.avg_pool2d, F.lp_pool2d, F.interpolate}
_ADAPTIVE_POOLINGS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_ADAPTIVE_POOLING_FUNCTIONS = {F.adaptive_avg_pool2d, F.adaptive_max_pool2d}
_PADDINGS = (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)
_ELEMENTWISE, _SPATIAL = ("activation", "dropout"), ("pooling", "padding", "adaptive pooling")
_JOINS = {operator.add, operator.iadd, torch.add, operator.mul, operator.imul, torch.mul, operator.sub, torch.sub}
_JOIN_METHODS = {"add", "add_", "mul", "mul_", "sub", "sub_"}


def is_dropout(node: Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the node only drops at random in training, and so is the identity in every evaluation made here."""
    if node.op == "call_module":
        return isinstance(modules[node.target], _DROPOUTS)
    return node.target in _DROPOUT_FUNCTIONS or getattr(node.target, "__name__", "") == "stochastic_depth"


@dataclass(frozen=True)
class Gate:
    """One group of channels that are kept or removed together.

    ``name`` is the module of the first convolution of the group; ``producers`` and ``consumers`` name the modules whose
    output and input channels these are. ``places`` names the graph nodes whose value the gate multiplies. ``calls`` is
    the number of convolutions that write into the group (the card's num_call): 1 for the channels inside a block.
    """

    name: str
    channels: int
    producers: tuple[str, ...]
    depthwise: tuple[str, ...]
    norms: tuple[str, ...]
    consumers: tuple[str, ...]
    places: tuple[str, ...]
    calls: int

    def kept(self, rate: float) -> int:
        """Channels that remain at ``rate``: all ranks below max(channels * rate, 1)."""
        # four decimals: 100 * 0.07 is 7.000000000000001 in float64, and 7 in the float32 of the original
        return max(1, math.ceil(round(self.channels * rate, 4)))


@dataclass(frozen=True)
class Layer:
    """A module with weights, as the gates see it; ``input_gate``, ``output_gate`` index the gates (None: all stay)."""

    name: str
    kind: str  # convolution | depthwise | norm | linear
    input_gate: int | None
    output_gate: int | None
    features_per_channel: int = 1  # of a linear layer behind a flattened image


class GatedNetwork:
    """A network with the gates of its channels, their costs, and the traced graph that the executors run.

    ``network`` is put in evaluation mode, shares its weights with ``graph_module``, and is never changed.
    ``example`` is an input (1, C, H, W) on the network's device; its spatial size decides the FLOPs.
    Raises UserError for a network that torch.fx cannot trace or that has no prunable channels.
    """

    def __init__(self, network: nn.Module, example: torch.Tensor):
        self.network = network.eval()
        try:
            self.graph_module = GraphModule(network, Tracer().trace(network))
        except Exception as error:
            raise UserError(
                f"the network {type(network).__name__} cannot be traced with torch.fx ({error}): pruning needs a "
                "forward function without data-dependent control flow"
            ) from error
        with torch.no_grad():
            ShapeProp(self.graph_module).propagate(example)
        self.modules = dict(self.graph_module.named_modules())
        self.nodes = list(self.graph_module.graph.nodes)
        channels = _ChannelGroups(self.nodes, self.modules)
        self.gates, self.layers = channels.gates(), channels.layers()
        if not self.gates:
            raise UserError(f"the network {type(network).__name__} has no channels that can be pruned safely")
        self._flops, self._parameters = channels.costs()

    def full_counts(self) -> list[int]:
        return [gate.channels for gate in self.gates]

    def kept_counts(self, rates: Sequence[float]) -> list[int]:
        return [gate.kept(rate) for gate, rate in zip(self.gates, rates, strict=True)]

    def flops(self, counts: Sequence[int]) -> int:
        """Multiply-adds of convolutions and linear layers plus 2 per batch-normalised value, for one image.

        ``counts`` are the kept channels of every gate. Closed form in the counts; no forward pass.
        """
        return _quadratic(self._flops, counts)

    def parameters(self, counts: Sequence[int]) -> int:
        """Numbers of the network, with 4 per channel of a batch normalisation (its moving averages count)."""
        return _quadratic(self._parameters, counts)

    def flops_rate(self, counts: Sequence[int]) -> float:
        return self.flops(counts) / self.flops(self.full_counts())

    def kept_channels(self, orders: Sequence[torch.Tensor], rates: Sequence[float]) -> list[torch.Tensor]:
        """The kept channels of every gate, ascending int64, from ranks (0 = most important) and rates."""
        return [
            torch.nonzero(order < gate.kept(rate)).flatten()
            for gate, order, rate in zip(self.gates, orders, rates, strict=True)
        ]


def _quadratic(matrix: np.ndarray, counts: Sequence[int]) -> int:
    vector = np.append(np.asarray(counts, dtype=np.float64), 1.0)  # float64 is exact to 9e15
    return int(vector @ matrix @ vector)


class _ChannelGroups:
    """Union-find over the channel spaces of a graph's values; a space is one axis of channels."""

    def __init__(self, nodes: list[Node], modules: dict[str, nn.Module]):
        self.nodes, self.modules = nodes, modules
        self.position = {node: index for index, node in enumerate(nodes)}
        self.parent: list[int] = []
        self.pinned: set[int] = set()
        self.space: dict[Node, int] = {}
        self.features: dict[Node, int] = {}  # features per channel, > 1 behind a flattened image
        calls = [node.target for node in nodes if node.op == "call_module"]
        # a module with weights that is called twice would have to satisfy two places at once; an activation need not
        self.shared = {
            name for name in calls if calls.count(name) > 1 and any(True for _ in modules[name].parameters())
        }
        self.weighted: list[tuple[Node, str]] = []  # (node, kind) of the understood layers with weights
        for node in nodes:
            self._visit(node)
        self._number_gates()

    # -- propagation ---------------------------------------------------------------------------------------------

    def _find(self, space: int) -> int:
        while self.parent[space] != space:
            space = self.parent[space]
        return space

    def _new(self, node: Node, *, pinned: bool = False) -> None:
        self.parent.append(len(self.parent))
        self.space[node], self.features[node] = len(self.parent) - 1, 1
        if pinned:
            self.pinned.add(self.space[node])

    def _keep(self, node: Node, source: Node, features: int | None = None) -> None:
        self.space[node] = self.space[source]
        self.features[node] = self.features[source] if features is None else features

    def _pin(self, node: Node) -> None:
        """The operation is not understood: the channels it reads stay, and so does what it writes."""
        for source in node.all_input_nodes:
            self.pinned.add(self.space[source])
        self._new(node, pinned=True)

    def _visit(self, node: Node) -> None:
        sources = node.all_input_nodes
        source = sources[0] if sources else None
        kind = _kind(node, self.modules)
        if source is None or (node.op == "call_module" and node.target in self.shared):
            return self._pin(node)
        images = len(_shape(source)) == 4
        if kind == "convolution" and images:
            self._new(node)
            self.weighted.append((node, kind))
        elif kind in ("depthwise", "norm") and images:
            self._keep(node, source)
            self.weighted.append((node, kind))
        elif kind == "linear" and len(_shape(source)) == 2:
            self._new(node, pinned=True)  # hidden linear layers have no gate of their own
            self.weighted.append((node, kind))
        elif len(sources) == 1 and (kind in _ELEMENTWISE or (kind in _SPATIAL and images)):
            self._keep(node, source)
        elif kind == "flatten" and len(sources) == 1 and len(_shape(source)) in (2, 4):
            self._keep(node, source, self.features[source] * math.prod(_shape(source)[2:]))
        elif kind == "join" and self._joinable(node, sources):
            for other in sources[1:]:
                self._join(source, other)
            self._keep(node, source)
        else:
            self._pin(node)
        return None

    def _joinable(self, node: Node, sources: list[Node]) -> bool:
        shapes = [_shape(other) for other in sources]
        tensors = all(len(shape) in (2, 4) and len(shape) == len(shapes[0]) for shape in shapes)
        return (
            tensors
            and _shape(node)[1] == shapes[0][1]
            and all(shape[1] == shapes[0][1] for shape in shapes)
            and len({self.features[other] for other in sources}) == 1
        )

    def _join(self, left: Node, right: Node) -> None:
        left_space, right_space = self._find(self.space[left]), self._find(self.space[right])
        self.parent[right_space] = left_space

    # -- results -------------------------------------------------------------------------------------------------

    def _number_gates(self) -> None:
        pinned = {self._find(space) for space in self.pinned}
        producers: dict[int, list[Node]] = {}
        read = {
            self._find(self.space[node.args[0]]) for node, kind in self.weighted if kind in ("convolution", "linear")
        }
        for node, kind in self.weighted:
            root = self._find(self.space[node])
            if kind == "convolution" and root not in pinned and root in read:
                producers.setdefault(root, []).append(node)

        def rank(root: int) -> tuple[int, int, int]:
            # by where a group is first fed; at a tie (projection and first convolution of a block) the shared group
            # comes before the block's own channels, as in the released code, whose ties fall to the lowest index
            first_input = min(self.position[node.args[0]] for node in producers[root])
            return first_input, -len(producers[root]), self.position[producers[root][0]]

        self.roots = sorted(producers, key=rank)
        self.producers = producers
        self.gate_of_root = {root: index for index, root in enumerate(self.roots)}

    def _gate(self, node: Node) -> int | None:
        return self.gate_of_root.get(self._find(self.space[node]))

    def gates(self) -> list[Gate]:
        return [self._make_gate(index, self.producers[root]) for index, root in enumerate(self.roots)]

    def _make_gate(self, index: int, producers: list[Node]) -> Gate:
        def named(kinds: tuple[str, ...], side) -> tuple[str, ...]:
            return tuple(
                node.target for node, kind in self.weighted if kind in kinds and self._gate(side(node)) == index
            )

        places = dict.fromkeys(self._place(node).name for node in producers)
        return Gate(
            name=producers[0].target,
            channels=self.modules[producers[0].target].out_channels,
            producers=tuple(node.target for node in producers),
            depthwise=named(("depthwise",), lambda node: node),
            norms=named(("norm",), lambda node: node),
            consumers=named(("convolution", "linear"), lambda node: node.args[0]),
            places=tuple(places),
            calls=len(producers),
        )

    def _place(self, node: Node) -> Node:
        """The value that the gate multiplies: behind normalisation, sum and activation, where it is used next."""
        through = ("norm", "activation", "dropout", "pooling", "join")
        while len(node.users) == 1:
            user = next(iter(node.users))
            if _kind(user, self.modules) not in through or self._gate(user) != self._gate(node):
                break
            node = user
        return node

    def layers(self) -> dict[str, Layer]:
        """The understood layers with weights by module name, in the order of execution."""
        layers = {}
        for node, kind in self.weighted:
            source, output = self._gate(node.args[0]), self._gate(node)
            features = self.features[node.args[0]] if kind == "linear" else 1
            if kind in ("depthwise", "norm"):
                source = output
            layers[node.target] = Layer(node.target, kind, source, output, features)
        return layers

    def costs(self) -> tuple[np.ndarray, np.ndarray]:
        """FLOPs and parameters as quadratic forms of (kept counts, 1)."""
        size = len(self.roots) + 1
        flops, parameters = np.zeros((size, size)), np.zeros((size, size))
        for node in self.nodes:
            module = self.modules.get(node.target) if node.op == "call_module" else None
            if isinstance(module, nn.Conv2d):
                depthwise = _kind(node, self.modules) == "depthwise"
                positions = math.prod(_shape(node)[2:])
                kernel = math.prod(module.kernel_size)
                into, width_in = self._axis(node.args[0], module.in_channels // module.groups)
                out, width_out = self._axis(node, module.out_channels)
                if depthwise:
                    into, width_in = -1, 1
                flops[into, out] += kernel * width_in * width_out * positions
                parameters[into, out] += kernel * width_in * width_out
                if module.bias is not None:
                    parameters[-1, out] += width_out
            elif isinstance(module, nn.Linear):
                gate = self._gate(node.args[0])
                width = module.in_features if gate is None else self.features[node.args[0]]
                into = -1 if gate is None else gate
                flops[into, -1] += width * module.out_features * math.prod(_shape(node)[1:-1])
                parameters[into, -1] += width * module.out_features
                parameters[-1, -1] += module.out_features if module.bias is not None else 0
            elif isinstance(module, _BatchNorm):
                out, width = self._axis(node, module.num_features)
                positions = math.prod(_shape(node)[2:])
                flops[-1, out] += width * positions * (2 if module.affine else 1)
                parameters[-1, out] += width * (4 if module.affine else 2)
            elif module is not None:
                parameters[-1, -1] += sum(parameter.numel() for parameter in module.parameters())
        return flops, parameters

    def _axis(self, node: Node, width: int) -> tuple[int, int]:
        """(index into the counts, width) of a channel axis: a gate's count times 1, or the constant ``width``."""
        gate = self._gate(node)
        return (-1, width) if gate is None else (gate, 1)


def _shape(node: Node) -> tuple[int, ...]:
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if hasattr(meta, "shape") else ()


def _kind(node: Node, modules: dict[str, nn.Module]) -> str:
    """What a node does to channels; "other" for all that is not understood."""
    if node.op == "call_module":
        return _module_kind(modules[node.target])
    if node.op not in ("call_function", "call_method"):
        return "other"
    if is_dropout(node, modules):
        return "dropout"
    target, arguments = node.target, node.args[1:]
    if target in _ACTIVATION_FUNCTIONS or (node.op == "call_method" and target.rstrip("_") in _ACTIVATION_METHODS):
        return "activation"
    if target in _POOLING_FUNCTIONS:
        return "pooling"
    if target in _ADAPTIVE_POOLING_FUNCTIONS:
        return "adaptive pooling"
    if target in _JOINS or target in _JOIN_METHODS:
        return "join"
    if target is F.pad:
        amounts = arguments[0] if arguments else node.kwargs.get("pad", ())
        return "padding" if len(amounts) <= 4 else "other"
    if target in (torch.flatten, "flatten"):
        start = arguments[0] if arguments else node.kwargs.get("start_dim", 0)
        end = arguments[1] if len(arguments) > 1 else node.kwargs.get("end_dim", -1)
        return "flatten" if (start, end) == (1, -1) else "other"
    if target in (torch.mean, "mean"):
        dims = arguments[0] if arguments else node.kwargs.get("dim", ())
        spatial = isinstance(dims, (tuple, list)) and {dim % 4 for dim in dims} == {2, 3}
        return "adaptive pooling" if spatial else "other"
    return "other"


def _module_kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        if module.groups == 1:
            return "convolution"
        depthwise = module.groups == module.in_channels == module.out_channels and module.padding_mode == "zeros"
        return "depthwise" if depthwise else "other"
    if isinstance(module, nn.Flatten):
        return "flatten" if (module.start_dim, module.end_dim) == (1, -1) else "other"
    kinds = {
        "norm": nn.BatchNorm2d,
        "linear": nn.Linear,
        "activation": _ACTIVATIONS,
        "dropout": _DROPOUTS,
        "pooling": _POOLINGS,
        "padding": _PADDINGS,
        "adaptive pooling": _ADAPTIVE_POOLINGS,
    }
    return next((kind for kind, types in kinds.items() if isinstance(module, types)), "other")
