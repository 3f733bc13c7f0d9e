"""Products with the Jacobian, the two objectives, EM and predictions of linearised Laplace against dense algebra."""

import math

import pytest
import torch
from commands import runner
from torch import nn

from runner.methods.optimization.laplace import (
    Dense,
    averaged_softmax,
    dyadic_counts,
    effective_dimension,
    gibbs_probit,
    joint_log_likelihood,
    prior_scale,
    updated_precision,
)
from runner.methods.optimization.linearisation import (
    Linearisation,
    curvature_roots,
    softmax_curvature,
    weighted_squares,
)
from runner.methods.optimization.linearised_laplace import objective_gradient, rescale_layers
from runner.models.mlp import GreyPerceptron
from runner.models.shallow import lenet_small

LAM = 0.7


@pytest.fixture(scope="module")
def setting():
    """A small network with a normalisation layer in double precision, its linearisation, images and curvature."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    network(torch.randn(50, 6, dtype=torch.float64))  # moving averages that are not those of the start
    line = Linearisation(network)
    line.scale = torch.rand(line.size, dtype=torch.float64) + 0.5
    images = torch.randn(9, 2, 3, dtype=torch.float64)
    curvature = softmax_curvature(line.outputs(line.weights, images), 1e-6)
    return network, line, images, curvature


def hessian(line, images, curvature):
    jacobians = line.jacobian(images)
    return torch.einsum("nop,noq,nqr->pr", jacobians, curvature, jacobians)


def test_the_curvature_of_two_even_classes():
    found = softmax_curvature(torch.zeros(1, 2))[0]
    assert found.tolist() == [[0.25, -0.25], [-0.25, 0.25]]


def test_the_curvature_is_the_second_derivative_and_its_rows_sum_to_zero():
    logits = torch.randn(4, dtype=torch.float64)
    found = softmax_curvature(logits[None])[0]
    loss = lambda f: nn.functional.cross_entropy(f[None], torch.tensor([1]))  # noqa: E731
    assert torch.allclose(found, torch.func.hessian(loss)(logits))
    assert torch.allclose(found.sum(1), torch.zeros(4, dtype=torch.float64))
    assert torch.linalg.eigvalsh(found).min() > -1e-12


def test_both_roots_belong_together():
    curvature = softmax_curvature(torch.randn(5, 4, dtype=torch.float64), 1e-3)
    root, inverse = curvature_roots(curvature)
    assert torch.allclose(root @ root.mT, curvature)
    assert torch.allclose(curvature @ inverse, root)


def test_products_are_those_of_the_jacobian_without_normalisation_layers(setting):
    network, line, images, _ = setting
    assert line.size == 6 * 4 + 4 + 4 * 3 + 3
    jacobians = line.jacobian(images)
    outputs = network(images)
    chosen = [item for name, item in network.named_parameters() if not name.startswith("2.")]
    for row in range(3):
        gradients = torch.autograd.grad(outputs[4, row], chosen, retain_graph=True)
        expected = torch.cat([item.flatten() for item in gradients]) * line.scale
        assert torch.allclose(jacobians[4, row], expected)
    vectors = torch.randn(2, line.size, dtype=torch.float64)
    assert torch.allclose(line.products(images, vectors), torch.einsum("nop,kp->kno", jacobians, vectors))
    cotangents = torch.randn(2, 9, 3, dtype=torch.float64)
    assert torch.allclose(line.transposed(images, cotangents), torch.einsum("nop,kno->kp", jacobians, cotangents))
    unscaled = torch.einsum("nop,kno->knp", jacobians / line.scale, cotangents)
    assert torch.allclose(line.squares(images, cotangents), unscaled.square().sum((0, 1)))


def draws(line, images, curvature, count, seed=0):
    """Noise of prior and data as the method draws it, and the targets."""
    torch.manual_seed(seed)
    root, inverse = curvature_roots(curvature)
    noise = torch.randn(count, *curvature.shape[:2], dtype=torch.float64)
    prior = torch.randn(count, line.size, dtype=torch.float64) / LAM**0.5
    data = line.transposed(images, torch.einsum("nop,knp->kno", root, noise)) / LAM
    return prior, data, torch.einsum("nop,knp->kno", inverse, noise)


def test_both_objectives_have_the_same_optimum(setting):
    _, line, images, curvature = setting
    prior, data, targets = draws(line, images, curvature, 3)
    inverse = torch.linalg.inv(hessian(line, images, curvature) + LAM * torch.eye(line.size, dtype=torch.float64))
    optimum = LAM * (prior + data) @ inverse
    new = objective_gradient(line, images, curvature, optimum, prior + data, LAM)
    original = objective_gradient(line, images, curvature, optimum, prior, LAM, targets)
    for parts in (new, original):
        assert sum(parts).abs().max() < 1e-10


def test_the_optima_have_the_posteriors_covariance(setting):
    _, line, images, curvature = setting
    count = 20_000
    prior, data, _ = draws(line, images, curvature, count)
    matrix = hessian(line, images, curvature)
    inverse = torch.linalg.inv(matrix + LAM * torch.eye(line.size, dtype=torch.float64))
    optima = LAM * (prior + data) @ inverse
    assert (optima.mean(0).abs() < 5 * (inverse.diagonal() / count).sqrt()).all()
    assert (torch.cov(optima.T) - inverse).norm() < 0.05 * inverse.norm()
    gamma = (inverse @ matrix).trace().item()
    squares = weighted_squares(line.products(images, optima), curvature)
    assert effective_dimension(squares, LAM, line.size, weight_space=False) == pytest.approx(gamma, rel=0.03)
    squares = optima.square().sum(1)
    assert effective_dimension(squares, LAM, line.size, weight_space=True) == pytest.approx(gamma, rel=0.03)


def test_rescaling_the_draws_keeps_their_distribution():
    """theta0 ~ N(0, 1/lam) and d = sum / lam: lam (theta0 + d) has the covariance lam I + M at every lam."""
    torch.manual_seed(0)
    root = torch.tensor([1.5, 0.3])
    prior, data = torch.randn(50_000, 2), torch.randn(50_000, 2) * root
    for lam in (0.5, 4.0):
        found = torch.cov((lam * (prior / lam**0.5 + data / lam)).T)
        assert torch.allclose(found, torch.diag(lam + root.square()), atol=0.12)


def test_a_scalar_model():
    a, b, lam = 1.7, 0.4, 0.9
    dense = Dense(torch.tensor([[[a]]]), torch.tensor([[[b]]]))
    assert dense.effective_dimension(lam) == pytest.approx(a * a * b / (a * a * b + lam))
    assert dense.variances(torch.tensor([[[a]]]), lam).item() == pytest.approx(a * a / (a * a * b + lam))


def test_the_dense_posterior(setting):
    _, line, images, curvature = setting
    dense = Dense(line.jacobian(images), curvature)
    matrix = hessian(line, images, curvature)
    inverse = torch.linalg.inv(matrix + LAM * torch.eye(line.size, dtype=torch.float64))
    assert dense.effective_dimension(LAM) == pytest.approx((inverse @ matrix).trace().item())
    jacobians = line.jacobian(images)
    expected = torch.einsum("nop,pq,noq->no", jacobians, inverse, jacobians)
    assert torch.allclose(dense.variances(jacobians, LAM), expected)
    assert dense.variances(jacobians, 1e12).max() < 1e-9
    labels = torch.arange(9) % 3
    mode = dense.mode(labels, LAM, torch.zeros(line.size, dtype=torch.float64))
    slope = (jacobians @ mode).softmax(1) - nn.functional.one_hot(labels, 3)
    assert (line.transposed(images, slope[None])[0] + LAM * mode).abs().max() < 1e-4


def test_the_g_prior_makes_the_diagonal_one_and_undoes_any_scale(setting):
    _, line, images, curvature = setting
    jacobians = line.jacobian(images)
    variances = []
    for change in (1.0, torch.rand(line.size, dtype=torch.float64) + 0.1):
        changed = jacobians * change
        diagonal = torch.einsum("nop,noq,nqp->p", changed, curvature, changed)
        scaled = changed * prior_scale(diagonal, 1)
        found = torch.einsum("nop,noq,nqp->p", scaled, curvature, scaled)
        assert torch.allclose(found, torch.ones_like(found))
        variances.append(Dense(scaled, curvature).variances(scaled, LAM))
    assert torch.allclose(*variances)


def test_sampled_em_follows_the_exact_one():
    """The card's linear check: 60 rows, 40 columns of falling scale, noise precision 4."""
    torch.manual_seed(0)
    design = torch.randn(60, 40, dtype=torch.float64) * torch.logspace(0, math.log10(0.05), 40, dtype=torch.float64)
    target = design @ torch.randn(40, dtype=torch.float64) * 0.5 + 0.5 * torch.randn(60, dtype=torch.float64)
    matrix, count = 4 * design.T @ design, 16
    prior, data = torch.randn(count, 40).double(), torch.randn(count, 60).double() @ (2 * design)
    found = {}
    for kind in ("exact", "function", "weight"):
        lam = 1.0
        for _ in range(30):
            inverse = torch.linalg.inv(matrix + lam * torch.eye(40))
            optima = (lam**0.5 * prior + data) @ inverse
            gamma = (inverse @ matrix).trace().item()
            if kind == "function":
                gamma = effective_dimension((optima @ matrix * optima).sum(1), lam, 40, weight_space=False)
            elif kind == "weight":
                gamma = effective_dimension(optima.square().sum(1), lam, 40, weight_space=True)
            lam = updated_precision(gamma, inverse @ (4 * design.T @ target))
        found[kind] = lam
    assert found["function"] == pytest.approx(found["exact"], rel=0.2)
    assert found["weight"] == pytest.approx(found["exact"], rel=0.2)


def test_predictions():
    logits = torch.randn(5, 3)
    plain = logits.log_softmax(1)
    assert torch.allclose(gibbs_probit(logits, torch.zeros(5, 3)), plain)
    assert torch.allclose(averaged_softmax(logits, torch.zeros(4, 5, 3)), plain, atol=1e-6)
    wide = gibbs_probit(logits, torch.full((5, 3), 1e9)).exp()
    assert torch.allclose(wide, torch.full((5, 3), 1 / 3), atol=1e-3)


def test_joint_log_likelihood_of_pairs():
    """By hand: two samples, two pairs, the odd fifth input left out."""
    probabilities = torch.tensor([[0.5, 0.2, 0.9, 0.4, 0.1], [0.3, 0.6, 0.7, 0.8, 0.1]])
    counts = torch.tensor([[1, 8], [9, 2]])
    first = math.log((0.5 * 0.9**9 + 0.3 * 0.7**9) / 2)
    second = math.log((0.2**8 * 0.4**2 + 0.6**8 * 0.8**2) / 2)
    assert joint_log_likelihood(probabilities.log(), counts) == pytest.approx((first + second) / 2, rel=1e-5)
    drawn = dyadic_counts(4000)
    assert drawn.shape == (2, 4000) and (drawn.sum(0) == 10).all()
    assert sorted(drawn[0].unique().tolist()) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert drawn[0].double().mean().item() == pytest.approx(4.5, abs=0.2)


def test_the_released_network():
    network = lenet_small(num_classes=10, in_channels=1)
    assert sum(item.numel() for item in network.parameters()) == 400 + 4608 + 9216 + 2 * (16 + 32 + 32) + 330
    assert Linearisation(network).size == 400 + 4608 + 9216 + 330  # without batch normalisation
    sides = [layer(torch.zeros(1, 1, 28, 28)).shape[-1] for layer in (network[:3], network[:6], network[:9])]
    assert sides == [14, 7, 4] and network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_rescaled_layers_compute_the_same():
    torch.manual_seed(0)
    network = GreyPerceptron(num_classes=10, in_channels=3, width=20, activation="relu")
    assert sum(item.numel() for item in network.parameters()) == 1510
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        before = network(images)
        rescale_layers(network, 10.0)
        assert torch.allclose(network(images), before, atol=1e-5)
    assert Linearisation(network).size == 1510


@pytest.mark.parametrize(
    "options",
    [
        (
            "method.objective=original",
            "method.update=function",
            "method.polyak=null",
            "method.gradient_limit=1",
            "model=lenet_small",
        ),
        ("method.g_prior=false", "method.exact=true", "method.rescale=10"),
    ],
)
def test_its_settings_run(options, tmp_path):
    answer = runner("method=linearised_laplace", "scale=smoke", "hardware=cpu", *options, place=tmp_path)
    assert answer.code == 0, answer.err


def test_an_exact_posterior_of_a_large_network_is_refused(tmp_path):
    options = ("method.exact=true", "model.arguments.width=200")
    answer = runner("method=linearised_laplace", "scale=smoke", "hardware=cpu", *options, place=tmp_path)
    assert answer.code == 2 and "3000" in answer.message
