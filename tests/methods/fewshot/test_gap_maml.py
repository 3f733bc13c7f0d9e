"""The preconditioner on the numbers of the card (Kang et al. 2023, sections 3 and 8)."""

import pytest
import torch
from few_shot_networks import convolutions, filled, image_tasks, wave_tasks

from runner.methods.fewshot.gap_maml import START, GAPLearner, approximate, full, positive
from runner.methods.fewshot.gradient_learner import GradientLearner
from runner.methods.fewshot.inner_loop import over_tasks
from runner.models.few_shot import conv4, perceptron


def inverse(values: list[float]) -> torch.Tensor:
    """Factors whose ``positive`` is ``values``."""
    return torch.tensor(values, dtype=torch.float64).mul(2).expm1().log() / 2


def test_the_factors_start_at_one():
    assert positive(torch.tensor(START)).item() == pytest.approx(1.000611, abs=1e-6)


def test_worked_example():
    gradient, factors = torch.tensor([[0.0, 1.0], [3.0, 0.0]], dtype=torch.float64), inverse([0.5, 2.0])
    torch.testing.assert_close(full(gradient, factors), torch.tensor([[0, 2.0], [1.5, 0]], dtype=torch.float64))
    torch.testing.assert_close(approximate(gradient, factors), torch.tensor([[0, 0.5], [6.0, 0]], dtype=torch.float64))


@pytest.mark.parametrize(("rows", "columns"), [(4, 7), (7, 4)])
def test_singular_values_are_scaled_and_the_direction_descends(rows, columns):
    gradient = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([0.5, 3.0, 1.0, 0.2], dtype=torch.float64)
    changed = full(gradient, inverse(scale.tolist()))
    expected = (torch.linalg.svdvals(gradient) * scale).sort(descending=True).values
    torch.testing.assert_close(torch.linalg.svdvals(changed), expected)
    assert (gradient * changed).sum() > 0
    rotation = torch.linalg.qr(torch.randn(rows, rows, dtype=torch.float64))[0]
    torch.testing.assert_close(full(rotation @ gradient, inverse(scale.tolist())), rotation @ changed)
    assert (approximate(gradient, inverse(scale.tolist())) * gradient).sum() > 0


def test_the_gradient_of_a_factor_has_its_closed_form():
    """One step, K = 1: -rate * s_i * sigmoid(2 m_i) * u_i^T (dL/dW at the new weight) v_i."""
    draws = torch.Generator().manual_seed(1)
    gradient, target, weight = (torch.randn(3, 5, dtype=torch.float64, generator=draws) for _ in range(3))
    factors = torch.tensor([0.3, 0.9, -0.4], dtype=torch.float64, requires_grad=True)
    new = weight - 0.1 * full(gradient, factors)
    (found,) = torch.autograd.grad((new - target).square().sum(), factors)
    left, values, right = torch.linalg.svd(gradient, full_matrices=False)
    outer = 2 * (new - target).detach()
    expected = -0.1 * values * torch.sigmoid(2 * factors.detach()) * (left.T @ outer @ right.T).diagonal()
    torch.testing.assert_close(found, expected)


def test_factors_of_one_give_maml():
    tasks = image_tasks(2)
    plain = over_tasks(GradientLearner(convolutions(), rate=0.1, steps=3).outer, tasks, 0)["loss"]
    for kind in ("full", "approximate", "none"):
        learner = GAPLearner(convolutions(), kind, rate=0.1, steps=3).double()
        for factor in learner.factors:
            factor.data = inverse([1.0] * len(factor))
        torch.testing.assert_close(over_tasks(learner.outer, tasks, 0)["loss"], plain)


def test_which_weights_have_factors():
    images = GAPLearner(conv4(5, 3, 84, channels=128), "full", rate=0.01, steps=5)
    assert [len(factor) for factor in images.factors] == [27, 128, 128, 128]  # 411 meta-parameters
    numbers = GAPLearner(perceptron(1, 1), "full", rate=0.01, steps=5)
    assert [len(factor) for factor in numbers.factors] == [1, 40, 1]


@pytest.mark.parametrize(
    ("kind", "expected_loss", "expected"),
    [
        ("full", 1.2085928882389487, [0.007679344669705181, 0.0021755104730273164]),
        ("approximate", 1.2165626616499239, [0.01234981301740403, 0.012236654517568635]),
    ],
)
def test_loss_and_gradients_of_factors_are_those_of_the_released_code(kind, expected_loss, expected):
    """Three steps of Suhyun777/CVPR23-GAP, gradient_update_parameters, on these weights, factors and tasks."""
    learner = GAPLearner(filled(convolutions(bias=True)), kind, rate=0.1, steps=3)
    for factor in learner.factors:
        factor.data = torch.linspace(-0.5, 1.5, len(factor), dtype=torch.float64)
    loss = over_tasks(learner.outer, wave_tasks(2), 0)["loss"].mean()
    loss.backward()
    assert loss.item() == pytest.approx(expected_loss, rel=1e-9)
    assert [factor.grad.norm().item() for factor in learner.factors] == pytest.approx(expected, rel=1e-7)
