"""The price of two beliefs against the worked example, the differential equation, a grid and simulations."""

import csv

import numpy
import pytest
import torch
from commands import runner

from runner.methods.other.asset_bubble import (
    VISIBLE,
    AssetBubble,
    advance,
    bubble_on,
    exact_policy,
    grows_with_volatility,
    random_market,
)
from runner.methods.other.beliefs import Belief, EquilibriumPrice, crossing, has_bubble
from runner.methods.other.switching_control import Policy, grid_price

RATE = 0.05
EXAMPLE = (Belief(2.0, 1.0, 0.4), Belief(0.5, 1.0, 0.4))
PRICE = EquilibriumPrice(EXAMPLE, RATE)


def test_the_coefficients_of_the_worked_example():
    assert crossing(EXAMPLE) == 1
    assert [float(c) for c in PRICE.coefficients] == pytest.approx([2.9178848289402759, 3.3030612615], rel=2e-9)


@pytest.mark.parametrize(
    ("x", "price", "first", "second", "bubble"),
    [
        (0, 22.43007995, 19.51219512, 18.18181818, 2.9178848),
        (0.25, 22.57293743, 19.63414634, 18.63636364, 2.9387911),
        (0.5, 22.72370355, 19.75609756, 19.09090909, 2.967606),
        (1, 23.09750067, 20, 20, 3.0975007),
        (1.5, 23.74010762, 20.24390244, 20.90909091, 2.8310167),
        (2, 24.51290662, 20.48780488, 21.81818182, 2.6947248),
        (4, 27.90278049, 21.46341463, 25.45454545, 2.448235),
    ],
)
def test_the_worked_example(x, price, first, second, bubble):
    assert PRICE.at(x)[0] == pytest.approx(price, abs=5e-9)
    assert [belief.intrinsic_value(x, RATE) for belief in EXAMPLE] == pytest.approx([first, second], abs=5e-9)
    assert PRICE.bubble(x) == pytest.approx(bubble, abs=5e-8)


@pytest.mark.parametrize(("x", "slope"), [(0.3, 0.590592), (0.7, 0.693937), (1.2, 1.26698), (2.5, 1.66884)])
def test_slopes_lie_between_those_of_the_intrinsic_values(x, slope):
    assert PRICE.at(x)[1] == pytest.approx(slope, abs=5e-6)
    assert 1 / (RATE + 2) < slope < 1 / (RATE + 0.5)


def test_the_second_derivative_is_continuous_at_the_crossing():
    below, above = PRICE.at(1.0), PRICE.at(1.0 + 1e-12)
    assert below[2] == pytest.approx(1.93593, abs=1e-5)
    assert above == pytest.approx(below, rel=1e-9)


@pytest.mark.parametrize("beliefs", [EXAMPLE, (Belief(0.7, 2.0, 0.9), Belief(0.4, 1.5, 0.9))])
def test_the_differential_equation_holds(beliefs):
    price = EquilibriumPrice(beliefs, RATE)
    for x in (0.0, 0.2, 0.9, 1.0, 2.0, 5.0):
        value, slope, curvature = price.at(x)
        drift = max(belief.drift(x) for belief in beliefs)
        residual = beliefs[0].volatility ** 2 / 2 * x * curvature + drift * slope - RATE * value + x
        assert residual == pytest.approx(0, abs=1e-12)


def test_an_intrinsic_value_solves_its_own_equation():
    belief = Belief(1.3, 0.7, 0.5)
    for x in (0.0, 1.0, 3.0):
        residual = belief.drift(x) / (RATE + belief.speed) - RATE * belief.intrinsic_value(x, RATE) + x
        assert residual == pytest.approx(0, abs=1e-12)


def test_the_order_of_the_groups_changes_nothing():
    other = EquilibriumPrice(EXAMPLE[::-1], RATE)
    for x in (0.0, 0.5, 2.0):
        assert other.at(x) == PRICE.at(x)


def test_in_other_units_the_price_is_scaled():
    scaled = EquilibriumPrice(tuple(Belief(b.speed, 3 * b.level, 3**0.5 * b.volatility) for b in EXAMPLE), RATE)
    for x in (0.1, 1.0, 2.0):
        assert scaled.at(3 * x)[0] == pytest.approx(3 * PRICE.at(x)[0], rel=1e-12)


def test_the_bubble_fades_like_a_power_of_the_asset():
    """x^-a with a = rate / the smaller speed = 0.1."""
    assert PRICE.bubble(1e8) / PRICE.bubble(1e7) == pytest.approx(10**-0.1, rel=1e-3)


@pytest.mark.parametrize(
    ("speeds", "levels", "dominant"),
    [
        ((2.0, 1.0), (1.5, 4.0), 1),  # the drifts cross at -1
        ((1.0, 1.0), (1.0, 2.0), 1),  # never
        ((2.0, 1.0), (1.0, 2.0), 1),  # at 0
        ((1.0, 1.0), (1.0, 1.0), 0),
        ((1.0, 2.0), (4.0, 1.5), 0),
    ],
)
def test_without_a_bubble_the_price_is_the_value_of_the_larger_drift(speeds, levels, dominant):
    beliefs = tuple(Belief(speed, level, 0.4) for speed, level in zip(speeds, levels, strict=True))
    price = EquilibriumPrice(beliefs, RATE)
    assert not has_bubble(beliefs) and price.coefficients == (0, 0)
    for x in (0.0, 1.0, 7.0):
        assert price.at(x)[0] == pytest.approx(beliefs[dominant].intrinsic_value(x, RATE), rel=1e-14)
        assert price.bubble(x) == pytest.approx(0, abs=1e-14)
    grid = grid_price(beliefs, RATE, 12.0, 1200)
    assert bubble_on(grid, beliefs, RATE).max() < VISIBLE


def test_the_grid_agrees_with_the_closed_form():
    grid = grid_price(EXAMPLE, RATE, 12.0, 6000)
    points = range(0, 3001, 250)
    assert max(abs(grid.price[i] - PRICE.at(grid.x[i])[0]) for i in points) < 1e-4
    assert grid.policy.first == 0 and grid.policy.switches == pytest.approx([1.0], abs=0.003)


def test_the_grid_is_of_second_order():
    errors = [abs(grid_price(EXAMPLE, RATE, 12.0, n).price[n // 12] - PRICE.at(1.0)[0]) for n in (600, 1200, 2400)]
    assert errors[0] / errors[1] > 3 and errors[1] / errors[2] > 3


def test_a_group_that_sees_more_noise_switches_elsewhere_and_its_market_is_worth_more():
    grid = grid_price((EXAMPLE[0], Belief(0.5, 1.0, 0.6)), RATE, 12.0, 2400)
    assert grid.price[200] > PRICE.at(1.0)[0] + 0.1
    assert len(grid.policy.switches) == 1


def test_the_exact_policy_is_the_larger_drift():
    assert exact_policy(EXAMPLE) == Policy(0, (1.0,))
    assert exact_policy(EXAMPLE[::-1]) == Policy(1, (1.0,))
    assert exact_policy((Belief(2.0, 1.5, 0.4), Belief(1.0, 4.0, 0.4))) == Policy(1, ())


def test_simulated_paths_without_noise_pay_the_sum_of_eulers_scheme():
    beliefs = (Belief(2.0, 1.0, 0.0), Belief(0.5, 1.0, 0.0))
    asset, paid = torch.full((3, 2), 3.0, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    rules = [Policy(0, (1.0,)), Policy(0, ()), Policy(1, ())]
    for unit in range(300):
        advance(asset, paid, beliefs, rules, RATE, float(unit), 20)

    def summed(belief: Belief) -> float:
        dt, q, e = 1 / 20, 1 - belief.speed / 20, numpy.exp(-RATE / 20)
        return dt * e**0.5 * (belief.level / (1 - e) + (3.0 - belief.level) * (1 + q) / 2 / (1 - e * q))

    first, second = map(summed, beliefs)
    assert paid.mean(1).tolist() == pytest.approx([second, first, second], abs=1e-5)  # above 1 the second one switches


def test_simulated_means_and_variances_are_those_of_the_process():
    torch.manual_seed(0)
    asset, paid = torch.full((2, 20_000), 2.0, dtype=torch.float64), torch.zeros(2, 20_000, dtype=torch.float64)
    for unit in range(2):
        advance(asset, paid, EXAMPLE, [Policy(0, ()), Policy(1, ())], RATE, float(unit), 100)
    for row, belief in zip(asset, EXAMPLE, strict=True):
        decay = numpy.exp(-2 * belief.speed)
        mean = belief.level + (2.0 - belief.level) * decay
        variance = (
            belief.volatility**2 / belief.speed * (2.0 * (decay - decay**2) + belief.level / 2 * (1 - decay) ** 2)
        )
        assert float(row.mean()) == pytest.approx(mean, abs=4 * (variance / 20_000) ** 0.5 + 0.005)
        assert float(row.var()) == pytest.approx(variance, rel=0.06)


def test_the_condition_holds_in_random_markets_and_bubbles_grow_with_the_volatility():
    torch.manual_seed(0)
    for _ in range(8):
        beliefs, rate = random_market()
        where = crossing(beliefs)
        grid = grid_price(beliefs, rate, 12 * max(beliefs[0].level, beliefs[1].level, where), 1200)
        assert bool((bubble_on(grid, beliefs, rate)[:600] > VISIBLE).any()) == has_bubble(beliefs)
        if has_bubble(beliefs):
            assert grows_with_volatility(beliefs, rate, [0.0, where / 2, where, 2 * where])


def test_an_asset_that_reaches_0_is_refused():
    with pytest.raises(ValueError, match="at least volatility"):
        AssetBubble(speeds=[2.0, 0.01])


def test_a_run_measures_the_example(tmp_path):
    answer = runner(
        "method=asset_bubble", "scale=smoke", "method.intervals=2400", "method.volatilities=[0.4,0.4]", place=tmp_path
    )
    assert answer.code == 0, answer.err
    metrics = answer.result["metrics"]
    assert metrics["price"] == pytest.approx(23.09750067, abs=1e-8)
    assert metrics["bubble_condition"] == 1 and metrics["grid_error"] < 1e-3
    rows = list(csv.DictReader((answer.folder / "artifacts" / "curves.csv").open()))
    assert float(rows[0]["price"]) == pytest.approx(22.43007995, abs=1e-8)


def test_different_volatilities_run_without_a_closed_form(tmp_path):
    answer = runner("method=asset_bubble", "scale=smoke", "method.volatilities=[0.4,0.6]", place=tmp_path)
    assert answer.code == 0, answer.err
    assert "grid_error" not in answer.result["metrics"] and answer.result["metrics"]["bubble"] > 3
