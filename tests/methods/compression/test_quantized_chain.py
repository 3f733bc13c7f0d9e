"""A quantized network that another method trains on is saved as what it is."""

from dataclasses import asdict, replace
from types import SimpleNamespace

import torch

from runner.context import Context
from runner.methods.compression.quantized_network import Widths, quantized_form
from runner.models import build_model
from runner.product import load
from runner.schema import ModelSettings

SIZES = {"num_classes": 10, "image_size": 8, "channels": 1, "small_image_stem": "cifar"}


def saved(network, folder, settings, *arguments, **rebuild):
    """``network`` as the product of a run with these model settings."""
    numbers = SimpleNamespace(mean=torch.zeros(1), std=torch.ones(1))
    ctx = SimpleNamespace(
        _writes=True,
        settings=SimpleNamespace(model=settings),
        data=SimpleNamespace(
            num_classes=10, image_size=8, channels=1, normalisation=numbers, class_names=["0"], display_name="digits"
        ),
        scale=SimpleNamespace(small_image_stem="cifar", export_program=False),
        device="cpu",
        _input_shape=lambda: (1, 8, 8),
        artifact=lambda name: folder / name,
    )
    folder.mkdir()
    Context.save_model(ctx, network, *arguments, **rebuild)
    return folder


def test_a_quantized_network_that_was_trained_on_can_be_loaded(tmp_path):
    settings = ModelSettings(name="resnet8")
    widths = Widths(weight_bits=4, activation_bits=4, quantize_first=False, quantize_last=False)
    graph = quantized_form(build_model(settings, **SIZES), widths)[0]
    rebuild = "runner.methods.compression.quantized_network:rebuilt"
    first = saved(graph, tmp_path / "first", settings, {"widths": asdict(widths)}, rebuild=rebuild)
    settings = replace(settings, weights=str(first))
    second = saved(build_model(settings, **SIZES), tmp_path / "second", settings)
    expected, found = graph.state_dict(), load(second).state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
