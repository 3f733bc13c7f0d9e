"""The named networks: sizes, names, options, refusals."""

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from runner.errors import UserError
from runner.models import ZOO, build_model, choose_stem, describe_model, resolve
from runner.profile import count
from runner.schema import ModelSettings


def build(name, *, image_size=32, num_classes=10, channels=3, small_image_stem="cifar", **options):
    settings = ModelSettings(name=name, **options)
    return build_model(
        settings,
        num_classes=num_classes,
        image_size=image_size,
        channels=channels,
        small_image_stem=small_image_stem,
    )


@pytest.mark.parametrize(
    ("name", "image_size", "num_classes", "params", "flops"),
    [  # EKG card, section 2.12, computed from the counting rule
        ("resnet20", 32, 10, 274_042, 41_214_592),
        ("resnet56", 32, 10, 860_026, 126_837_376),
        ("resnet18", 224, 1000, 11_699_112, 1_819_040_768),
        ("resnet34", 224, 1000, 21_814_696, 3_671_237_632),
        ("resnet50", 224, 1000, 25_610_152, 4_111_412_224),
    ],
)
def test_sizes_are_those_of_the_card(name, image_size, num_classes, params, flops):
    model = build(name, image_size=image_size, num_classes=num_classes)
    assert count(model, (3, image_size, image_size)) == (params, flops)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_names_and_shapes_are_those_of_torchvision(name):
    import torchvision

    theirs = getattr(torchvision.models, name)(weights=None)
    ours = build(name, image_size=224, num_classes=1000)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_a_fresh_block_is_its_shortcut_and_kernels_have_fan_out_variance():
    model = build("resnet50")
    assert all(block.bn3.weight.abs().max() == 0 for block in model.layer3)
    assert model.bn1.weight.min() == 1 and model.bn1.eps == 1e-5 and model.bn1.momentum == 0.1
    kernel = model.layer3[1].conv2.weight  # 256 x 256 x 3 x 3: standard deviation sqrt(2 / (256 * 9))
    assert kernel.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.05) and model.fc.bias.abs().max() == 0


def test_without_zero_init_residual_scales_are_1_and_the_classifier_is_pytorchs():
    settings = ModelSettings(name="resnet20")
    model = build_model(
        settings, num_classes=10, image_size=32, channels=3, small_image_stem="cifar", zero_init_residual=False
    )
    assert all(block.bn2.weight.min() == 1 for block in model.layer3)
    largest = model.fc.weight.abs().max().item()  # uniform up to 1 / sqrt(64)
    assert 0.11 < largest <= 0.125 and model.fc.bias.abs().max() > 0


@pytest.mark.parametrize("own, expected", [({}, 1), ({"zero_init_residual": True}, 0)])
def test_zero_init_residual_reaches_a_function_that_takes_it(own, expected):
    settings = ModelSettings(
        name="narrow",
        target="runner.models.resnet:cifar_resnet",
        arguments={"depth": 8, "width": 4, "padding": "symmetric", **own},
    )
    model = build_model(
        settings, num_classes=10, image_size=32, channels=3, small_image_stem="cifar", zero_init_residual=False
    )
    assert all((block.bn2.weight == expected).all() for block in model.layer3)


def test_tensorflow_padding_moves_the_window_of_strided_convolutions_only():
    symmetric = build("resnet20", padding="symmetric").eval()
    tensorflow = build("resnet20", padding="tensorflow").eval()
    tensorflow.load_state_dict(symmetric.state_dict())
    for model in (symmetric, tensorflow):
        for block in [*model.layer1, *model.layer2, *model.layer3]:
            nn.init.ones_(block.bn2.weight)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(symmetric(images), tensorflow(images), atol=1e-3)
        # One strided convolution by hand: the output at (i, j) sees rows 2i..2i+2, not 2i-1..2i+1.
        convolution, x = tensorflow.layer2[0].conv1, torch.randn(1, 16, 8, 8)
        by_hand = F.conv2d(x[..., 2:5, 4:7], convolution.weight)[0, :, 0, 0]
        assert torch.allclose(convolution(F.pad(x, (0, 1, 0, 1)))[0, :, 1, 2], by_hand, atol=1e-5)
    assert tensorflow.padding == "tensorflow" and tensorflow.layer2[0].pad_right_bottom
    strided = {n for n, m in tensorflow.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)}
    assert strided == {"layer2.0.conv1", "layer3.0.conv1", "layer2.0.downsample.0", "layer3.0.downsample.0"}
    assert tensorflow.layer2[1].conv1.padding == (1, 1) and tensorflow.layer2[0].conv1.padding == (0, 0)


@pytest.mark.parametrize(
    ("name", "padding"), [("resnet20", "tensorflow"), ("resnet18", "symmetric"), ("resnet50", "tensorflow")]
)
def test_symbolic_trace_computes_the_same(name, padding):
    model = build(name, padding=padding, small_image_stem="imagenet").eval()
    traced = torch.fx.symbolic_trace(model)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(traced(images), model(images))


@pytest.mark.parametrize(
    ("name", "image_size", "small_image_stem", "stem"),
    [
        ("resnet50", 224, "cifar", "imagenet"),
        ("resnet50", 64, "cifar", "imagenet"),
        ("resnet50", 32, "cifar", "cifar"),
        ("resnet50", 32, "imagenet", "imagenet"),
        ("resnet20", 224, "imagenet", "cifar"),
    ],
)
def test_stem_follows_image_size(name, image_size, small_image_stem, stem):
    assert choose_stem(name, image_size, small_image_stem) == stem
    settings = ModelSettings(name=name)
    line = describe_model(settings, image_size=image_size, small_image_stem=small_image_stem)
    assert {"imagenet": "ImageNet stem", "cifar": "CIFAR stem"}[stem] in line
    model = build(name, image_size=image_size, small_image_stem=small_image_stem, channels=1)
    assert model.stem == stem and model.conv1.stride == ((2, 2) if stem == "imagenet" else (1, 1))


def test_command_line_stem_wins():
    assert build("resnet18", image_size=224, stem="cifar").conv1.kernel_size == (3, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "resnt50"}, "resnet50"),
        ({"name": "resnet20", "stem": "imagenet"}, "only cifar"),
        ({"name": "resnet20", "padding": "tensorflow", "image_size": 30}, "multiple of 4"),
        ({"name": "resnet20", "arguments": {"depth": 3}}, "takes none"),
        ({"name": "mine", "target": "collections"}, "package.module:function"),
        ({"name": "mine", "target": "no_such_package_here:net"}, "cannot be imported"),
        ({"name": "mine", "target": "torch.nn:Linaer"}, "Linear"),
        ({"name": "mine", "target": "torch.nn:Linear"}, "in_features"),
        ({"name": "mine", "target": "argparse:Namespace"}, "not a torch.nn.Module"),
        ({"name": "mine", "target": "torch.nn:Identity", "stem": "cifar"}, "model.arguments"),
        ({"name": "resnet20", "weights": "/no/such/file.safetensors"}, "no such file"),
    ],
)
def test_wrong_requests_say_what_to_do(options, words):
    with pytest.raises(UserError, match=words):
        build(**options)


def test_foreign_network_is_called_with_classes_channels_and_arguments():
    model = build("mine", target="torch.nn:Identity", arguments={"anything": 3})
    assert isinstance(model, nn.Identity)


def test_every_zoo_network_has_a_config_with_every_field():
    from dataclasses import fields
    from pathlib import Path

    import runner.conf

    folder = Path(runner.conf.__file__).parent / "model"
    configs = {path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml")}
    assert {name for name, config in configs.items() if config["target"] is None} - {"none"} == ZOO.keys()
    for name, config in configs.items():
        assert list(config) == [field.name for field in fields(ModelSettings)]
        assert name == "none" or resolve(ModelSettings(**config), image_size=32, small_image_stem="cifar").name == name
