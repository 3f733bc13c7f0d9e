"""Gates found in real networks against the card's tables, and what must stay untouched."""

from __future__ import annotations

import pytest
import torch
import torchvision
from compression_networks import ResidualNetwork
from torch import nn

from runner.errors import UserError
from runner.methods.compression.gates import GatedNetwork


def cifar_resnet(blocks: int) -> nn.Module:
    return ResidualNetwork((16, 32, 64), blocks, classes=10)


NETWORKS = {  # name: (network, input side, gates, parameters, FLOPs) of card 2.2 and 2.12
    "resnet20": (lambda: cifar_resnet(3), 32, 12, 274_042, 41_214_592),
    "resnet56": (lambda: cifar_resnet(9), 32, 30, 860_026, 126_837_376),
    "resnet18": (torchvision.models.resnet18, 224, 12, 11_699_112, 1_819_040_768),
    "resnet34": (torchvision.models.resnet34, 224, 20, 21_814_696, 3_671_237_632),
    "resnet50": (torchvision.models.resnet50, 224, 37, 25_610_152, 4_111_412_224),
}


def gate_of(network: nn.Module, size: int = 32, channels: int = 3) -> GatedNetwork:
    return GatedNetwork(network, torch.zeros(1, channels, size, size))


@pytest.mark.parametrize("name", NETWORKS)
def test_gates_and_costs_of_residual_networks(name):
    build, size, gates, parameters, flops = NETWORKS[name]
    gated = gate_of(build(), size)
    assert len(gated.gates) == gates
    assert gated.parameters(gated.full_counts()) == parameters
    assert gated.flops(gated.full_counts()) == flops


def test_order_and_calls_of_resnet56():
    gated = gate_of(cifar_resnet(9))
    # the stem's group, nine blocks; a projection's group comes before the channels inside its block
    assert [index for index, gate in enumerate(gated.gates) if gate.calls > 1] == [0, 10, 20]
    assert [gated.gates[index].calls for index in (0, 10, 20)] == [10, 10, 10]
    assert [len(gated.gates[index].places) for index in (0, 10, 20)] == [10, 9, 9]  # a projection is not gated itself
    assert gated.gates[17].producers == ("layer2.6.conv1",)
    assert set(gated.gates[0].consumers[-2:]) == {"layer2.0.conv1", "layer2.0.downsample.0"}
    assert [gated.gates[index].channels for index in (0, 10, 20)] == [16, 32, 64]


def test_stem_of_resnet50_is_gated_behind_the_max_pooling():
    gated = gate_of(torchvision.models.resnet50(), 64)
    assert gated.gates[0].places == ("maxpool",)
    assert gated.gates[0].calls == 1  # the first projection opens a group of its own
    assert [gate.calls for gate in gated.gates if gate.calls > 1] == [4, 5, 7, 4]


@pytest.mark.parametrize("channels, rate, kept", [(16, 0.8, 13), (16, 0.6, 10), (16, 0.9375, 15), (64, 0.8, 52)])
def test_kept_channels(channels, rate, kept):
    gate = gate_of(ResidualNetwork((channels, 8, 8))).gates[0]
    assert gate.kept(rate) == kept


@pytest.mark.parametrize("rate", [0.0, -0.2, 1e-9])
def test_one_channel_always_stays(rate):
    assert gate_of(ResidualNetwork()).gates[0].kept(rate) == 1


def test_one_channel_less_of_any_gate_costs_less():
    gated = gate_of(cifar_resnet(3))
    full = gated.full_counts()
    for index in range(len(full)):
        counts = [*full]
        counts[index] -= 1
        assert gated.flops(counts) < gated.flops(full)
        assert gated.parameters(counts) < gated.parameters(full)


def test_mobilenet_v2_depthwise_convolutions_follow_their_input():
    gated = gate_of(torchvision.models.mobilenet_v2(num_classes=10))
    assert len(gated.gates) == 25
    expansion = next(gate for gate in gated.gates if gate.name == "features.2.conv.0.0")
    assert expansion.depthwise == ("features.2.conv.1.0",)
    assert expansion.consumers == ("features.2.conv.2",)
    group = next(gate for gate in gated.gates if gate.name == "features.2.conv.2")
    assert (group.calls, group.producers) == (2, ("features.2.conv.2", "features.3.conv.2"))


def test_vgg_flattens_into_its_classifier_and_hidden_linear_layers_stay():
    gated = gate_of(torchvision.models.vgg11_bn(num_classes=10))
    assert len(gated.gates) == 8
    assert gated.gates[-1].consumers == ("classifier.0",)
    assert gated.layers["classifier.0"].features_per_channel == 49
    assert gated.layers["classifier.3"].input_gate is None


class Odd(nn.Module):
    """Every operation that must pin channels, behind convolutions of their own, and one gate that is safe."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.shared = nn.Conv2d(4, 4, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.safe, self.last = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(64, 5)

    def forward(self, images):
        first = self.first(images)
        twice = self.shared(self.shared(self.second(first)))
        joined = self.grouped(torch.cat([first, twice], 1))
        return self.head(self.last(torch.relu(self.safe(joined))).reshape(-1, 64))


def test_what_is_not_understood_is_pinned():
    gated = gate_of(Odd(), size=4)
    assert [gate.name for gate in gated.gates] == ["safe"]


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.layer(images) if images.sum() > 0 else images


def test_networks_that_cannot_be_pruned_are_refused():
    with pytest.raises(UserError, match="traced"):
        gate_of(Branching())
    with pytest.raises(UserError, match="no channels"):
        gate_of(nn.Sequential(nn.Conv2d(3, 5, 32), nn.Flatten()))
