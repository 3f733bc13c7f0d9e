"""Wide residual networks, VGG, and torchvision's networks: sizes, names, feature maps, gates."""

import pytest
import torch
from torch import nn

from runner.errors import UserError
from runner.methods.compression.gates import GatedNetwork
from runner.models import ZOO, build_model
from runner.models.shufflenet import shuffle
from runner.profile import count
from runner.schema import ModelSettings

NEW = sorted(name for name in ZOO if not name.startswith("resnet") and name != "mlp")


def build(name, *, image_size=32, num_classes=10, channels=3, small_image_stem="cifar", **options):
    return build_model(
        ModelSettings(name=name, **options),
        num_classes=num_classes,
        image_size=image_size,
        channels=channels,
        small_image_stem=small_image_stem,
    )


def trained_numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("depth, widening", [(40, 4), (40, 2), (40, 1), (22, 4), (16, 4), (16, 2), (16, 1), (10, 4)])
def test_wide_residual_networks_have_the_sizes_of_the_formula(depth, widening):
    """Counted layer by layer from table 1 of the paper, not from the modules."""
    blocks, before, total = (depth - 4) // 6, 16, 3 * 16 * 9
    for width in (16 * widening, 32 * widening, 64 * widening):
        total += 2 * before + 9 * before * width + 2 * width + 9 * width**2  # the block that changes the width
        total += before * width if before != width else 0
        total += (blocks - 1) * (18 * width**2 + 4 * width)
        before = width
    total += 2 * before + before * 10 + 10
    assert trained_numbers(build(f"wrn_{depth}_{widening}")) == total


@pytest.mark.parametrize(
    ("name", "millions"),  # arXiv:1605.07146, table 4
    [("wrn_40_2", 2.2), ("wrn_40_4", 8.9)],
)
def test_wide_residual_networks_have_the_published_sizes(name, millions):
    assert round(trained_numbers(build(name)) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("name", "params"),
    [  # RepDistiller's networks for 100 classes, counted
        ("resnet8", 83_892),
        ("resnet8x4", 1_233_540),
        ("resnet32x4", 7_433_860),
        ("wrn_40_1", 569_780),
        ("mobilenet_v2_half", 812_836 - 288),  # which expands in its first stage too, by the factor 1
    ],
)
def test_networks_of_the_distillation_benchmark(name, params):
    assert trained_numbers(build(name, num_classes=100)) == params


def test_the_benchmarks_mobilenet_has_no_upper_limit():
    activations = {type(module) for module in build("mobilenet_v2_half").modules() if "ReLU" in type(module).__name__}
    assert activations == {nn.ReLU}  # RepDistiller, SHAKE and CheckpointKD alike


def test_pre_activation_shortcuts():
    model = build("wrn_16_2").eval()
    first, second = model.layer2[0], model.layer2[1]
    assert first.shortcut.stride == (2, 2) and second.shortcut is None
    for block in (first, second):
        nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 32, 8, 8)
    with torch.no_grad():
        assert torch.equal(second(x.repeat(1, 2, 1, 1)), x.repeat(1, 2, 1, 1))  # the input itself
        assert torch.allclose(first(x), first.shortcut(first.relu(first.bn1(x))))


@pytest.mark.parametrize(
    ("name", "num_classes", "params", "side"),
    [  # 3x3 kernels with bias, two numbers a channel of batch normalisation, one linear layer: by hand
        ("vgg7", 10, 4_661_898, 4),
        ("vgg8", 100, 3_965_028, 4),
        ("vgg13", 100, 9_462_180, 4),
        ("vgg16", 10, 14_728_266, 1),
    ],
)
def test_small_vgg(name, num_classes, params, side):
    model = build(name, num_classes=num_classes)
    assert trained_numbers(model) == params
    assert model.features(torch.zeros(1, 3, 32, 32)).shape[2:] == (side, side)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, num_classes)


@pytest.mark.parametrize("name, theirs", [("mobilenet_v2", "mobilenet_v2"), ("shufflenet_v2", "shufflenet_v2_x1_0")])
@pytest.mark.parametrize("image_size", [32, 224])
def test_networks_of_torchvision(name, theirs, image_size):
    import torchvision

    theirs = getattr(torchvision.models, theirs)(weights=None).eval()
    ours = build(name, image_size=image_size, num_classes=1000).eval()
    assert trained_numbers(ours) == {"mobilenet_v2": 3_504_872, "shufflenet_v2": 2_278_604}[name]  # torchvision's pages
    ours.load_state_dict(theirs.state_dict())  # names and shapes, with both stems
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images)) == (image_size == 224)


def test_vgg16_bn_is_that_of_torchvision():
    model = build("vgg16_bn", num_classes=1000)
    assert trained_numbers(model) == 138_365_992  # torchvision's page
    names = [name for name, _ in model.named_parameters()]
    assert (names[0], names[-1], len(names)) == ("features.0.weight", "classifier.6.bias", 58)
    assert model.avgpool.output_size == (7, 7)


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2"])
def test_the_small_stem_ends_at_4x4(name):
    sides = {}
    for stem in ("cifar", "imagenet"):
        model = build(name, small_image_stem=stem).eval()
        last = model.features if name == "mobilenet_v2" else model.conv5
        last.register_forward_hook(lambda module, arguments, out, stem=stem: sides.update({stem: out.shape[-1]}))
        model(torch.zeros(1, 3, 32, 32))
    assert sides == {"cifar": 4, "imagenet": 1}


def test_shufflenet_v1_is_that_of_the_benchmark():
    """Parameters of the distillation papers' student at 100 classes; maps as their features."""
    model = build("shufflenet_v1", num_classes=100)
    assert trained_numbers(model) == 949_258
    sizes = []
    for stage in model.stages:
        getattr(model, stage).register_forward_hook(lambda module, arguments, out: sizes.append(tuple(out.shape[1:])))
    model(torch.zeros(2, 3, 32, 32))
    assert sizes == [(240, 16, 16), (480, 8, 8), (960, 4, 4)]


def test_shuffled_channels_are_dealt_out_in_turn():
    channels = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffle(channels, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize("name", [name for name in NEW if name not in ("vgg16_bn", "shufflenet_v1")])
def test_they_are_traced_and_gated(name):
    """The gates' closed forms count what the profile counts, so no layer escapes them."""
    model = build(name).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(torch.fx.symbolic_trace(model)(images), model(images))
    gated = GatedNetwork(model, images[:1])
    full = gated.full_counts()
    assert (gated.parameters(full), gated.flops(full)) == count(model, (3, 32, 32))


def test_gates_of_depthwise_networks():
    gates = {gate.name: gate for gate in GatedNetwork(build("mobilenet_v2"), torch.zeros(1, 3, 32, 32)).gates}
    inner = gates["features.2.conv.0.0"]  # 16 -> 96, depthwise, -> 24
    assert (inner.channels, inner.depthwise, inner.consumers) == (96, ("features.2.conv.1.0",), ("features.2.conv.2",))
    shared = gates["features.2.conv.2"]  # both blocks of the stage write into its 24 channels
    assert shared.producers == ("features.2.conv.2", "features.3.conv.2")
    assert len(gates) == 25  # 17 hidden widths (stem's and the first block's are one), 7 stages, the last convolution


def test_gates_of_vgg16_bn_reach_through_the_flattened_maps():
    gates = GatedNetwork(build("vgg16_bn"), torch.zeros(1, 3, 32, 32)).gates
    assert [gate.channels for gate in gates] == [64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    assert gates[-1].consumers == ("classifier.0",) and all(gate.calls == 1 for gate in gates)


def test_other_channels():
    assert build("mobilenet_v2", channels=1)(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert build("shufflenet_v2", channels=1).conv1[0].stride == (1, 1)


def test_wrong_requests():
    with pytest.raises(UserError, match=r"vgg16: images of 16 pixels .* dataset.image_size=32"):
        build("vgg16", image_size=16)
    with pytest.raises(UserError, match="only symmetric padding"):
        build("wrn_16_2", padding="tensorflow")


def test_the_perceptron_has_no_channels_to_prune():
    model = build("mlp")
    assert trained_numbers(model) == (3 * 64 + 1) * 64 + 65 * 64 + 65 * 10
    with pytest.raises(UserError, match="no channels"):
        GatedNetwork(model, torch.zeros(1, 3, 32, 32))
