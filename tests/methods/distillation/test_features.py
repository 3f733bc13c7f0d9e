"""What is read at the ends of stages, for every network of the zoo."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from runner.errors import UserError
from runner.methods.distillation.features import Reader, align, pool_to_smaller, stage_norms
from runner.models import ZOO, build_model
from runner.schema import ModelSettings


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = build_model(ModelSettings(name=name), num_classes=10, image_size=32, channels=3, small_image_stem="cifar")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that what comes before an activation is negative somewhere
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


@pytest.mark.parametrize("name", sorted(set(ZOO) - {"mlp"}))
def test_stages_of_the_zoo(name):
    network, images = build(name), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = network(images)
        output, activated, before = (Reader(network, at)(images) for at in ("output", "activated", "preactivation"))
        with_stem = Reader(network, "output", stem=True)(images)
    assert all(torch.equal(found.logits, logits) for found in (output, activated, before, with_stem))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert len(with_stem.maps) == len(output.maps) + 1 == len(before.maps) + 1 in (3, 4, 5)
    assert torch.equal(output.embedding, Reader(network)(images).embedding) and output.embedding.ndim == 2
    if not name.startswith("mobilenet"):  # whose stages end without an activation
        for after, earlier in zip(activated.maps, before.maps, strict=True):
            assert earlier.min() < 0
            assert torch.allclose(after, F.relu(earlier), atol=1e-6)
    if not name.startswith(("wrn", "shufflenet_v2")):
        assert all(torch.equal(a, b) for a, b in zip(output.maps, activated.maps, strict=True))
    if name != "shufflenet_v2":
        assert [norm.num_features for norm in stage_norms(network)] == [maps.shape[1] for maps in before.maps]


def test_widths_and_sizes_are_those_of_the_benchmark():
    """Tian et al. 2020: what RepDistiller's networks return for 32x32 images."""
    expected = {
        "wrn_40_2": [(16, 32), (32, 32), (64, 16), (128, 8)],
        "resnet8x4": [(32, 32), (64, 32), (128, 16), (256, 8)],
        "resnet50": [(64, 32), (256, 32), (512, 16), (1024, 8), (2048, 4)],
        "vgg8": [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)],
    }
    for name, sizes in expected.items():
        maps = Reader(build(name), "output", stem=True)(torch.zeros(1, 3, 32, 32)).maps
        assert [(found.shape[1], found.shape[2]) for found in maps] == sizes


@pytest.mark.parametrize("at", ["output", "preactivation"])
@pytest.mark.parametrize("name", ["resnet8", "wrn_10_4", "vgg8"])
def test_gradients_flow_back_from_maps(name, at):
    network = build(name).train()
    maps = Reader(network, at)(torch.randn(2, 3, 32, 32)).maps
    sum(found.square().sum() for found in maps).backward()
    first = next(network.parameters())
    assert first.grad is not None and first.grad.abs().sum() > 0


class Own(nn.Module):
    stages = ("first", "second")

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.classifier = nn.Linear(5, 10)

    def forward(self, images):
        return self.classifier(self.second(self.first(images)).mean((2, 3)))


def test_a_network_of_the_user_names_its_stages():
    maps = Reader(Own(), "output")(torch.zeros(1, 3, 8, 8)).maps
    assert [found.shape[1] for found in maps] == [4, 5]
    Own.stages, kept = None, Own.stages
    with pytest.raises(UserError, match="attribute `stages`"):
        Reader(Own(), "output")
    Own.stages = kept


def test_lists_are_aligned_from_the_last_stage_and_maps_pooled_to_the_smaller():
    maps = [torch.full((1, 1, side, side), float(side)) for side in (8, 4, 2)]
    first, second = align(maps, maps[:2])
    assert [item.shape[2] for item in first] == [4, 2] and [item.shape[2] for item in second] == [8, 4]
    s, t = pool_to_smaller(maps[0], maps[2])
    assert s.shape == t.shape == (1, 1, 2, 2)
