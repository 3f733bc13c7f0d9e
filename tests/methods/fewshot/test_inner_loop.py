"""The inner loop against closed forms and torch.autograd, tasks at once against one by one."""

import pytest
import torch
from few_shot_networks import convolutions, filled, image_tasks, perceptron_tasks, wave_tasks
from torch.nn import functional as F

from runner.methods.fewshot.gap_maml import GAPLearner
from runner.methods.fewshot.gradient_learner import GradientLearner
from runner.methods.fewshot.inner_loop import adapt, head_names, norm_names, over_tasks, use_batch_statistics
from runner.methods.fewshot.maml import MAML, MAMLLearner, multi_step_weights
from runner.methods.fewshot.meta_sgd import MetaSGDLearner
from runner.models.few_shot import conv4, perceptron


def quadratic(weights, step):
    """Half of 3 (w - 2)^2: a step of rate a leaves (1 - 3a) of the distance to 2."""
    return 1.5 * (weights["w"] - 2).square().sum()


def test_steps_on_a_quadratic_loss_have_the_closed_form():
    start = torch.tensor([5.0], dtype=torch.float64, requires_grad=True)
    end = adapt(quadratic, {"w": start}, steps=3, rate=0.1)["w"]
    assert end.item() == pytest.approx(2 + 0.7**3 * 3)
    (second_order,) = torch.autograd.grad(end.sum(), start)
    assert second_order.item() == pytest.approx(0.7**3)


def test_the_first_order_takes_inner_gradients_as_constants():
    start = torch.tensor([5.0], dtype=torch.float64, requires_grad=True)
    end = adapt(quadratic, {"w": start}, steps=3, rate=0.1, first_order=True)["w"]
    assert end.item() == pytest.approx(2 + 0.7**3 * 3)
    (first_order,) = torch.autograd.grad(end.sum(), start)
    assert first_order.item() == 1


def test_hooks_transform_weights_before_and_gradients_after():
    seen = []

    def halved(weights, step):
        return {"w": weights["w"] / 2}

    def doubled(gradients, step):
        return {"w": 2 * gradients["w"]}

    def after_step(weights, gradients, step):
        seen.append((step, weights["w"].item(), gradients["w"].item()))

    adapt(
        quadratic,
        {"w": torch.tensor([8.0])},
        steps=1,
        rate=None,
        transform_weights=halved,
        transform_gradients=doubled,
        after_step=after_step,
    )
    assert seen == [(0, 4.0 - 2 * 6.0, 6.0)]


def by_autograd(network, task, steps, rate, names):
    """The same with torch.autograd.grad and nothing of torch.func."""
    weights = {name: network.get_parameter(name) for name in names}
    support, targets, query, query_targets = task
    for _ in range(steps):
        loss = F.cross_entropy(torch.func.functional_call(network, weights, (support,)), targets)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {name: w - rate * g for (name, w), g in zip(weights.items(), gradients, strict=True)}
    loss = F.cross_entropy(torch.func.functional_call(network, weights, (query,)), query_targets)
    return loss, torch.autograd.grad(loss, list(network.parameters()))


def test_loss_and_meta_gradient_are_those_of_autograd():
    network, tasks = convolutions(), image_tasks(1)
    learner = GradientLearner(network, rate=0.1, steps=3)
    task = [part[0] for part in tasks]
    loss = learner.outer(*task, 0)["loss"]
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    expected, expected_gradients = by_autograd(network, task, 3, 0.1, learner.adapted_names)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    for found, right in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-8, atol=1e-10)


LEARNERS = {
    "maml": lambda: GradientLearner(convolutions(), rate=0.1, steps=2),
    "first order": lambda: GradientLearner(convolutions(), rate=0.1, steps=2, first_order=True),
    "maml++": lambda: MAMLLearner(
        convolutions(), MAML(rate=0.1, steps=2, multi_step_epochs=4, per_step_norm=True, learned_rates=True)
    ),
    "meta-sgd": lambda: MetaSGDLearner(convolutions(), 0.1, steps=2),
    "gap": lambda: GAPLearner(convolutions(), "full", rate=0.1, steps=2),
    "approximate gap": lambda: GAPLearner(convolutions(), "approximate", rate=0.1, steps=2),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_tasks_at_once_are_as_one_by_one(name):
    learner = LEARNERS[name]().double()
    parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    tasks = image_tasks(3)
    results = []
    for batched in (True, False):
        values = over_tasks(learner.outer, tasks, 1, batched=batched)
        gradients = torch.autograd.grad(values["loss"].mean(), parameters, allow_unused=True, materialize_grads=True)
        predictions = over_tasks(lambda s, t, q, _: learner.predict(s, t, q), tasks, batched=batched)
        results.append([values["loss"], predictions, *gradients])
    for at_once, one_by_one in zip(*results, strict=True):
        torch.testing.assert_close(at_once, one_by_one, rtol=1e-7, atol=1e-9)


def test_tasks_of_a_list_are_stacked():
    tasks = [type(image_tasks(1))(*(part[0] for part in image_tasks(1, seed=seed))) for seed in (1, 2)]
    learner = GradientLearner(convolutions(), rate=0.1, steps=1)
    assert over_tasks(learner.outer, tasks, 0)["loss"].shape == (2,)


def test_regression_tasks_have_the_squared_error():
    learner = GradientLearner(perceptron(1, 1).double(), rate=0.01, steps=2)
    found = over_tasks(learner.outer, perceptron_tasks(3), 0)
    assert found.keys() == {"loss"} and found["loss"].shape == (3,)


def test_parts_of_a_network():
    network = convolutions()
    names = {name for name, _ in network.named_parameters()}
    assert head_names(network) == {"head.weight", "head.bias"}
    norms = norm_names(network)
    assert norms == {name for name in names if name.split(".")[2:3] == ["1"]}
    for part, adapt_norm, expected in (
        ("all", True, names),
        ("all", False, names - norms),
        ("head", True, {"head.weight", "head.bias"}),
        ("body", False, names - norms - {"head.weight", "head.bias"}),
    ):
        learner = GradientLearner(network, rate=0.1, steps=1, part=part, adapt_norm=adapt_norm)
        assert set(learner.adapted_names) == expected


def test_batch_statistics_serve_in_the_test_too():
    network = use_batch_statistics(torch.nn.Sequential(torch.nn.BatchNorm1d(3))).eval()
    inputs = 5 + 2 * torch.randn(50, 3)
    assert network(inputs).mean(0).abs().max() < 1e-5
    assert not list(network.buffers())


@pytest.mark.parametrize(
    ("epoch", "others", "last"), [(0, 0.2, 0.2), (5, 0.1333, 0.4667), (14, 0.0133, 0.9467), (20, 0.006, 0.976)]
)
def test_multi_step_weights(epoch, others, last):
    """MAML++ with 5 steps and 15 epochs."""
    weights = multi_step_weights(epoch, 5, 15)
    assert weights == pytest.approx([others] * 4 + [last], abs=5e-5)
    assert sum(weights) == pytest.approx(1)


def test_maml_plus_plus_learns_scales_and_rates_of_every_step():
    settings = MAML(rate=0.1, steps=3, per_step_norm=True, learned_rates=True)
    learner = MAMLLearner(convolutions(), settings).double()
    assert [tuple(stack.shape) for stack in learner.norms] == [(3, 4)] * 4
    assert all(rate.tolist() == pytest.approx([0.1] * 3) for rate in learner.rates)
    assert not norm_names(learner.network) & set(learner.adapted_names)
    task = [part[0] for part in image_tasks(1)]
    plain = GradientLearner(convolutions(), rate=0.1, steps=3, adapt_norm=False)
    found = learner.outer(*task, 0)["loss"]
    assert found.item() == pytest.approx(plain.outer(*task, 0)["loss"].item(), abs=1e-6)  # as it starts, it is MAML
    found.backward()
    assert all(stack.grad.abs().sum(1).min() > 0 for stack in learner.norms), "a step's scales are not used"
    assert all(rate.grad.abs().min() > 0 for rate in learner.rates)


def test_maml_plus_plus_has_the_loss_and_outer_gradients_of_the_released_code():
    """HowToTrainYourMAMLPytorch, MAMLFewShotClassifier.forward at epoch 5 of 15 gave these numbers (float64)."""
    settings = MAML(rate=0.1, steps=3, multi_step_epochs=15, per_step_norm=True, learned_rates=True)
    network = conv4(3, 1, 8, channels=4, layers=2, negative_slope=0.01)
    learner = filled(MAMLLearner(network, settings))
    for rate in learner.rates:
        rate.data = 0.1 + 0.1 * rate.data
    loss = over_tasks(learner.outer, wave_tasks(2), 5)["loss"].mean()
    loss.backward()
    assert loss.item() == pytest.approx(1.1568446899584153, rel=1e-9)
    norms = {name: parameter.grad.norm().item() for name, parameter in learner.named_parameters() if "rates" in name}
    norms |= {"stack": learner.norms[1].grad.norm().item(), "head": network.head.weight.grad.norm().item()}
    expected = {
        "rates.0": 0.05375170390422167,
        "rates.2": 0.05882278332459775,
        "rates.4": 0.13792976578026245,
        "rates.5": 0.037212972229295434,
        "stack": 0.13356660989135252,
        "head": 0.1755644185590043,
    }
    assert {name: norms[name] for name in expected} == pytest.approx(expected, rel=1e-7)
