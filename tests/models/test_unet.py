"""The U-Net that predicts noise: sizes, names, time, refusals."""

import pytest
import torch

from runner.errors import UserError
from runner.models import build_model
from runner.models.unet import embed_time
from runner.registry import choices, read_yaml, search_path
from runner.schema import ModelSettings


def build(name, image_size, channels=3):
    section = read_yaml(choices("model", search_path())[name])
    return build_model(
        ModelSettings(**section), num_classes=10, image_size=image_size, channels=channels, small_image_stem="cifar"
    )


def test_the_network_for_cifar_has_the_published_size_and_the_released_names():
    with torch.device("meta"):
        network = build("unet", 32)
    assert sum(weight.numel() for weight in network.parameters()) == 35_746_307  # 35.7 million, Ho et al., appendix B
    shapes = {name: tuple(weight.shape) for name, weight in network.named_parameters()}
    assert shapes["temb.dense.1.weight"] == (512, 512)
    assert shapes["down.1.attn.1.proj_out.weight"] == (256, 256, 1, 1)
    assert shapes["down.2.downsample.conv.weight"] == (256, 256, 3, 3)
    assert shapes["up.0.block.0.nin_shortcut.weight"] == (128, 384, 1, 1)
    assert shapes["up.1.block.2.conv1.weight"] == (256, 384, 3, 3)
    assert "down.0.attn.0.q.weight" not in shapes and "down.3.downsample.conv.weight" not in shapes


@pytest.mark.parametrize(("size", "channels"), [(8, 3), (14, 1)])
def test_noise_has_the_shape_of_the_image_and_depends_on_time(size, channels):
    network = build("unet_small", size, channels).eval()
    x = torch.randn(2, channels, size, size)
    with torch.no_grad():
        early, late = network(x, torch.tensor([0.0, 0.0])), network(x, torch.tensor([900.0, 0.0]))
    assert early.shape == x.shape
    assert torch.allclose(early[1], late[1], atol=1e-6) and not torch.allclose(early[0], late[0], atol=1e-4)


def test_time_is_embedded_by_sines_then_cosines():
    found = embed_time(torch.tensor([0.5]), 8)
    angles = [0.5 * 10_000 ** (-place / 3) for place in range(4)]
    assert found[0, :4].tolist() == pytest.approx(torch.tensor(angles).sin().tolist())
    assert found[0, 4:].tolist() == pytest.approx(torch.tensor(angles).cos().tolist())


def test_images_that_do_not_halve_are_refused():
    with pytest.raises(UserError, match="multiple of 2"):
        build("unet_small", 9)(torch.randn(1, 3, 9, 9), torch.zeros(1))
