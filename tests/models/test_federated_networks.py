"""The networks of federated learning's papers by their counts of parameters."""

import pytest
import torch

from runner.models.federated import cnn, lenet
from runner.models.mlp import perceptron


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (perceptron(10, 1, 28, (200, 200)), 199_210),  # McMahan et al. 2017, section 3
        (cnn(10, 1, 28), 1_663_370),  # the same
        (perceptron(10, 1, 28, ()), 28 * 28 * 10 + 10),
    ],
)
def test_parameters_as_printed(network, count):
    assert sum(item.numel() for item in network.parameters()) == count


def test_the_lenet_has_3200_features_and_the_layers_of_fedweit():
    network = lenet(5, 3, 32)
    kernels = [tuple(item.shape) for item in network.parameters() if item.ndim > 1]
    assert kernels == [(20, 3, 5, 5), (50, 20, 5, 5), (800, 3200), (500, 800), (5, 500)]
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


def test_local_response_normalisation_sums_nine_channels():
    norm = next(item for item in lenet(5, 3, 32).modules() if isinstance(item, torch.nn.LocalResponseNorm))
    maps = torch.ones(1, 20, 1, 1)
    inner = (1 + 0.001 / 9 * 9) ** -0.75  # of a channel with four neighbours on each side
    assert norm(maps)[0, 10, 0, 0].item() == pytest.approx(inner, rel=1e-6)


def test_the_lenet_starts_with_the_variances_of_fedweit():
    """TensorFlow's VarianceScaling: of kernels one over the inputs of a unit, of biases one over their number."""
    torch.manual_seed(0)
    layers = [layer for layer in lenet(5, 3, 32) if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    for layer, inputs in zip(layers[:-1], (3 * 25, 20 * 25, 3200, 800), strict=True):
        assert layer.weight.var().item() == pytest.approx(1 / inputs, rel=0.1)
        assert layer.weight.abs().max().item() <= 2 * inputs**-0.5 / 0.8796
        assert layer.bias.var().item() == pytest.approx(1 / len(layer.bias), rel=0.6)
    assert layers[-1].bias.count_nonzero() == 0
    assert 0.9 < layers[-1].weight.abs().max().item() / (6 / 505) ** 0.5 <= 1
