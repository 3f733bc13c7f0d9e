"""The meta-optimizer on the card's identities and on closed forms (Arnold et al. 2021)."""

import pytest
import torch
from few_shot_networks import WAYS, convolutions, filled, image_tasks, wave, wave_tasks
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from runner.methods.fewshot.anil import ANIL, HeadLearner
from runner.methods.fewshot.gradient_learner import GradientLearner
from runner.methods.fewshot.inner_loop import over_tasks
from runner.methods.fewshot.kfo import KFO, KFOHead, KFOLearner, MetaOptimizer, as_matrices, kronecker_linear
from runner.models.few_shot import conv4
from runner.models.shallow import linear, shallow


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moved(learner: torch.nn.Module) -> torch.nn.Module:
    """The learner with factors near, not at, the identity."""
    for number, factor in enumerate(learner.optimizer.factors):
        factor.data += 0.2 * draw(*factor.shape, seed=number)
    return learner


def test_it_is_the_kronecker_product_on_stacked_columns():
    left, right, values = draw(3, 3), draw(2, 2, seed=1), draw(3, 2, seed=2)
    expected = torch.kron(right.T.contiguous(), left) @ values.T.flatten()
    assert (kronecker_linear(values, left, right).T.flatten() - expected).abs().max() < 1e-12
    bias = draw(3, 2, seed=3)
    torch.testing.assert_close(kronecker_linear(values, left, right, bias), left @ values @ right + bias)


def test_squared_factors_never_ascend():
    for seed in range(20):
        gradient = draw(4, 3, seed=seed)
        update = kronecker_linear(gradient, draw(4, 4, seed=100), draw(3, 3, seed=101), positive=True)
        assert (gradient * update).sum() > 0


def test_sizes_of_the_factors():
    """A convolution has C_in^2 + (k k)^2 numbers whatever its outputs are, a vector n^2 + 1."""
    weights = {"convolution": torch.zeros(7, 5, 3, 3), "head": torch.zeros(4, 6), "bias": torch.zeros(4)}
    found = MetaOptimizer(weights, KFO())
    assert [tuple(factor.shape) for factor in found.factors] == [(5, 5), (9, 9), (4, 4), (6, 6), (4, 4), (1, 1)]
    gradients = {name: torch.randn_like(weight) for name, weight in weights.items()}
    updates = found(gradients, list(found.factors))
    assert all(torch.equal(updates[name], gradient) for name, gradient in gradients.items())
    deep = MetaOptimizer(weights, KFO(layers=3, bias=True))
    assert len(deep.factors) == 3 * 3 * 3
    updates = deep(gradients, list(deep.factors))
    expected = torch.tanh(torch.tanh(gradients["convolution"]))  # identities, with two activations between
    torch.testing.assert_close(updates["convolution"], expected)


@pytest.mark.parametrize(("steps", "same"), [(1, True), (2, False)])
def test_identities_give_maml_until_the_factors_adapt(steps, same):
    tasks = image_tasks(2)
    plain = over_tasks(GradientLearner(convolutions(), rate=0.1, steps=steps).outer, tasks, 0)["loss"]
    fixed = KFOLearner(convolutions(), KFO(rate=0.1, steps=steps, adapt_factors=False))
    torch.testing.assert_close(over_tasks(fixed.outer, tasks, 0)["loss"], plain)
    adapting = over_tasks(KFOLearner(convolutions(), KFO(rate=0.1, steps=steps)).outer, tasks, 0)["loss"]
    assert torch.allclose(adapting, plain) == same


def test_identities_give_anil_on_the_head():
    tasks = image_tasks(2)
    plain = over_tasks(HeadLearner(convolutions(), ANIL(rate=0.1, steps=3), WAYS).outer, tasks, 0)["loss"]
    settings = KFO(rate=0.1, steps=3, part="head", adapt_factors=False)
    torch.testing.assert_close(over_tasks(KFOHead(convolutions(), settings, WAYS).outer, tasks, 0)["loss"], plain)


def test_the_first_slope_of_the_factors_has_its_closed_form():
    """On loss(W) = |W - T|^2 / 2 with squared identities: d loss_1 / dL = -rate (H G^T + G H^T), H = grad loss_1, and
    R alike with transposes; the first step leaves the factors as they are."""
    rate, weight, target = 0.1, draw(3, 2), draw(3, 2, seed=1)
    optimizer = MetaOptimizer({"weight": weight}, KFO(rate=rate))
    updates = optimizer.for_task()
    first = weight - target
    assert torch.equal(updates({"weight": first}, 0)["weight"], first)
    second = first - rate * first
    left = torch.eye(3, dtype=torch.float64) + rate * rate * (second @ first.T + first @ second.T)
    right = torch.eye(2, dtype=torch.float64) + rate * rate * (first.T @ second + second.T @ first)
    expected = left.T @ left @ second @ right.T @ right
    torch.testing.assert_close(updates({"weight": second}, 1)["weight"], expected)


def by_autograd(learner: KFOLearner, settings: KFO, task) -> torch.Tensor:
    """The query loss with the slopes of the factors taken from the support loss itself, as the released code does."""
    support, support_targets, query, query_targets = task
    weights = {name: learner.network.get_parameter(name) for name in learner.adapted_names}
    factors = [factor.clone() for factor in learner.optimizer.factors]
    for step in range(settings.steps):
        loss = cross_entropy(functional_call(learner.network, weights, (support,)), support_targets)
        if step:
            slopes = torch.autograd.grad(loss, factors, create_graph=True)
            factors = [factor - settings.rate * slope for factor, slope in zip(factors, slopes, strict=True)]
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        updates = learner.optimizer(dict(zip(weights, gradients, strict=True)), factors)
        weights = {name: weight - settings.rate * updates[name] for name, weight in weights.items()}
    return cross_entropy(functional_call(learner.network, weights, (query,)), query_targets)


@pytest.mark.parametrize("more", [{}, {"positive": False}, {"layers": 2, "bias": True}], ids=str)
def test_inner_steps_and_outer_gradients_are_those_of_autograd(more):
    settings = KFO(rate=0.2, steps=3, **more)
    learner, tasks = moved(KFOLearner(convolutions(bias=True), settings)), image_tasks(2)
    names = [name for name, _ in learner.named_parameters()]
    loss = over_tasks(learner.outer, tasks, 0)["loss"].mean()
    found = torch.autograd.grad(loss, list(learner.parameters()))
    reference = torch.stack([by_autograd(learner, settings, task) for task in zip(*tasks, strict=True)]).mean()
    torch.testing.assert_close(loss, reference)
    for name, one, other in zip(names, found, torch.autograd.grad(reference, list(learner.parameters())), strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("part", ["all", "head"])
def test_tasks_together_are_tasks_one_by_one_and_leave_the_factors_alone(part):
    settings, tasks = KFO(rate=0.2, steps=3, part=part), image_tasks(3)
    learner = moved(KFOLearner(convolutions(), settings) if part == "all" else KFOHead(convolutions(), settings, WAYS))
    before = [factor.detach().clone() for factor in learner.optimizer.factors]
    together = over_tasks(learner.outer, tasks, 0)["loss"]
    torch.testing.assert_close(together, over_tasks(learner.outer, tasks, 0, batched=False)["loss"])
    assert all(torch.equal(one, other) for one, other in zip(before, learner.optimizer.factors, strict=True))


def test_the_factors_take_no_part_in_a_forward_pass():
    """To deploy an adapted network its weights are enough."""
    learner = KFOLearner(convolutions(), KFO())
    images = image_tasks(1).query[0]
    before = learner.network(images)
    assert torch.equal(moved(learner).network(images), before)
    assert not [name for name, _ in learner.network.named_parameters() if "optimizer" in name]


def test_the_shallow_networks_have_the_released_sizes():
    mean = shallow(5, 3, 32, channels=32, layers=2)
    assert mean(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert mean.head.weight.shape == (5, 32)
    assert mean.features[1](mean.features[0](torch.rand(2, 3, 32, 32))).shape == (2, 32, 32, 32)  # no place is lost
    assert shallow(5, 3, 84, channels=64, layers=2, pool=4).head.weight.shape == (5, 25 * 64)  # 84 -> 21 -> 5
    assert as_matrices(conv4(5, 3, 28).features[1][0].weight).shape == (64, 64, 9)


def test_a_product_of_linear_layers_is_linear():
    network = linear(2, 10, widths=(32, 32)).double()
    one, other = draw(4, 10), draw(4, 10, seed=1)
    torch.testing.assert_close(network((one + other) / 2), (network(one) + network(other)) / 2)
    assert sum(weight.numel() for weight in linear(2, 10).parameters()) == 22


def test_loss_and_outer_gradients_are_those_of_the_released_code():
    """fast_adapt of Sha-Lab/kfo with learn2learn's blocks gave these numbers on these weights, factors and tasks."""
    learner = KFOLearner(filled(shallow(3, 1, 8, channels=4, layers=2)), KFO(rate=0.1, steps=3))
    for number, factor in enumerate(learner.optimizer.factors):
        factor.data = torch.eye(len(factor), dtype=torch.float64) + 0.1 * wave(*factor.shape, start=number)
    loss = over_tasks(learner.outer, wave_tasks(2), 0)["loss"].mean()
    loss.backward()
    assert loss.item() == pytest.approx(1.1372999369791341, rel=1e-9)
    found = [learner.network.head.weight, *learner.optimizer.factors[-6:]]
    expected = [
        0.06896401692026993,
        0.000630847437866829,
        0.0006499686980054951,
        0.005313515566039792,
        0.005427146181955206,
        0.01822591833354082,
        0.016173856070304932,
    ]
    assert [weight.grad.norm().item() for weight in found] == pytest.approx(expected, rel=1e-7)
