"""Balancing variables on the card's invariants and closed forms (Lee et al. 2020)."""

import math

import pytest
import torch
from few_shot_networks import QUERIES, SHOTS, SIDE, WAYS, convolutions, image_tasks
from torch.nn.functional import cross_entropy

from runner.datasets.episodes import Tasks
from runner.methods.fewshot.bayesian_taml import (
    BalancedLearner,
    BayesianTAML,
    InferenceNetwork,
    balanced_loss,
    divergence,
    statistics,
)
from runner.methods.fewshot.inner_loop import call, over_tasks
from runner.methods.fewshot.meta_sgd import MetaSGDLearner
from runner.models.few_shot import conv4

OFF = {"balance_classes": False, "balance_rates": False, "balance_weights": False}


def learner(bias: bool = True, **settings) -> BalancedLearner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = BalancedLearner(
            convolutions(bias), BayesianTAML(rate=0.1, steps=3, **settings), image_size=SIDE, most_shots=4
        ).double()
        for weight in (*found.inference.parameters(), *found.network.features.parameters()):
            weight.data += 0.1 * torch.randn_like(weight)
    return found


def imbalanced() -> Tasks:
    """1, 2 and 2 examples of the classes."""
    task = Tasks(*(part[0] for part in image_tasks(1)))
    return task._replace(support=task.support[1:], support_targets=task.support_targets[1:])


def test_equal_shares_give_the_mean_cross_entropy():
    """sum_c (1/C) (C/N) sum CE; a share acts on the class's sum, not on its mean."""
    draws = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(5, 3, generator=draws), torch.tensor([0, 1, 1, 2, 2])
    torch.testing.assert_close(balanced_loss(logits, targets, torch.full((3,), 1 / 3)), cross_entropy(logits, targets))
    losses, shares = cross_entropy(logits, targets, reduction="none"), torch.tensor([0.5, 0.3, 0.2])
    expected = 3 / 5 * (0.5 * losses[0] + 0.3 * (losses[1] + losses[2]) + 0.2 * (losses[3] + losses[4]))
    torch.testing.assert_close(balanced_loss(logits, targets, shares), expected)


def test_the_divergence_of_known_normals():
    one = torch.ones(1)
    assert divergence(0 * one, one).item() == 0
    assert divergence(one, one).item() == 0.5
    mean, deviation = torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0])
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, deviation), normal(0.0, 1.0)).sum()
    torch.testing.assert_close(divergence(mean, deviation), expected)


def test_statistics_of_sets():
    values = torch.tensor([[1.0, 0.0], [3.0, 4.0], [5.0, 5.0]])
    members = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = statistics(values, members, torch.tensor([0.25, 0.0]))
    expected = [[[2.0, 1.0, 0.25], [2.0, 4.0, 0.25]], [[5.0, 0.0, 0.0], [5.0, 0.0, 0.0]]]  # one example: no variance
    torch.testing.assert_close(found, torch.tensor(expected))


def test_what_is_inferred_has_the_released_sizes():
    found = BalancedLearner(conv4(5, 3, 32, channels=32), BayesianTAML(), image_size=32, most_shots=50)
    support, targets = torch.rand(6, 3, 32, 32), torch.tensor([0, 0, 1, 2, 3, 4])
    posterior = found.posterior(support, targets)
    sizes = {name: tuple(mean.shape) for name, (mean, _) in posterior.items()}
    assert sizes == {"classes": (5,), "rates": (5,), "weights": (256,)}
    assert all((deviation > 0).all() for _, deviation in posterior.values())
    assert sum(rate.numel() for rate in found.rates) == sum(
        weight.numel() for name, weight in found.network.named_parameters() if name.split(".")[-2] == "0"
    ) + (128 + 1)


def test_orders_of_examples_and_classes_do_not_matter():
    network = InferenceNetwork({"classes": 1, "rates": 3, "weights": 8}, 1, SIDE, WAYS, 4).double()
    for weight in network.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    task = imbalanced()
    before = network(task.support, task.support_targets)
    order = torch.tensor([4, 0, 3, 2, 1])
    again = network(task.support[order], task.support_targets[order])
    renamed = torch.tensor([2, 0, 1])  # class 0 is now class 2
    moved = network(task.support, renamed[task.support_targets])
    assert before["classes"][0].std() > 0
    for k in range(2):
        for name in before:
            torch.testing.assert_close(again[name][k], before[name][k])
        torch.testing.assert_close(moved["classes"][k][renamed], before["classes"][k])
        for name in ("rates", "weights"):
            torch.testing.assert_close(moved[name][k], before[name][k])


def test_without_variables_it_is_meta_sgd_from_a_head_of_zeros():
    tasks, found = image_tasks(2), learner(**OFF)
    plain = MetaSGDLearner(found.network, 0.1, steps=3, adapt_norm=False)
    assert plain.adapted_names == [name for name in found.names if not name.startswith("head")]
    task = Tasks(*(part[0] for part in tasks))
    variables = {
        "classes": torch.full((WAYS,), 0.7).double(),  # any constant
        "rates": torch.zeros(len(found.layers)).double(),
        "weights": torch.zeros(sum(len(found.network.get_parameter(name)) for name in found.balanced)).double(),
    }
    off = found.adapted({}, task.support, task.support_targets, 3)
    prior = found.adapted(variables, task.support, task.support_targets, 3)
    for name in found.names:
        torch.testing.assert_close(prior[name], off[name])
    for weight in found.network.head.parameters():
        weight.requires_grad_(True)
    plain = MetaSGDLearner(found.network, 0.1, steps=3, adapt_norm=False)
    expected = plain.adapt(task.support, task.support_targets, 3)
    for name in found.names:
        torch.testing.assert_close(off[name], expected[name])


def test_the_first_step_of_a_zero_head_moves_the_head_alone():
    """Its logits are 0, so the loss is log C, no gradient reaches the convolutions, and the bias has a closed form."""
    found, task = learner(), imbalanced()
    variables = {name: mean.detach() for name, (mean, _) in found.posterior(task.support, task.support_targets).items()}
    start = found.start(variables)
    assert call(found.network, start, task.support).abs().max() == 0
    new = found.adapted(variables, task.support, task.support_targets, 1)
    for name in found.balanced:
        assert torch.equal(new[name], start[name])
    shares = variables["classes"].softmax(0)[task.support_targets] * WAYS / len(task.support_targets)
    apart = torch.full((len(shares), WAYS), 1 / WAYS).double() - torch.eye(WAYS).double()[task.support_targets]
    expected = -0.1 * variables["rates"][-1].exp() * (shares[:, None] * apart).sum(0)
    torch.testing.assert_close(new["head.bias"], expected)


def test_initial_weights_are_scaled_by_output_channel_and_biases_shifted():
    found = learner()
    sizes = [len(found.network.get_parameter(name)) for name in found.balanced]
    z = torch.linspace(-1, 1, sum(sizes)).double()
    start = found.start({"weights": z})
    weight, bias = found.network.get_parameter(found.balanced[0]), found.network.get_parameter(found.balanced[1])
    torch.testing.assert_close(start[found.balanced[0]][2], weight[2] * (1 + z[2]))
    torch.testing.assert_close(start[found.balanced[1]], bias + z[4:8])
    assert start["head.weight"].abs().max() == 0


def test_the_outer_loss_has_the_divergence_over_the_number_of_examples():
    found, task = learner(), imbalanced()
    values = found.outer(*task, 0)
    posterior = found.posterior(task.support, task.support_targets)
    examples = len(task.support) + QUERIES * WAYS
    assert len(task.support) == SHOTS * WAYS - 1
    expected = sum(divergence(*normal) for normal in posterior.values()) / examples
    torch.testing.assert_close(values["divergence"], expected)
    values["loss"].backward()
    assert all(weight.grad is not None for weight in (*found.rates, *found.inference.parameters()))
    assert found.network.head.weight.grad is None
    assert "divergence" not in learner(stochastic=False).outer(*task, 0)


def test_the_test_averages_probabilities_of_draws():
    found, task = learner(draws=4), imbalanced()
    with torch.no_grad():
        outputs = found.predict(task.support, task.support_targets, task.query)
        torch.testing.assert_close(outputs.exp().sum(1), torch.ones(len(task.query)).double())
        torch.manual_seed(0)
        found_now = found.predict(task.support, task.support_targets, task.query)
        torch.manual_seed(0)
        posterior = found.posterior(task.support, task.support_targets)
        draws = [found.drawn(posterior) for _ in range(4)]
        singles = [
            call(found.network, found.adapted(draw, task.support, task.support_targets, 10), task.query)
            for draw in draws
        ]
    torch.testing.assert_close(found_now.exp(), torch.stack(singles).softmax(-1).mean(0))


@pytest.mark.parametrize("settings", [{"stochastic": False}, {**OFF, "learned_rates": False}], ids=str)
def test_tasks_together_are_tasks_one_by_one(settings):
    found, tasks = learner(**settings), image_tasks(3)
    together = over_tasks(found.outer, tasks, 0)["loss"]
    torch.testing.assert_close(together, over_tasks(found.outer, tasks, 0, batched=False)["loss"])
    assert math.isfinite(together.sum().item())
