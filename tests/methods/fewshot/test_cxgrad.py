"""Scaling by context: the invariants of the card (Lee et al. 2022, section 8)."""

import pytest
import torch
from few_shot_networks import convolutions, filled, image_tasks, wave_tasks
from torch.func import grad

from runner.errors import UserError
from runner.methods.fewshot.cxgrad import CxGrad, CxGradLearner, scaled, unit
from runner.methods.fewshot.gradient_learner import GradientLearner
from runner.methods.fewshot.inner_loop import over_tasks
from runner.models.few_shot import conv4


def learner(**settings) -> CxGradLearner:
    torch.manual_seed(0)
    return CxGradLearner(convolutions(), CxGrad(rate=0.1, steps=3, **settings)).double()


def task(number: int = 0) -> list[torch.Tensor]:
    return [part[number] for part in image_tasks(3)]


def test_the_scale_of_a_convolution_leaves_outputs_and_divides_gradients():
    network, (support, targets, *_) = learner(), task()
    weights = network.start(support, targets)
    changed = {**weights, **scaled({name: unit(weights[name]) for name in network.scaled}, torch.tensor([0.5, 2.0]))}
    loss = network.support_loss(support, targets)
    assert loss(changed, 0).item() == pytest.approx(loss(weights, 0).item(), rel=1e-3)  # but for eps
    before, after = grad(loss)(weights, 0), grad(loss)(changed, 0)
    for name, factor in zip(network.scaled, (0.5, 2.0), strict=True):
        rate = weights[name].norm() / factor
        assert after[name].norm().item() == pytest.approx((rate * before[name].norm()).item(), rel=2e-2)
        assert abs((before[name] * weights[name]).sum()) < 1e-2 * before[name].norm() * weights[name].norm()


def test_factors_that_are_the_norms_give_maml():
    network, data = learner(context_rate=0.0), task()
    weights = [network.network.get_parameter(name) for name in network.scaled]
    values = iter([])

    def norms_of_now(context):
        return next(values)

    plain = GradientLearner(convolutions(), rate=0.1, steps=3, adapt_norm=False)
    norms = []
    plain.adapt(*data[:2], 3, lambda w, g, step: norms.append(torch.stack([w[n].norm() for n in network.scaled])))
    values = iter([torch.stack([weight.norm() for weight in weights]), *norms])
    network.generate = norms_of_now
    found, expected = network.outer(*data, 0)["loss"], plain.outer(*data, 0)["loss"]
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)


def dark(tasks):
    """The eps of batch normalisation counts there, which is all that a scale moves."""
    return tasks._replace(support=0.01 * tasks.support)


@pytest.mark.parametrize(
    ("settings", "differ"),
    [({"context_rate": 0.0}, False), ({"context_rate": 20.0}, True), ({"factors": "one"}, False)],
)
def test_only_the_context_tells_tasks_apart(settings, differ):
    network = learner(**settings)
    factors = over_tasks(lambda support, targets, *query: network.factors(support, targets), dark(image_tasks(3)))
    assert factors.shape == (3, 3, 2) and (factors > 0).all()
    assert bool((factors.std(0) > 1e-6).any()) == differ
    if settings.get("factors") == "one":
        assert (factors == 1).all()


def test_the_outer_gradient_reaches_the_generator_and_not_through_the_step_before_the_first():
    network, data = learner(), task()
    gradients = torch.autograd.grad(network.outer(*data, 0)["loss"], list(network.generator.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients[-2:])
    once = learner(update_context=False)
    transform_weights, _ = once.hooks(*data[:2])
    at = transform_weights(once.start(*data[:2]), 0)
    first = once.generator[0].weight
    (through_context,) = torch.autograd.grad(at[once.scaled[0]].norm(), first)
    assert torch.linalg.matrix_rank(through_context) <= 1  # the context is a constant: one outer product


def test_the_context_gradient_is_the_whole_one():
    """By the chain rule over the factors it is what autograd finds from the loss to the context."""
    network, (support, targets, *_) = learner(context_rate=1.0), task()
    weights = network.start(support, targets)
    context = torch.zeros(100, dtype=torch.float64, requires_grad=True)
    units = {name: unit(weights[name]) for name in network.scaled}
    loss = network.support_loss(0.01 * support, targets)({**weights, **scaled(units, network.generator(context))}, 0)
    (expected,) = torch.autograd.grad(loss, context)
    seen = []
    network.generate = lambda context: seen.append(context) or network.generator(context)
    network.hooks(0.01 * support, targets)[0](weights, 0)
    torch.testing.assert_close(seen[-1].detach(), -expected, rtol=1e-6, atol=1e-12)


def test_biased_convolutions_are_refused():
    with pytest.raises(UserError, match="has a bias; use model=conv4_48"):
        CxGradLearner(convolutions(bias=True), CxGrad())


def test_tasks_at_once_are_as_one_by_one():
    network, results = learner(context_rate=20.0), []
    parameters = list(network.parameters())
    for batched in (True, False):
        losses = over_tasks(network.outer, dark(image_tasks(3)), 0, batched=batched)["loss"]
        gradients = torch.autograd.grad(losses.mean(), parameters, allow_unused=True, materialize_grads=True)
        results.append([losses, *gradients])
    for at_once, one_by_one in zip(*results, strict=True):
        torch.testing.assert_close(at_once, one_by_one, rtol=1e-6, atol=1e-9)


def test_loss_and_outer_gradients_are_those_of_the_released_code():
    """shlee625/CxGrad, MAMLFewShotClassifier.forward on these weights and tasks gave these numbers (float64)."""
    network = conv4(3, 1, 8, channels=4, layers=2, bias=False, negative_slope=0.01)
    learner = filled(CxGradLearner(network, CxGrad(rate=0.1, steps=3, context_rate=20.0)))
    tasks = wave_tasks(2)
    tasks = tasks._replace(support=0.01 * tasks.support, query=0.01 * tasks.query)
    loss = over_tasks(learner.outer, tasks, 0)["loss"].mean()
    assert loss.item() == pytest.approx(1.1038412203334802, rel=1e-9)
    loss.backward()
    norms = {name: parameter.grad.norm().item() for name, parameter in learner.named_parameters()}
    expected = {
        "network.features.0.0.weight": 0.02289009845319778,
        "network.features.0.1.weight": 0.03332690333429548,
        "network.features.1.0.weight": 0.12076305794266388,
        "network.features.1.1.bias": 0.017216276149518928,
        "network.head.weight": 0.11549374272046446,
        "generator.0.weight": 0.08637958488373033,
        "generator.0.bias": 0.055734073987545436,
        "generator.2.weight": 0.8900578693720227,
        "generator.2.bias": 0.02625338066666074,
    }
    assert {name: norms[name] for name in expected} == pytest.approx(expected, rel=1e-7)
