"""Meta-dropout's network, noise and gradients, against the card's numbers."""

import pytest
import torch
from torch.func import functional_call, grad

from runner.datasets.episodes import Tasks
from runner.methods.fewshot.inner_loop import BatchStatisticsNorm, over_tasks, task_loss
from runner.methods.fewshot.meta_dropout import MetaDropout, MetaDropoutLearner, factor
from runner.models.few_shot import conv4


def learner(noise="learned", **settings) -> MetaDropoutLearner:
    torch.manual_seed(0)
    network = conv4(3, 1, 16, channels=4)
    return MetaDropoutLearner(network, MetaDropout(noise=noise, steps=2, **settings))


def task(count: int | None = None) -> Tasks:
    generator = torch.Generator().manual_seed(1)
    lead = () if count is None else (count,)
    targets = torch.arange(3).repeat_interleave(2).expand(*lead, 6)
    images = [torch.rand(*lead, 6, 1, 16, 16, generator=generator) for _ in range(2)]
    return Tasks(images[0], targets, images[1], targets)


def test_the_factor_without_and_with_noise():
    """softplus(0) = 0.6931; its mean under N(0, 1) is 0.806, by quadrature."""
    zeros = torch.zeros(400_000)
    assert float(factor(zeros[0], False)) == pytest.approx(0.6931, abs=5e-5)
    points = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    density = torch.exp(-(points**2) / 2) / (2 * torch.pi) ** 0.5
    quadrature = float((torch.nn.functional.softplus(points) * density).sum() * (points[1] - points[0]))
    assert quadrature == pytest.approx(0.806, abs=5e-4)
    torch.manual_seed(0)
    assert float(factor(zeros, True).mean()) == pytest.approx(quadrature, abs=5e-3)


def test_with_phi_zero_and_no_noise_it_is_maml():
    """The factor 0.6931 of every convolution is taken away by batch normalisation, here without its epsilon."""
    found = learner("fixed", initial_deviation=1.0)
    maml = learner("none", initial_deviation=1.0)
    maml.network.load_state_dict(found.network.state_dict())
    for module in (*found.modules(), *maml.modules()):
        if isinstance(module, BatchStatisticsNorm):
            module.eps = 1e-12
    images = task().query
    assert torch.allclose(found.network(images), maml.network(images), atol=1e-4)


def test_features_are_multiplied_before_batch_normalisation_by_a_factor_of_the_same_input():
    found = learner(initial_deviation=0.5)
    images, block = task().support, found.network.features[0]
    theta, phi = dict(block[0].named_parameters()), found.noises[0]
    mean = torch.nn.functional.conv2d(images, theta["weight"], theta["bias"], padding=1)
    alpha = torch.nn.functional.conv2d(images, phi.weight, phi.bias, padding=1)
    expected = block[3](block[2](block[1](mean * torch.log1p(alpha.exp()))))
    assert torch.allclose(block(images), expected, atol=1e-5)


def test_noise_is_drawn_for_support_images_alone():
    found, one = learner(), task()
    weights = found.start(one.support, one.support_targets)
    loss = found.support_loss(one.support, one.support_targets)
    torch.manual_seed(3)
    first, second = loss(weights, 0), loss(weights, 1)
    torch.manual_seed(3)
    assert torch.equal(loss(weights, 0), first)
    assert not torch.equal(first, second)
    assert torch.equal(found.forward_at(weights, 0, one.query), found.forward_at(weights, 0, one.query))


def test_the_head_has_one_deviation_for_all_classes_of_an_example():
    found, one = learner(initial_deviation=1.0), task()
    assert sum(value.numel() for value in found.head_noise.parameters()) == found.network.head.in_features + 1
    features = torch.rand(2, found.network.head.in_features).expand(4000, -1, -1)
    mean = found.network.head(features)
    found.sampling = True
    torch.manual_seed(0)
    draws = found.network.head(features) - mean
    expected = torch.log1p(found.head_noise(features[0]).exp()).expand(2, 3)
    assert torch.allclose(draws.std(0), expected, rtol=0.06)
    assert not torch.allclose(expected[0], expected[1], rtol=0.01)
    assert found.adapt(*one[:2], 1).keys() == {
        name for name, _ in found.network.named_parameters() if "features" not in name or ".0." in name[10:]
    }


def test_phi_learns_from_the_query_loss_though_queries_have_no_noise():
    found, one = learner(), task()
    found.outer(*one, 0)["loss"].backward()
    phi = [*found.noises.parameters(), *found.head_noise.parameters()]
    assert all(float(value.grad.abs().sum()) > 0 for value in phi)


def test_samples_average_losses_of_the_same_weights():
    """Without noise any number of them is one; with noise the test's number is used in the test."""
    one = task()
    still = learner("deterministic", test_samples=30).eval()
    single = learner("deterministic", test_samples=1).eval()
    single.load_state_dict(still.state_dict())
    assert torch.equal(still.predict(*one[:3]), single.predict(*one[:3]))
    found = learner(test_samples=500, initial_deviation=0.3)
    weights = {name: weight.detach() for name, weight in found.start(*one[:2]).items()}
    torch.manual_seed(0)
    many = found.eval().support_loss(*one[:2])(weights, 0)
    loss = found.train().support_loss(*one[:2])
    singles = torch.stack([loss(weights, 0) for _ in range(200)])
    assert many.item() == pytest.approx(singles.mean().item(), abs=4 * singles.std().item() / 140**0.5)


def test_inner_steps_are_gradient_steps_on_theta_at_constant_phi():
    found, one = learner("deterministic"), task()
    weights = found.start(*one[:2])

    def loss(weights):
        return task_loss(functional_call(found.network, weights, (one.support,)), one.support_targets)

    for _ in range(2):
        gradients = grad(loss)(weights)
        weights = {name: weight - 0.1 * gradients[name] for name, weight in weights.items()}
    adapted = found.adapt(*one[:2], 2)
    assert all(torch.allclose(adapted[name], weights[name], atol=1e-6) for name in weights)


def test_tasks_at_once_give_what_one_after_the_other_gives():
    found = learner("deterministic")
    tasks = task(3)
    together = over_tasks(found.outer, tasks, 0)
    apart = over_tasks(found.outer, tasks, 0, batched=False)
    assert torch.allclose(together["loss"], apart["loss"], atol=1e-5)


@pytest.mark.parametrize(("noise", "trained"), [("input_independent", 5), ("fixed", 0), ("none", 0)])
def test_ablations_train_the_parameters_of_the_noise_that_they_use(noise, trained):
    found = learner(noise)
    phi = [*found.noises.parameters(), *found.head_noise.parameters()]
    assert sum(value.requires_grad for value in phi) == trained
    assert all(not value.any() for value in phi)


def test_convolutions_without_a_bias_get_one_that_tasks_adapt():
    found, one = MetaDropoutLearner(conv4(3, 1, 16, channels=4, bias=False), MetaDropout(steps=1)), task()
    adapted = found.adapt(*one[:2], 1)
    assert all(bool(adapted[f"features.{layer}.0.bias"].any()) for layer in range(4))
