"""Masked and really sliced channels agree on the networks of the zoo whose graphs are unlike a ResNet's."""

import pytest
import torch
from torch import nn

from runner.methods.compression.executor import MaskedExecutor, SlicedExecutor
from runner.methods.compression.gates import GatedNetwork
from runner.models import build_model
from runner.schema import ModelSettings


@pytest.mark.parametrize("name", ["wrn_16_1", "mobilenet_v2", "shufflenet_v2", "vgg8"])
def test_masked_sliced_and_resumed_networks_agree(name):
    """Pre-activation, depthwise convolutions, split and shuffled channels, a plain stack."""
    torch.manual_seed(0)
    model = build_model(
        ModelSettings(name=name), num_classes=10, image_size=32, channels=3, small_image_stem="cifar"
    ).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    gated = GatedNetwork(model, images[:1])
    half = [torch.arange(0, gate.channels, 2) for gate in gated.gates]
    sliced = SlicedExecutor(gated)
    expected = sliced.logits(images, half)
    assert expected.std() > 0.01
    assert torch.allclose(MaskedExecutor(gated).logits(images, half), expected, rtol=0, atol=1e-10)

    full = [torch.arange(gate.channels) for gate in gated.gates]
    _, stored = sliced.forward(images, sliced.weights(full), sliced.storable(len(images), 1 << 30))
    assert all(isinstance(value, torch.Tensor) for value in stored.values())
    assert all(hasattr(cut.node.meta["tensor_meta"], "shape") for cut in sliced.cuts)
    for index in {0, len(full) // 2, len(full) - 1}:
        kept = [half[i] if i == index else channels for i, channels in enumerate(full)]
        found, _ = sliced.candidate_logits(index, sliced.weights(kept), stored)
        assert torch.allclose(found, sliced.logits(images, kept), rtol=0, atol=1e-10)
