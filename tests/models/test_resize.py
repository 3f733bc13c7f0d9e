"""Networks rebuilt from the shapes of pruned weights."""

import pytest
import torch
from torch import nn

from runner.errors import UserError
from runner.models import build_model
from runner.models.resize import resize_to, widths_of
from runner.schema import ModelSettings


def resnet20():
    return build_model(
        ModelSettings(name="resnet20"), num_classes=10, image_size=32, channels=3, small_image_stem="cifar"
    )


def cut_first_inner_width(model: nn.Module, keep: int) -> None:
    """Prune the private channels of layer1.0 by hand, independently of resize_to."""
    block = model.layer1[0]
    conv1, conv2 = nn.Conv2d(16, keep, 3, padding=1, bias=False), nn.Conv2d(keep, 16, 3, padding=1, bias=False)
    conv1.weight.data, conv2.weight.data = block.conv1.weight.data[:keep], block.conv2.weight.data[:, :keep]
    block.conv1, block.conv2, block.bn1 = conv1, conv2, nn.BatchNorm2d(keep)


def test_round_trip_gives_equal_logits_and_trains():
    pruned = resnet20()
    cut_first_inner_width(pruned, 5)
    nn.init.normal_(pruned.layer1[0].bn2.weight)
    rebuilt = resnet20()
    untouched = rebuilt.layer3[0].conv1.weight
    resize_to(rebuilt, widths_of(pruned))
    assert rebuilt.layer3[0].conv1.weight is untouched
    assert rebuilt.layer1[0].conv1.out_channels == 5 and rebuilt.layer1[0].bn1.num_features == 5
    rebuilt.load_state_dict(pruned.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(rebuilt(images), pruned(images))
    rebuilt(images).sum().backward()
    assert rebuilt.layer1[0].conv1.weight.grad.shape == (5, 16, 3, 3)


def depthwise_network(width: int, multiplier: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3),
        nn.Conv2d(width, width * multiplier, 3, groups=width),
        nn.BatchNorm2d(width * multiplier),
        nn.Conv2d(width * multiplier, width, 1, groups=2),
        nn.Flatten(),
        nn.Linear(width, 2),
    )


@pytest.mark.parametrize("multiplier", [1, 2])
def test_groups_follow_depthwise_convolutions(multiplier):
    small, large = depthwise_network(4, multiplier), depthwise_network(6, multiplier)
    large[1].weight.requires_grad_(False)
    resize_to(large, widths_of(small))
    assert (large[0].groups, large[1].groups, large[3].groups) == (1, 4, 2)
    assert not large[1].weight.requires_grad and large[0].bias.requires_grad
    large.load_state_dict(small.state_dict())
    images = torch.randn(3, 1, 5, 5)
    assert torch.equal(large(images), small(images))


def test_type_is_kept_and_another_network_refused():
    model = depthwise_network(6).double()
    resize_to(model, widths_of(depthwise_network(4)))
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float64}
    with pytest.raises(UserError, match="another network"):
        resize_to(model, widths_of(resnet20()))
    shapes = widths_of(model)
    shapes["0"][2] = 5
    with pytest.raises(UserError, match="another network"):
        resize_to(model, shapes)
