"""HyperDistill's averages and hypergradients, against the card's numbers, closed forms and autograd."""

import pytest
import torch
from few_shot_networks import convolutions, image_tasks, perceptron_tasks
from torch.func import vmap

from runner.errors import UserError
from runner.methods.fewshot.distillation import Distilled, length, share_of_newer, share_of_past
from runner.methods.fewshot.hyperdistill import (
    HyperDistill,
    SharedLayers,
    backwards,
    between,
    estimated_size,
    inner,
    solve,
)
from runner.models.few_shot import perceptron


def learner(**settings) -> SharedLayers:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = perceptron(1, 1, widths=(6, 5)).double()
    return SharedLayers(network, HyperDistill(**{"rate": 0.05, "momentum": 0.0, "steps": 4, **settings}))


def image_learner(**settings) -> SharedLayers:
    return SharedLayers(convolutions(), HyperDistill(**{"rate": 0.05, "steps": 3, "task_layers": 2, **settings}))


# ---- averages -------------------------------------------------------------------------------------------------------


def test_the_average_of_the_card():
    """gamma = 0.9, w = 1, 2, 4, 8: 1, 1.526316, 2.439114, 4.056121."""
    distilled = Distilled(0.9)
    points = [{"w": torch.tensor(value, dtype=torch.float64)} for value in (1.0, 2.0, 4.0, 8.0)]
    found = [float(distilled.add(point, None)[0]["w"]) for point in points]
    assert found == pytest.approx([1, 1.526316, 2.439114, 4.056121], abs=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99, 1.0])
def test_both_directions_give_the_weighted_mean(decay):
    values = torch.rand(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = torch.tensor([decay ** (6 - i) for i in range(7)], dtype=torch.float64)
    expected = float((shares * values).sum() / shares.sum())
    for newest_first in (False, True):
        distilled = Distilled(decay, newest_first)
        for value in values.flip(0) if newest_first else values:
            at, _ = distilled.add({"w": value}, None)
        assert float(at["w"]) == pytest.approx(expected, abs=1e-12)


def test_shares_and_lengths_are_the_papers():
    decay, count = 0.9, 5
    assert share_of_past(decay, count) == pytest.approx((decay - decay**count) / (1 - decay**count))
    assert share_of_newer(decay, count) == pytest.approx((1 - decay ** (count - 1)) / (1 - decay**count))
    assert length(decay, count) == pytest.approx((1 - decay**count) / (1 - decay))
    assert (length(0, 7), length(1, 7), share_of_past(0, 2), share_of_past(1, 4)) == (1, 7, 0, 0.75)


def test_the_mixed_batch_keeps_its_size_and_holds_the_shares():
    distilled = Distilled(0.9)
    for step in range(3):
        _, rows = distilled.add({}, torch.arange(10).repeat(2, 1) + 10 * step)
    assert rows.shape == (2, 10)
    newest = (rows >= 20).sum(1)
    assert newest.tolist() == [10 - round(10 * share_of_past(0.9, 3))] * 2
    assert all(len(set(row)) == 10 for row in rows.tolist())


def test_without_decay_it_is_the_last_point_and_batch():
    distilled = Distilled(0.0)
    for step in range(3):
        at, rows = distilled.add({"w": torch.tensor(float(step))}, torch.arange(4).view(1, 4) + 4 * step)
        assert float(at["w"]) == step
        assert sorted(rows[0].tolist()) == list(range(4 * step, 4 * step + 4))


# ---- hypergradients -------------------------------------------------------------------------------------------------


def unrolled(model: SharedLayers, tasks, steps: int) -> list[torch.Tensor]:
    """The hypergradients of every task by autograd through all steps of plain SGD."""
    found = []
    for number in range(tasks.count):
        support, support_targets, query, query_targets = (part[number] for part in tasks)
        shared = {name: value.clone().requires_grad_() for name, value in model.hyperparameters().items()}
        weights = {name: value.clone().requires_grad_() for name, value in model.start().items()}
        for _ in range(steps):
            gradients = torch.autograd.grad(
                model.loss(weights, shared, support, support_targets), list(weights.values()), create_graph=True
            )
            pairs = zip(weights.items(), gradients, strict=True)
            weights = {name: weight - model.settings.rate * gradient for (name, weight), gradient in pairs}
        loss = model.loss(weights, shared, query, query_targets)
        found.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(shared.values()))]))
    return found


class Recorder:
    """An optimizer that keeps the gradients it is given."""

    def __init__(self, model):
        self.model, self.steps = model, []

    def step(self):
        self.steps.append(torch.cat([parameter.grad.flatten() for parameter in self.model.shared()]))


def hypergradients(model, tasks, size=1.0) -> list[torch.Tensor]:
    recorder = Recorder(model)
    with torch.no_grad():
        solve(model, recorder, tasks, size)
    return recorder.steps


@pytest.mark.parametrize("make", [learner, image_learner])
def test_the_exact_hypergradient_is_that_of_autograd_through_all_steps(make):
    model = make(hypergradient="exact", momentum=0.0)
    tasks = perceptron_tasks(2) if make is learner else image_tasks(2)
    expected = torch.stack(unrolled(model, tasks, model.settings.steps)).mean(0)
    (found,) = hypergradients(model, tasks)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["distilled", "one_step", "drmad", "exact"])
def test_of_one_step_all_are_the_gradient_of_autograd(kind):
    model, tasks = learner(hypergradient=kind, steps=1), perceptron_tasks(2)
    expected = torch.stack(unrolled(model, tasks, 1)).mean(0)
    (found,) = hypergradients(model, tasks)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_without_decay_and_with_size_one_it_is_one_step():
    tasks = perceptron_tasks(2)
    distilled = hypergradients(learner(decay=0.0), tasks)
    assert all(
        torch.equal(first, second)
        for first, second in zip(distilled, hypergradients(learner(hypergradient="one_step"), tasks), strict=True)
    )
    first_order = hypergradients(learner(hypergradient="first_order"), tasks)
    assert len(distilled) == len(first_order) == 4
    assert not torch.allclose(distilled[0], first_order[0])


def test_the_size_of_one_step_is_one():
    assert estimated(learner(steps=1), perceptron_tasks(3)) == pytest.approx(1, abs=1e-9)
    assert estimated(learner(steps=1, batch=3), perceptron_tasks(3)) == pytest.approx(1, abs=1e-9)


def estimated(model, tasks) -> float:
    with torch.no_grad():
        return estimated_size(model, tasks)


def test_the_size_is_the_least_squares_factor_of_the_card():
    """theta = (x . y) / (x . x), term by term as algorithm 4 has it."""
    model, tasks = learner(decay=0.9), perceptron_tasks(1)
    steps, support = model.settings.steps, tasks[:2]
    with torch.no_grad():
        shared, (weights, velocity) = model.hyperparameters(), model.start_of_tasks(1)
        path = [weights]
        for _ in range(steps):
            weights, velocity = model.step_of_tasks(weights, velocity, shared, support)
            path.append(weights)
        alpha, _, _ = model.slopes_of_tasks(weights, shared, tasks[2:])
        sums = backwards(model, between(path[0], path[-1], steps), shared, alpha, [support] * steps)
        xs, ys = [], []
        for s in range(1, steps + 1):
            powers = [0.9**i for i in range(s)]
            mean = {
                name: sum(power * path[steps - 1 - i][name] for i, power in enumerate(powers)) / sum(powers)
                for name in weights
            }
            product = model.product_of_tasks(mean, shared, alpha, support)[1]
            norm = inner(product, product).sqrt()
            xs.append(float(norm * sum(powers)))
            ys.append(float(inner(product, sums[s - 1]) / norm))
    expected = sum(x * y for x, y in zip(xs, ys, strict=True)) / sum(x * x for x in xs)
    assert estimated(model, tasks) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_distilled_product_points_closer_to_the_exact_sum_than_the_last_step_does(seed):
    """The card's second check, on sinusoids and an untrained network: the mean cosine at gamma = 0.9 and at 0."""
    draws = torch.Generator().manual_seed(seed)
    inputs = 10 * torch.rand(10, 20, 1, generator=draws, dtype=torch.float64) - 5
    amplitude, phase = torch.rand(2, 10, 1, 1, generator=draws, dtype=torch.float64)
    targets = (0.1 + 4.9 * amplitude) * torch.sin(inputs - torch.pi * phase)
    batch = (inputs[:, :10], targets[:, :10])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = SharedLayers(perceptron(1, 1, widths=(40, 40)).double(), HyperDistill())
        shared, (weights, velocity) = model.hyperparameters(), model.start_of_tasks(10)
        path = [weights]
        for _ in range(30):
            weights, velocity = model.step_of_tasks(weights, velocity, shared, batch)
            path.append(weights)
        alpha, _, _ = model.slopes_of_tasks(weights, shared, (inputs[:, 10:], targets[:, 10:]))
        exact = backwards(model, path[:-1], shared, alpha, [batch] * 30)[-1]
        cosines = {}
        for decay in (0.9, 0.0):
            distilled = Distilled(decay)
            for point in path[:-1]:
                at, _ = distilled.add(point, None)
            product = model.product_of_tasks(at, shared, alpha, batch)[1]
            norms = (vmap(inner)(product, product) * vmap(inner)(exact, exact)).sqrt()
            cosines[decay] = float((vmap(inner)(product, exact) / norms).mean())
    assert cosines[0.9] > cosines[0.0] > 0.5


def test_drmads_points_lie_between_the_ends():
    first, last = {"w": torch.tensor([0.0, 4.0])}, {"w": torch.tensor([8.0, 0.0])}
    assert [point["w"].tolist() for point in between(first, last, 4)] == [[0, 4], [2, 3], [4, 2], [6, 1]]


# ---- the learner ----------------------------------------------------------------------------------------------------


def test_layers_are_shared_up_to_the_tasks():
    model = image_learner(task_layers=2)
    assert [name for name in model.task_names if name.endswith("weight")][-1] == "head.weight"
    assert model.task_names[0] == "features.1.0.weight" and model.shared_names[0] == "features.0.0.weight"
    with pytest.raises(UserError, match=r"task_layers=3: this network has 3 layers"):
        image_learner(task_layers=3)


def test_the_inner_sgd_is_torchs():
    model, tasks = learner(momentum=0.9, steps=5), perceptron_tasks(1)
    with torch.no_grad():
        found = model.predict(*(part[0] for part in tasks[:3]))
    head = model.network.head
    optimizer = torch.optim.SGD(head.parameters(), 0.05, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model.network(tasks.support[0]), tasks.support_targets[0]).backward()
        optimizer.step()
    assert torch.allclose(found, model.network(tasks.query[0]), atol=1e-10)


def test_the_start_moves_to_the_mean_of_the_weights_reached():
    model, tasks = learner(hypergradient="first_order"), perceptron_tasks(3)
    start = model.start()
    expected = {name: torch.zeros_like(value) for name, value in start.items()}
    shared = model.hyperparameters()
    for number in range(3):
        weights = start
        velocity = {name: torch.zeros_like(value) for name, value in start.items()}
        for _ in range(4):
            weights, velocity = model.step(
                weights, velocity, shared, tasks.support[number], tasks.support_targets[number]
            )
        expected = {name: expected[name] + weights[name] / 3 for name in weights}
    hypergradients(model, tasks)
    assert all(torch.allclose(model.start()[name], expected[name], atol=1e-12) for name in expected)


def test_updates_every_second_step():
    assert len(hypergradients(learner(update_every=2, steps=5), perceptron_tasks(2))) == 2


def test_a_batch_takes_part_of_the_examples():
    torch.manual_seed(0)
    found = hypergradients(image_learner(batch=4), image_tasks(2))
    assert len(found) == 3
    assert all(gradient.isfinite().all() for gradient in found)
