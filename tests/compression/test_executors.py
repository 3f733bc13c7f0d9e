"""Masked, sliced and cut networks are the same function; scores against autograd; nothing of the network changes."""

from __future__ import annotations

import pytest
import torch
import torchvision
from compression_networks import labelled_images, small_network
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck, ResNet

from runner.methods.compression import filter_scores
from runner.methods.compression.executor import MaskedExecutor, SlicedExecutor, slice_layer
from runner.methods.compression.gates import GatedNetwork, Layer
from runner.methods.compression.search import image_losses
from runner.methods.compression.slimming import cut


class TensorFlowPadded(nn.Module):
    """A stride-2 convolution padded right and bottom only, as in the released ResNet-56."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, images):
        hidden = F.relu(self.bn1(self.conv1(images)))
        hidden = F.relu(self.bn2(self.conv2(F.pad(hidden, (0, 1, 0, 1)))))
        return self.fc(hidden.mean((2, 3)))


class Chain(nn.Module):
    """Convolutions with biases and a chain of linear layers behind a flattened 2x2 image, as in VGG."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(32, 10), nn.ReLU(True), nn.Dropout(), nn.Linear(10, 5))

    def forward(self, images):
        return self.classifier(torch.flatten(self.features(images), 1))


NETWORKS = {
    "residual": lambda: small_network(blocks=2),
    "tensorflow padding": TensorFlowPadded,
    "bottlenecks": lambda: ResNet(Bottleneck, [1, 2, 1, 1], num_classes=5),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.5),
    "mobilenet_v3": lambda: torchvision.models.mobilenet_v3_small(num_classes=5, width_mult=0.5),
    "chain": Chain,
    "densenet": lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=5),
}


def gate(name: str) -> tuple[nn.Module, GatedNetwork, torch.Tensor]:
    torch.manual_seed(0)
    network = NETWORKS[name]().double()
    images, _ = labelled_images(6, size=32)
    return network, GatedNetwork(network, images[:1]), images


def random_channels(gated: GatedNetwork, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for channels in gated.full_counts():
        count = max(1, int(channels * (0.3 + 0.6 * torch.rand(1, generator=generator).item())))
        kept.append(torch.randperm(channels, generator=generator)[:count].sort().values)
    return kept


def all_channels(gated: GatedNetwork) -> list[torch.Tensor]:
    return [torch.arange(channels) for channels in gated.full_counts()]


def training_logits(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """A forward pass in training mode with dropout and stochastic depth switched off."""
    for module in network.modules():
        module.training = not isinstance(module, (nn.Dropout, torchvision.ops.StochasticDepth))
    return network(images).detach()


@pytest.mark.parametrize("name", NETWORKS)
def test_full_widths_equal_the_ungated_network(name):
    network, gated, images = gate(name)
    sliced = SlicedExecutor(gated).logits(images, all_channels(gated))
    masked = MaskedExecutor(gated).logits(images, all_channels(gated))
    expected = training_logits(network, images)
    torch.testing.assert_close(sliced, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(masked, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_masked_sliced_and_cut_networks_are_equal(name):
    network, gated, images = gate(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    kept = random_channels(gated)
    sliced, masked = SlicedExecutor(gated).logits(images, kept), MaskedExecutor(gated).logits(images, kept)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    torch.testing.assert_close(sliced, masked, rtol=1e-9, atol=1e-10)
    slim = cut(gated, kept)
    torch.testing.assert_close(training_logits(slim, images), masked, rtol=1e-9, atol=1e-10)
    counts = [len(channels) for channels in kept]
    numbers = sum(value.numel() for key, value in slim.state_dict().items() if "num_batches" not in key)
    assert numbers == gated.parameters(counts)
    slim(images).sum().backward()
    assert all(parameter.grad is not None for parameter in slim.parameters())


def test_worked_example_of_the_norm():
    module = nn.Linear(2, 2, bias=False)
    module.weight.data = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    weight, _ = slice_layer(Layer("fc", "linear", 0, None), module, [torch.tensor([0])])
    torch.testing.assert_close(weight, torch.tensor([[5.0], [0.0]]))


def test_kernels_keep_the_full_norm():
    _, gated, _ = gate("mobilenet_v2")
    weights = SlicedExecutor(gated).weights(random_channels(gated))
    for name, layer in gated.layers.items():
        if layer.kind != "norm":
            torch.testing.assert_close(weights[name][0].norm(), gated.modules[name].weight.norm())


@pytest.mark.parametrize("name", ["residual", "mobilenet_v3", "densenet", "chain"])
def test_candidates_from_stored_activations_equal_full_evaluations(name):
    _, gated, images = gate(name)
    executor, kept = SlicedExecutor(gated), random_channels(gated)
    weights = executor.weights(kept)
    for budget in (2**40, 2**14, 0):  # everything stored, a part, only the images
        _, stored = executor.forward(images, weights, executor.storable(len(images), budget))
        copies = {node: value.clone() for node, value in stored.items()}
        for index in range(len(gated.gates)):
            changed = [*kept]
            changed[index] = kept[index][: max(1, len(kept[index]) - 1)]
            candidate = {**weights, **executor.weights(changed, executor.touched[index])}
            expected = executor.logits(images, changed)
            logits, _ = executor.candidate_logits(index, candidate, stored)
            torch.testing.assert_close(logits, expected, rtol=0, atol=0)
        assert all(torch.equal(stored[node], value) for node, value in copies.items())


@pytest.mark.parametrize("name", ["residual", "mobilenet_v2", "bottlenecks", "densenet"])
def test_a_network_resumed_at_a_cut_equals_the_whole(name):
    _, gated, images = gate(name)
    executor, kept = SlicedExecutor(gated), random_channels(gated)
    weights = executor.weights(kept)
    logits, values = executor.forward(images, weights, [place.node for place in executor.cuts])
    assert executor.cuts
    for place in executor.cuts:
        assert torch.equal(executor.resumed_logits(place, values[place.node], weights)[0], logits)
        outside = [index for index in range(len(kept)) if index not in place.gates]
        changed = [channels[:1] if index in outside else channels for index, channels in enumerate(kept)]
        _, others = executor.forward(images, executor.weights(changed), [place.node])
        assert torch.equal(others[place.node], values[place.node])  # it depends on the gates that it names alone


@pytest.mark.parametrize("name", ["residual", "mobilenet_v2", "chain"])
def test_scores_equal_those_of_the_masked_network(name):
    _, gated, images = gate(name)
    labels, knowledge = torch.arange(6) % 5, torch.randn(6, 5, dtype=torch.float64)
    sliced, masked, kept = SlicedExecutor(gated), MaskedExecutor(gated), random_channels(gated)
    taps = filter_scores.tapped_nodes(sliced, "ekg")
    nodes = [node for group in taps for node in group]
    logits, held, _ = sliced.tapped(images, sliced.weights(kept), nodes)
    sums = sliced.channel_sums(held, image_losses(logits, labels, knowledge)[1].sum())
    scores = filter_scores.tap_scores(sliced, taps, sums, kept)

    weights, masks = masked.masked_weights(kept)
    logits, held = masked.run({masked.input: images}, weights, masks=masks, taps=nodes)
    gradients = torch.autograd.grad(image_losses(logits, labels, knowledge)[1].sum(), [held[node] for node in nodes])
    reference = dict(zip(nodes, gradients, strict=True))
    for group, score, channels in zip(taps, scores, kept, strict=True):
        expected = sum((reference[node] * held[node]).sum((0, 2, 3)).abs().detach() for node in group)
        torch.testing.assert_close(score, expected, rtol=1e-7, atol=1e-12)
        removed = torch.ones(len(score), dtype=torch.bool)
        removed[channels] = False
        assert not score[removed].any()


def test_score_is_the_gradient_of_a_real_valued_mask():
    _, gated, images = gate("tensorflow padding")
    labels = torch.arange(6) % 5
    executor = SlicedExecutor(gated)
    weights = executor.weights(all_channels(gated))
    taps = filter_scores.tapped_nodes(executor, "ekg")
    logits, held, _ = executor.tapped(images, weights, [taps[0][0], taps[1][0]])
    sums = executor.channel_sums(held, F.cross_entropy(logits, labels))
    for group, channels in zip(taps, gated.full_counts(), strict=True):
        mask = torch.ones(channels, dtype=torch.float64, requires_grad=True)
        logits, _ = executor.run({executor.input: images}, weights, masks={group[0]: mask.view(1, -1, 1, 1)})
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels), mask)
        torch.testing.assert_close(sums[group[0]], gradient.abs())


def test_taylor_taps_stand_on_the_normalisations():
    _, gated, _ = gate("residual")
    taps = filter_scores.tapped_nodes(SlicedExecutor(gated), "taylor")
    assert [node.target for node in taps[0]] == ["bn1", "layer1.0.bn2", "layer1.1.bn2"]


def test_l1_and_geometric_median_of_worked_kernels():
    kernel = torch.tensor([[3.0, -4.0], [0.0, 0.0], [3.0, 0.0]]).view(3, 2, 1, 1)
    torch.testing.assert_close(filter_scores.l1_norms(kernel), torch.tensor([7.0, 0.0, 3.0]))
    torch.testing.assert_close(filter_scores.geometric_median_distances(kernel), torch.tensor([9.0, 8.0, 7.0]))


def test_ranks_put_removed_channels_last():
    scores = torch.tensor([0.0, 5.0, 0.0, 7.0, 0.0])
    assert filter_scores.ranks(scores, torch.tensor([1, 3, 4])).tolist() == [3, 1, 4, 0, 2]


def test_a_single_image_at_a_single_position_is_normalised_to_the_bias():
    _, gated, images = gate("bottlenecks")
    assert SlicedExecutor(gated).logits(images[:1], all_channels(gated)).isfinite().all()
