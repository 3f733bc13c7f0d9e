"""Optimizers against their formulas, schedules against worked numbers."""

import copy
import math

import numpy
import pytest
import torch

from runner.compose import compose
from runner.optimizers import TensorFlowSGD, build_optimizer, learning_rate
from runner.schema import OptimizerSettings, ScheduleSettings
from runner.settings import build_section

RATES = [0.1] * 6 + [0.02] * 6  # a drop by 0.2 after six steps
MOMENTUM, DECAY = 0.9, 5e-4


def gradients() -> numpy.ndarray:
    return numpy.random.default_rng(0).normal(size=(len(RATES), 5))


def trajectory(optimizer_class, **options) -> list[numpy.ndarray]:
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
    optimizer = optimizer_class([weight], lr=RATES[0], momentum=MOMENTUM, weight_decay=DECAY, **options)
    found = []
    for rate, gradient in zip(RATES, gradients(), strict=True):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        found.append(weight.detach().numpy().copy())
    return found


@pytest.mark.parametrize("nesterov", [True, False])
def test_tensorflow_sgd_follows_the_card(nesterov):
    """Card compression/ekg 2.10: v <- 0.9 v - lr*g; w <- w + 0.9 v - lr*g, with g the gradient + decay * w."""
    weight, velocity = numpy.linspace(-1, 1, 5), numpy.zeros(5)
    found = trajectory(TensorFlowSGD, nesterov=nesterov)
    for step, (rate, gradient) in enumerate(zip(RATES, gradients(), strict=True)):
        decayed = gradient + DECAY * weight
        velocity = MOMENTUM * velocity - rate * decayed
        weight = weight + (MOMENTUM * velocity - rate * decayed if nesterov else velocity)
        numpy.testing.assert_allclose(found[step], weight, rtol=0, atol=1e-14)


@pytest.mark.parametrize("nesterov", [True, False])
def test_tensorflow_sgd_is_torch_sgd_until_the_rate_drops(nesterov):
    ours, torchs = trajectory(TensorFlowSGD, nesterov=nesterov), trajectory(torch.optim.SGD, nesterov=nesterov)
    numpy.testing.assert_allclose(ours[:6], torchs[:6], rtol=0, atol=1e-13)
    assert numpy.abs(ours[6] - torchs[6]).max() > 1e-2


def test_tensorflow_sgd_goes_on_from_its_state():
    first, second = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    one, other = (TensorFlowSGD([weight], 0.1, nesterov=True) for weight in (first, second))
    first.grad = torch.tensor([1.0, 2.0, 3.0])
    one.step()
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    with torch.no_grad():
        second.copy_(first)
    for weight, optimizer in ((first, one), (second, other)):
        weight.grad = torch.tensor([0.5, 0.5, 0.5])
        optimizer.step()
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", torch.optim.SGD),
        ("sgd_tensorflow", TensorFlowSGD),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
    ],
)
def test_a_recipe_builds_its_optimizer_over_trainable_tensors(name, kind):
    frozen, trained = torch.nn.Parameter(torch.ones(1), requires_grad=False), torch.nn.Parameter(torch.ones(1))
    settings = OptimizerSettings(name=name, learning_rate=0.3, momentum=0.8, nesterov=True, weight_decay=0.01)
    optimizer = build_optimizer([frozen, trained], settings)
    (group,) = optimizer.param_groups
    assert type(optimizer) is kind
    assert (group["params"], group["lr"], group["weight_decay"]) == ([trained], 0.3, 0.01)
    assert group.get("momentum", group.get("betas", (0,))[0]) == 0.8


def rates(settings: ScheduleSettings, epochs: int, steps: int = 2) -> list[float]:
    return [
        learning_rate(1.0, settings, step=step, steps_per_epoch=steps, epochs=epochs) for step in range(epochs * steps)
    ]


def test_milestones_are_whole_epochs():
    """Card compression/ekg: 0.01, x0.2 at epochs 30, 60, 80 of 100; x0.2 at 0.3/0.6/0.8 of 200."""
    settings = ScheduleSettings(name="step", milestones=[0.3, 0.6, 0.8], factor=0.2)
    found = [
        learning_rate(0.01, settings, step=epoch * 7, steps_per_epoch=7, epochs=100) for epoch in (29, 30, 59, 60, 80)
    ]
    assert found == pytest.approx([0.01, 0.002, 0.002, 0.0004, 0.00008])
    assert learning_rate(1.0, settings, step=7 * 30 - 1, steps_per_epoch=7, epochs=100) == 1.0
    assert rates(settings, 5) == pytest.approx([1, 1, 0.2, 0.2, 0.2, 0.2, 0.04, 0.04, 0.008, 0.008])


def test_no_milestone_before_the_second_epoch():
    settings = ScheduleSettings(name="step", milestones=[0.3, 0.6, 0.8], factor=0.2)
    assert rates(settings, 1) == [1.0, 1.0]
    assert rates(settings, 2)[:2] == [1.0, 1.0]


def test_a_milestone_is_not_an_epoch_early_by_rounding():
    settings = ScheduleSettings(name="step", milestones=[0.7], factor=0.1)  # 0.7 * 90 is 62.99999999999999
    found = rates(settings, 90, steps=1)
    assert found.index(pytest.approx(0.1)) == 63


def test_cosine_falls_to_zero_step_by_step():
    found = rates(ScheduleSettings(name="cosine"), epochs=4)
    assert found == pytest.approx([(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)])
    assert (found[0], found[4]) == (1.0, pytest.approx(0.5))


@pytest.mark.parametrize("warmup", [0, 2])
def test_linear_and_polynomial_fall_to_zero_step_by_step(warmup):
    rise = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1] if warmup else [1] * 8
    for name, power in (("linear", 1), ("polynomial", 2), ("polynomial", 0.5)):
        settings = ScheduleSettings(name=name, power=power, warmup_epochs=warmup)
        assert rates(settings, epochs=4) == pytest.approx([r * (1 - s / 8) ** power for s, r in enumerate(rise)])
    assert rates(ScheduleSettings(name="linear", power=3.0), epochs=2) == [1, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("epochs", [1, 2, 5, 10])
def test_one_cycle_is_that_of_torch(epochs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, epochs=epochs, steps_per_epoch=2)
    expected = []
    for _ in range(2 * epochs):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < 2 * epochs:
            scheduler.step()
    assert rates(ScheduleSettings(name="one_cycle"), epochs) == pytest.approx(expected, rel=1e-12)
    assert expected[-1] == pytest.approx(1 / 250_000)


def test_cosine_after_warmup_rises_from_its_floor_and_falls_back_over_what_remains():
    found = rates(ScheduleSettings(name="cosine_after_warmup", warmup_epochs=1), epochs=3)  # two steps an epoch
    falls = [0.001 + 0.999 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert found == pytest.approx([0.001, 0.5005, *falls])
    assert rates(ScheduleSettings(name="cosine_after_warmup", warmup_epochs=30), epochs=1) == pytest.approx(
        [0.001, 0.001 + 0.999 / 60]
    )


def test_the_recipe_for_imagenet_drops_at_30_60_and_80():
    recipe = build_section("recipe", compose(["method=supervised", "recipe=imagenet", "scale=paper"]).config["recipe"])
    found = [
        learning_rate(0.1, recipe.schedule, step=epoch * 5 + 4, steps_per_epoch=5, epochs=recipe.epochs)
        for epoch in (0, 29, 30, 59, 60, 79, 80, 89)
    ]
    assert found == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])


@pytest.mark.parametrize("method", ["shake", "relu_prime", "i_vne", "shakedrop"])
def test_released_networks_without_zero_scales_begin_so(method):
    assert compose([f"method={method}"]).config["recipe"]["zero_init_residual"] is False


def test_warm_up_rises_linearly_and_multiplies_the_schedule():
    assert rates(ScheduleSettings(name="constant", warmup_epochs=2), epochs=3) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert rates(ScheduleSettings(name="constant", warmup_epochs=0.5), epochs=1) == [1, 1]
    stepped = ScheduleSettings(name="step", milestones=[0.5], factor=0.1, warmup_epochs=2)
    assert rates(stepped, epochs=2) == pytest.approx([0.25, 0.5, 0.075, 0.1])
