"""Distances of samples against closed forms."""

import pytest
import torch

from runner.methods.generative.sample_quality import Components, frechet_distance, squared_mmd


def test_the_frechet_distance_of_gaussians_along_axes():
    torch.manual_seed(0)
    first = torch.randn(4000, 3, dtype=torch.float64)
    first = (first - first.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(first.T))).T  # exactly N(0, I)
    second = first[:, [1, 2, 0]] * torch.tensor([1.0, 3.0, 0.5]) + torch.tensor([2.0, 0.0, 0.0])
    assert frechet_distance(first, second) == pytest.approx(2**2 + (1 - 3) ** 2 + (1 - 0.5) ** 2)
    assert frechet_distance(second, first) == pytest.approx(8.25)
    assert frechet_distance(second, second) == pytest.approx(0, abs=1e-8)


def test_few_samples_of_many_dimensions_have_a_distance_too():
    torch.manual_seed(0)
    assert frechet_distance(torch.randn(5, 40).double(), torch.randn(300, 40).double()) > 0


def test_the_discrepancy_is_that_of_the_definition_and_unbiased():
    torch.manual_seed(0)
    first, second = torch.randn(7, 2).double(), torch.randn(9, 2).double() + 1
    width = torch.pdist(second).median()

    def kernel(x, y):
        return torch.exp(-(x - y).square().sum() / (2 * width**2))

    within = [
        sum(kernel(x, y) for i, x in enumerate(part) for j, y in enumerate(part) if i != j)
        / (len(part) * (len(part) - 1))
        for part in (first, second)
    ]
    between = sum(kernel(x, y) for x in first for y in second) / 63
    assert squared_mmd(first, second) == pytest.approx((within[0] + within[1] - 2 * between).item())
    same = [squared_mmd(*torch.randn(2, 40, 3).double()) for _ in range(50)]
    assert min(same) < 0 < max(same) and abs(sum(same) / 50) < 0.005


def test_components_are_those_of_largest_variance_and_as_many_as_there_are():
    torch.manual_seed(0)
    images = torch.zeros(500, 1, 2, 2)
    images[:, 0, 0, 1], images[:, 0, 1, 0] = 3 * torch.randn(500), torch.randn(500)
    images += 5
    space = Components.of(images, 50)
    assert space.directions.shape == (2, 4)  # the images vary in two pixels
    features = space.features(images)
    assert features.mean(0).abs().max() < 1e-9
    assert features.var(0).tolist() == pytest.approx(images[:, 0, [0, 1], [1, 0]].double().var(0).tolist(), rel=0.05)
    assert Components.of(images, 1).directions[0].abs().argmax() == 1
