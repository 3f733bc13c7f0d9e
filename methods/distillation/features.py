"""What a network computes at the ends of its stages, read by name through hooks; the networks stay as they are.

A point is where a map is read:
    output          what the stage hands on (RepDistiller): after the ReLU, but in a wide residual network the sum
                    before the next normalisation
    activated       after the ReLU that reads the stage: in a wide residual network the next block's normalisation and
                    ReLU (KD_methods_with_TF, IEP); elsewhere the output
    preactivation   before that ReLU; MobileNetV2's stages end without one, and give their output
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VGG as TorchvisionVGG
from torchvision.models import MobileNetV2, ShuffleNetV2

from runner.errors import UserError
from runner.models.resnet import ResNet
from runner.models.shufflenet import ShuffleNetV1
from runner.models.vgg import PLANS, VGG
from runner.models.weights import head_of
from runner.models.wide_resnet import WideResNet

Point = Literal["output", "activated", "preactivation"]
MOBILENET_ENDS = (3, 6, 13, 17)  # in features: the last blocks of 24, 32, 96 and 320 channels, RepDistiller's choice


class Features(NamedTuple):
    """One forward pass: logits (B, classes), embedding (B, D), the classifier's input, and maps (B, C, H, W) from the
    first stage (or the stem) to the last."""

    logits: Tensor
    embedding: Tensor
    maps: list[Tensor]


class Watch(NamedTuple):
    """A tensor to keep: what a module takes or gives, as ``keep`` makes it before a later layer works in place."""

    module: nn.Module
    side: Literal["input", "output"] = "output"
    keep: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Tap:
    """How a map comes from watched tensors; one alone is the map."""

    watches: Sequence[Watch]
    combine: Callable[..., Tensor] | None = None


class Reader:
    """Runs a network and returns its ``Features``; the hooks stand only while it runs.

    Raises UserError for a network whose stages are not known. ``at=None`` reads no maps.
    """

    def __init__(self, network: nn.Module, at: Point | None = None, *, stem: bool = False) -> None:
        self.network = network
        self.head = network.get_submodule(head_of(network))
        self.taps = [] if at is None else taps(network, at)[0 if stem else 1 :]

    def __call__(self, images: Tensor) -> Features:
        kept: dict[tuple[int, int], Tensor] = {}
        embedding: list[Tensor] = []
        handles = [self.head.register_forward_pre_hook(lambda _, inputs: embedding.append(inputs[0]))]
        for number, tap in enumerate(self.taps):
            for place, watch in enumerate(tap.watches):
                store = partial(_store, kept, (number, place), watch.keep)
                if watch.side == "input":
                    handles.append(watch.module.register_forward_pre_hook(lambda _, i, store=store: store(i[0])))
                else:
                    handles.append(watch.module.register_forward_hook(lambda _, i, out, store=store: store(out)))
        try:
            logits = self.network(images)
        finally:
            for handle in handles:
                handle.remove()
        maps = []
        for number, tap in enumerate(self.taps):
            tensors = [kept[number, place] for place in range(len(tap.watches))]
            maps.append(tap.combine(*tensors) if tap.combine else tensors[0])
        return Features(logits.float(), embedding[0].flatten(1), maps)


def _store(kept: dict, place: tuple[int, int], keep: Callable[[Tensor], Tensor] | None, tensor: Tensor) -> None:
    kept[place] = tensor if keep is None else keep(tensor)


def taps(network: nn.Module, at: Point) -> list[Tap]:
    """The stem's tap and one for every stage. Raises UserError for a network that is none of the zoo's families and
    has no attribute ``stages`` (names of the modules that end its stages; their outputs are read)."""
    if isinstance(network, ResNet):
        return _resnet_taps(network, at)
    if isinstance(network, WideResNet):
        stages = [network.layer1, network.layer2, network.layer3]
        if at == "output":
            return [Tap([Watch(stages[0], "input")]), *(Tap([Watch(stage)]) for stage in stages)]
        keep = F.relu if at == "activated" else torch.clone
        return [Tap([Watch(norm, keep=keep)]) for norm in (network.layer1[0].bn1, *stage_norms(network))]
    if isinstance(network, VGG | TorchvisionVGG):
        if at == "preactivation":
            return [Tap([Watch(network.features[end - 1], keep=torch.clone)]) for end in _vgg_ends(network)]
        return [Tap([Watch(network.features[end])]) for end in _vgg_ends(network)]
    if isinstance(network, MobileNetV2):
        return [Tap([Watch(network.features[end])]) for end in (0, *MOBILENET_ENDS)]
    if isinstance(network, ShuffleNetV2):
        stages = [network.stage2, network.stage3, network.stage4]
        ends = [_shuffle_preactivation(stage[-1]) if at == "preactivation" else Tap([Watch(stage)]) for stage in stages]
        return [Tap([Watch(stages[0], "input")]), *ends]
    if isinstance(network, ShuffleNetV1) and at == "preactivation":
        ends = [getattr(network, name)[-1] for name in network.stages]
        before = [Tap([Watch(end.bn3), Watch(end, "input")], torch.add) for end in ends]
        return [Tap([Watch(network.bn1, keep=torch.clone)]), *before]
    names = getattr(network, "stages", None)
    if not names:
        raise UserError(
            f"model: the stages of {type(network).__name__} are not known; give it an attribute `stages`, the names of "
            "the modules that end them"
        )
    stages = [network.get_submodule(name) for name in names]
    return [Tap([Watch(stages[0], "input")]), *(Tap([Watch(stage)]) for stage in stages)]


def stage_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """The batch normalisation before the ReLU that reads each stage; of a residual block its last one.

    Raises UserError where a stage has none for all of its channels.
    """
    if isinstance(network, ResNet):
        return [getattr(network, stage)[-1].last_normalisation() for stage in network.stages]
    if isinstance(network, ShuffleNetV1):
        return [getattr(network, stage)[-1].bn3 for stage in network.stages]
    if isinstance(network, WideResNet):
        return [network.layer2[0].bn1, network.layer3[0].bn1, network.bn]
    if isinstance(network, VGG | TorchvisionVGG):
        return [network.features[end - 1] for end in _vgg_ends(network)[1:]]
    if isinstance(network, MobileNetV2):
        return [network.features[end].conv[-1] for end in MOBILENET_ENDS]
    raise UserError(
        f"teacher.model: {type(network).__name__} has no batch normalisation over all channels at the ends of its "
        "stages; choose another teacher"
    )


def _resnet_taps(network: ResNet, at: Point) -> list[Tap]:
    stages = [getattr(network, name) for name in network.stages]
    stem = Tap([Watch(stages[0], "input")])
    if at != "preactivation":
        return [stem, *(Tap([Watch(stage)]) for stage in stages)]
    if network.stem == "cifar":
        stem = Tap([Watch(network.bn1, keep=torch.clone)])
    ends = [stage[-1] for stage in stages]
    shortcuts = [Watch(end, "input") if end.downsample is None else Watch(end.downsample) for end in ends]
    return [
        stem,
        *(
            Tap([Watch(end.last_normalisation()), shortcut], torch.add)
            for end, shortcut in zip(ends, shortcuts, strict=True)
        ),
    ]


def _vgg_ends(network: nn.Module) -> list[int]:
    """Where in ``features`` the ReLUs stand that end the blocks; the first counts as the stem.

    The plan is known by the numbers of convolutions and poolings, so that pruned widths do not matter. Of a network of
    three blocks all are stages, and the stem is its first ReLU.
    """
    layers = list(network.features)
    relus = [place for place, layer in enumerate(layers) if isinstance(layer, nn.ReLU)]
    sizes = (len(relus), sum(isinstance(layer, nn.MaxPool2d) for layer in layers))
    plan = next((p for p in PLANS.values() if (sum(map(len, p.blocks)), p.pooled) == sizes), None)
    if plan is None or not isinstance(layers[1], nn.BatchNorm2d):
        raise UserError("model: of VGG networks only those of the zoo have known stages")
    counts, ends = [len(block) for block in plan.blocks], []
    for number in range(len(counts)):
        ends.append(relus[sum(counts[: number + 1]) - 1])
    return ends if len(ends) > 3 else [relus[0], *ends]


def _shuffle_preactivation(block: nn.Module) -> Tap:
    """The half that passes, and beside it the other half before its ReLU."""
    norm = block.branch2[-2]
    return Tap(
        [Watch(block, "input"), Watch(norm, keep=torch.clone)],
        lambda x, half: torch.stack([x.chunk(2, 1)[0], half], 2).flatten(1, 2),
    )


def align(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Lists of equal length: where one network has more stages, the last ones of both."""
    count = min(len(student), len(teacher))
    return list(student[-count:]), list(teacher[-count:])


def pool_to_smaller(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (B, C, H, W) of equal height and width: the larger one is average-pooled."""
    if student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    side = min(student.shape[2], teacher.shape[2])
    return F.adaptive_avg_pool2d(student, side), F.adaptive_avg_pool2d(teacher, side)
