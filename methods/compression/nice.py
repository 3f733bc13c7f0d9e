"""NICE: quantization-aware training with uniform noise, learned clamps and one group of layers after another.

Baskin, Zheltonozhskii, Liss, Chai, Schwartz, Giryes, Mendelson, Bronstein, "NICE: Noise Injection and Clamping
Estimation for Neural Network Quantization", arXiv:1810.00162, Mathematics 9(17), 2021. Official code: Lancer555/NICE.
The formulas stand in ``quantizers``, the layers in ``quantized_layers``. Deviations: see the class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, fx, nn
from torch.nn.functional import cross_entropy

from runner.fit import fit, test_metrics
from runner.methods.compression.quantized_layers import QuantizedConv2d, QuantizedLinear, QuantizedReLU
from runner.methods.compression.quantized_network import (
    Place,
    Schedule,
    Widths,
    places,
    quantizable,
    quantized,
    sizes,
    stages,
    traced,
)
from runner.methods.compression.quantizers import (
    SMALLEST_CLAMP,
    activation_levels,
    hardware_clamp,
    weight_clamp,
    weight_levels,
)
from runner.randomness import stream_seed

if TYPE_CHECKING:
    from runner.context import Context

CALIBRATION_BATCH = 64  # images
MOMENTUM = 0.9  # of the averages in the calibration


@dataclass(kw_only=True)
class NICE:
    """Weights and activations of few bits, trained with noise, clamps and a gradual schedule."""

    weight_bits: Annotated[int, Field(ge=2, le=16)] = 3
    activation_bits: Annotated[int, Field(ge=1, le=16)] = 3
    quantize_first: bool = False  # the first layer
    quantize_last: bool = False  # the last layer and the activation before it
    training: bool = True  # off: quantized after the training, with the first clamps
    gradual: bool = True  # off: all layers in one stage
    stage_epochs: Annotated[float, Field(gt=0)] = 2.0  # that each stage takes
    layers_per_stage: Annotated[int, Field(ge=1)] = 1
    noise_share: Annotated[float, Field(ge=0, le=1)] = 0.05  # of the weights of the stage in training; 0: no noise
    clamps: Literal["statistics", "maximum"] = "statistics"  # maximum: of absolute weights, and of activations
    weight_deviations: Annotated[float, Field(gt=0)] = 3.45  # standard deviations in the clamp of weights
    activation_deviations: Annotated[float, Field(gt=0)] = 5.0
    learn_clamps: bool = True  # of activations
    hardware_clamps: bool = False  # steps b x 2^p with b of three bits
    calibration_batches: Annotated[int, Field(ge=1)] = 80  # of 64 training images

    paper: ClassVar[str] = "arXiv:1810.00162"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "Noise on few weights, clamps from statistics that are then learned, and quantizing layer after layer keep "
        "networks of 3 to 5 bits near full precision."
    )
    citation: ClassVar[str] = "Baskin et al. NICE: Noise Injection and Clamping Estimation. Mathematics 9(17), 2021."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    deviations: ClassVar[tuple[str, ...]] = (
        "gradients are straight-through with the quantized weights in the backward pass too; under a current PyTorch "
        "the released weight swap would mix them with the stored ones",
        "layers are staged in the order of the forward pass; the code has that of their definition, which differs "
        "where a block defines its shortcut last",
        "the activations of the last stage are quantized in training too once its turn is over",
        "moving averages of batch normalisation are rounded where they are used; the code overwrites them",
        "the calibration goes through the training images again until it has its 80 batches",
        "clamps of ReLU6 begin at 6 at most",
        "the image-processing network DeepISP is not here",
    )

    def __post_init__(self) -> None:
        if not (self.training or self.learn_clamps):
            raise ValueError("training=false learns nothing: leave learn_clamps as it is")

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy (0..1) and loss of the quantized network on the test split, accuracy_baseline (in full
        precision), accuracy_initial (quantized with the first clamps, before training), and of the network the
        weights_rate and bit_operations_rate (of those at 32 bits), weights_kilobytes and activations_kilobytes."""
        network = ctx.trained_model("baseline")
        accuracy_baseline = ctx.evaluate(network, record=False)["accuracy"]
        widths = Widths(
            weight_bits=self.weight_bits,
            activation_bits=self.activation_bits,
            quantize_first=self.quantize_first,
            quantize_last=self.quantize_last,
            noise_share=self.noise_share,
            hardware_clamps=self.hardware_clamps,
        )
        graph = traced(network)
        order = quantizable(graph, widths)
        ranges = ctx.once("calibrate", lambda: self.activation_ranges(ctx, graph))
        quantized(graph, order, widths)
        self.set_clamps(graph, order, ranges)
        ctx.profile(graph, "final")
        size = sizes(graph, (ctx.data.channels, ctx.data.image_size, ctx.data.image_size))
        initial = ctx.evaluate(graph, record=not self.training)
        metrics = self.train(ctx, graph, order) if self.training else initial
        rebuild = "runner.methods.compression.quantized_network:rebuilt"
        ctx.save_model(graph, {"widths": asdict(widths)}, rebuild=rebuild)
        ctx.log(**size)
        return {
            **metrics,
            "accuracy_baseline": accuracy_baseline,
            "accuracy_initial": initial["accuracy"],
            "weights_rate": size["weights_kilobytes"] / size["weights_kilobytes_full"],
            "bit_operations_rate": size["bit_operations"] / size["bit_operations_full"],
            "weights_kilobytes": size["weights_kilobytes"],
            "activations_kilobytes": size["activations_kilobytes"],
        }

    def activation_ranges(self, ctx: Context, graph: fx.GraphModule) -> dict[str, float]:
        """c_a of every activation, quantized later or not, from the statistics of its input in full precision."""
        statistics: dict[str, tuple[Tensor, Tensor]] = {}
        highest: dict[str, Tensor] = {}
        names = [place.name for place in places(graph) if place.kind == "activation"]

        def see(name: str, x: Tensor) -> None:
            mean, deviation = statistics.get(name, (torch.zeros((), device=x.device),) * 2)
            statistics[name] = (
                mean * MOMENTUM + x.mean() * (1 - MOMENTUM),
                deviation * MOMENTUM + x.std() * (1 - MOMENTUM),
            )
            highest[name] = torch.maximum(highest.get(name, x.max()), x.max())

        hooks = [
            graph.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: see(name, inputs[0]))
            for name in names
        ]
        graph.eval()
        with torch.no_grad():
            for images in self.calibration_images(ctx):
                graph(images)
        graph.train()
        for hook in hooks:
            hook.remove()
        ranges = {}
        for name in names:
            mean, deviation = (item.item() for item in statistics[name])
            found = mean + self.activation_deviations * deviation
            if self.clamps == "maximum":
                found = highest[name].item()
            limit = 6.0 if isinstance(graph.get_submodule(name), nn.ReLU6) else float("inf")
            ranges[name] = min(max(abs(found), SMALLEST_CLAMP), limit)
        return ranges

    def calibration_images(self, ctx: Context) -> Iterator[Tensor]:
        """``calibration_batches`` batches of augmented training images; further passes once all were seen."""
        batches = ctx.batches("train", CALIBRATION_BATCH)
        done = 0
        while done < self.calibration_batches:
            for images, _, _ in batches.iterate(stream_seed(ctx.durable.seeds.order, "calibrate", done)):
                yield images
                done += 1
                if done == self.calibration_batches:
                    return

    def set_clamps(self, graph: fx.GraphModule, order: list[Place], ranges: dict[str, float]) -> None:
        """The first clamps of activations, the clamps of weights, and the activation step of all biases' grids.

        That step is the largest range's of the network, also where its activation stays in full precision.
        """
        modules = [graph.get_submodule(place.name) for place in order]
        levels = activation_levels(self.activation_bits)
        with torch.no_grad():
            for place, module in zip(order, modules, strict=True):
                if isinstance(module, QuantizedReLU):
                    module.clamp.fill_(ranges[place.name])
                    if self.hardware_clamps:
                        module.clamp.copy_(hardware_clamp(module.clamp, levels))
                    module.clamp.requires_grad_(self.learn_clamps)
            largest = max(ranges.values())
            for module in modules:
                if isinstance(module, (QuantizedConv2d, QuantizedLinear)):
                    clamp = weight_clamp(module.weight, self.weight_deviations)
                    if self.clamps == "maximum":
                        clamp = module.weight.abs().max().clamp_min(SMALLEST_CLAMP)
                    if self.hardware_clamps:
                        clamp = hardware_clamp(clamp, weight_levels(self.weight_bits))
                    module.clamp.copy_(clamp)
                    module.activation_step.fill_(largest / levels)

    def train(self, ctx: Context, graph: fx.GraphModule, order: list[Place]) -> dict[str, float]:
        """The recipe's epochs, in which the stages are quantized one after another; evaluation has all quantized."""
        batches = ctx.batches("train", ctx.recipe.batch_size, drop_last=ctx.recipe.drop_last)
        parts = stages(order, self.layers_per_stage) if self.gradual else [list(order)]
        schedule = Schedule(graph, parts, self.stage_epochs * len(batches))
        ctx.track(schedule=schedule)
        ctx.say(f"{len(parts)} stages of {self.stage_epochs:g} epochs, the last one ends in epoch "
                f"{len(parts) * self.stage_epochs:g} of {ctx.recipe.epochs}")  # fmt: skip

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            schedule.step()
            return cross_entropy(graph(images), labels, label_smoothing=ctx.recipe.label_smoothing)

        return test_metrics(ctx, graph, fit(ctx, graph, loss, batches=batches))
