"""Discrepancies against their definition, truncated normals against the card's numbers, tests after selection."""

import csv
import math

import numpy
import pytest
from commands import runner
from scipy.stats import kstest, norm

from runner.datasets.shifted_gaussians import Settings, ShiftedGaussians
from runner.errors import UserError
from runner.methods.statistics.discrepancy import (
    Statistics,
    block_pairs,
    linear_pairs,
    random_pairs,
    squared_medians,
    statistics,
    units,
)
from runner.methods.statistics.psi_mmd import PSIMMD, tails
from runner.methods.statistics.selective_inference import truncated_tail, truncation


@pytest.fixture
def samples():
    generator = numpy.random.default_rng(0)
    return generator.normal(size=(4, 30, 1)) + 0.3, generator.normal(size=(4, 30, 1))


def all_pairs(count: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    return tuple(numpy.array([(i, j) for i in range(count) for j in range(count) if i != j]).T)


def test_equal_samples_have_no_discrepancy(samples):
    values = units(samples[0], samples[0], all_pairs(30), numpy.ones(4))
    assert values == pytest.approx(numpy.zeros((4, 30 * 29)), abs=1e-15)


def test_all_pairs_give_the_unbiased_estimate(samples):
    x, y = (sample[2, :, 0] for sample in samples)
    k = numpy.exp(-(numpy.subtract.outer(x, x) ** 2) / 1.5), numpy.exp(-(numpy.subtract.outer(y, y) ** 2) / 1.5)
    across = numpy.exp(-(numpy.subtract.outer(x, y) ** 2) / 1.5)
    same = sum((part.sum() - 30) / (30 * 29) for part in k)
    expected = same - 2 * (across.sum() - numpy.trace(across)) / (30 * 29)
    found = units(*samples, all_pairs(30), numpy.full(4, 1.5)).mean(1)
    assert found[2] == pytest.approx(expected, rel=1e-12)


def test_one_block_of_all_examples_is_the_same_estimate(samples):
    scales = numpy.ones(4)
    one = units(*samples, block_pairs(30, 30), scales).mean(1)
    assert one == pytest.approx(units(*samples, all_pairs(30), scales).mean(1))
    first, second = block_pairs(31, 5)
    assert len(first) == 6 * 10 and (first // 5 == second // 5).all() and second.max() == 29
    assert [part.tolist() for part in linear_pairs(5)] == [[0, 2], [1, 3]]


def test_pairs_are_uniform_over_those_of_different_examples():
    first, second = random_pairs(60_000, 4, numpy.random.default_rng(0))
    counts = numpy.zeros((4, 4), int)
    numpy.add.at(counts, (first, second), 1)
    assert (numpy.diagonal(counts) == 0).all()
    assert counts[~numpy.eye(4, dtype=bool)] == pytest.approx(numpy.full(12, 5000), abs=300)


def test_medians_are_those_of_all_distances_of_the_pooled_sample(samples):
    pooled = numpy.concatenate([sample[1, :, 0] for sample in samples])
    distances = [abs(a - b) for i, a in enumerate(pooled) for b in pooled[i + 1 :]]
    assert squared_medians(*samples, pooled=False)[1] == pytest.approx(numpy.median(distances) ** 2, rel=1e-3)
    assert len(set(squared_medians(*samples, pooled=True))) == 1


def test_the_covariance_is_that_of_the_units():
    values = numpy.random.default_rng(0).normal(size=(3, 50))
    found = statistics(values)
    assert found.values == pytest.approx(values.mean(1) * 50**0.5)
    assert found.covariance[0, 1] == pytest.approx(
        ((values[0] - values[0].mean()) * (values[1] - values[1].mean())).sum() / 49
    )


def test_the_worked_example_of_two_features():
    lower, upper = truncation(numpy.array([2.0, 1.0]), numpy.eye(2), numpy.array([0]), 0)
    assert (lower, upper) == (1.0, math.inf)
    assert truncated_tail(2.0, lower, upper) == pytest.approx(0.022750 / 0.158655, abs=1e-5)


@pytest.mark.parametrize(
    ("feature", "lower", "upper", "p"),
    [(1, -0.0260893855, math.inf, 0.00582688), (0, -0.0033333333, 7.4871428571, 0.00161128)],
)
def test_bounds_and_levels_are_those_of_the_follow_ups_code(feature, lower, upper, p):
    """Its thresholds for four estimates of which two are selected, and the level at which its quantile is reached."""
    values = numpy.array([0.63, 1.11, -0.09, -0.13])
    covariance = numpy.array([[40, -1, 6, -8], [-1, 164, -5, -15], [6, -5, 77, 11], [-8, -15, 11, 55]]) / 1000
    bounds = truncation(values, covariance, numpy.array([1, 0]), feature)
    assert bounds == pytest.approx((lower, upper))
    deviation = covariance[feature, feature] ** 0.5
    assert truncated_tail(*(point / deviation for point in (values[feature], *bounds))) == pytest.approx(p, rel=1e-5)


def test_the_smaller_one_is_bounded_from_above():
    assert truncation(numpy.array([2.0, 1.0]), numpy.eye(2), numpy.array([1]), 1, largest=False) == (-math.inf, 2.0)


@pytest.mark.parametrize("largest", [True, False])
def test_bounds_are_where_the_selection_changes(largest):
    generator = numpy.random.default_rng(1)
    root = generator.normal(size=(6, 6))
    covariance, values = root @ root.T, generator.normal(size=6)
    order = numpy.argsort(-values if largest else values)
    chosen, tested = order[:2], order[1]
    lower, upper = truncation(values, covariance, chosen, tested, largest)
    assert lower <= values[tested] <= upper
    direction = covariance[:, tested] / covariance[tested, tested]

    def same(point: float) -> bool:
        moved = values + direction * (point - values[tested])
        return set(numpy.argsort(-moved if largest else moved)[:2]) == set(chosen)

    for bound, inside in ((lower, 1e-6), (upper, -1e-6)):
        if math.isfinite(bound):
            assert same(bound + inside) and not same(bound - inside)


def test_all_features_selected_bound_nothing():
    values = numpy.array([1.5, 0.2])
    bounds = truncation(values, numpy.eye(2), numpy.array([0, 1]), 0)
    assert bounds == (-math.inf, math.inf)
    assert truncated_tail(1.5, *bounds) == pytest.approx(norm.sf(1.5), rel=1e-12)


@pytest.mark.parametrize(
    ("value", "lower", "upper", "expected"),
    [
        (0.5, -1.0, 2.0, (norm.sf(0.5) - norm.sf(2)) / (norm.sf(-1) - norm.sf(2))),
        (-1.5, -3.0, -0.5, (norm.cdf(-0.5) - norm.cdf(-1.5)) / (norm.cdf(-0.5) - norm.cdf(-3))),
        (40.1, 40.0, math.inf, math.exp(norm.logsf(40.1) - norm.logsf(40.0))),
        (-40.1, -math.inf, -40.0, 1 - math.exp(norm.logsf(40.1) - norm.logsf(40.0))),
        (1.0, 1.0, 3.0, 1.0),
        (3.0, 1.0, 3.0, 0.0),
    ],
)
def test_truncated_tails(value, lower, upper, expected):
    assert truncated_tail(value, lower, upper) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_permuted_features_give_permuted_p_values():
    generator = numpy.random.default_rng(2)
    values, covariance = generator.normal(size=8), numpy.diag(generator.random(8) + 0.5)
    method, order = PSIMMD(selected=3), generator.permutation(8)
    chosen = method.choose(values)
    other = Statistics(values[order], covariance[numpy.ix_(order, order)])
    moved = method.choose(other.values)
    assert order[moved].tolist() == chosen.tolist()
    assert method.p_values(other, moved) == pytest.approx(method.p_values(Statistics(values, covariance), chosen))


def test_without_a_difference_p_values_after_selection_are_uniform_and_naive_ones_are_not():
    method, data = PSIMMD(selected=3), ShiftedGaussians(Settings(name="", features=10, shift="none"), 200)
    selective, naive = [], []
    for trial in range(200):
        generator = numpy.random.default_rng(trial)
        found = method.measure(*data.draw(generator), generator)
        chosen = method.choose(found.values)
        selective += method.p_values(found, chosen).tolist()
        naive += tails(found)[chosen].tolist()
    assert kstest(selective, "uniform").pvalue > 0.01
    assert kstest(naive, "uniform").pvalue < 1e-6


def test_generated_samples_differ_where_they_should():
    generator = numpy.random.default_rng(0)
    mean = ShiftedGaussians(Settings(name=""), 4000)
    first, second = mean.draw(generator)
    assert first.shape == second.shape == (50, 4000, 1) and mean.different.sum() == 10
    assert first[:10].mean() == pytest.approx(0.5, abs=0.02) and first[10:].mean() == pytest.approx(0, abs=0.02)
    first, second = ShiftedGaussians(Settings(name="", shift="variance"), 4000).draw(generator)
    assert first[:10].var() == pytest.approx(1.5, abs=0.03) and second.var() == pytest.approx(1, abs=0.02)
    assert not ShiftedGaussians(Settings(name="", shift="none"), 10).different.any()


def test_too_few_examples_for_blocks_are_refused():
    method, data = PSIMMD(estimator="block", block_size=8), ShiftedGaussians(Settings(name=""), 10)
    generator = numpy.random.default_rng(0)
    with pytest.raises(UserError, match="fewer than two blocks"):
        method.measure(*data.draw(generator), generator)


def test_a_file_of_features_is_tested_once(tmp_path):
    generator = numpy.random.default_rng(0)
    x, y = generator.normal(size=(400, 6)), generator.normal(size=(500, 6))
    x[:, 4] += 1
    numpy.savez(tmp_path / "mine.npz", x=x, y=y)
    words = ("method=psi_mmd", "dataset=two_sample_file", f"dataset.path={tmp_path / 'mine.npz'}", "method.selected=2")
    answer = runner(*words, "method.pairs_per_sample=10", "hardware=cpu", "tracking=none", place=tmp_path)
    assert answer.code == 0, answer.err
    rows = list(csv.DictReader((answer.folder / "artifacts" / "features.csv").open()))
    assert rows[0]["feature"] == "4" and float(rows[0]["p"]) < 0.01
    assert answer.result["metrics"]["selected"] == 2 and answer.result["metrics"]["rejected"] >= 1


def test_candidates_are_compared_with_real_ones_and_the_nearest_kept(tmp_path):
    generator = numpy.random.default_rng(0)
    candidates = generator.normal(size=(5, 300, 3)) + numpy.array([2.0, 0.0, 3.0, 1.0, 2.5])[:, None, None]
    numpy.savez(tmp_path / "generators.npz", candidates=candidates, real=generator.normal(size=(300, 3)))
    words = ("method=psi_mmd", "dataset=two_sample_file", f"dataset.path={tmp_path / 'generators.npz'}")
    more = ("method.selected=1", "method.select=smallest", "hardware=cpu", "tracking=none")
    answer = runner(*words, *more, place=tmp_path)
    assert answer.code == 0, answer.err
    rows = list(csv.DictReader((answer.folder / "artifacts" / "features.csv").open()))
    assert [row["feature"] for row in rows] == ["1"] and answer.result["metrics"]["rejected"] == 0


def test_files_that_are_no_two_samples_are_refused(tmp_path):
    numpy.savez(tmp_path / "wrong.npz", x=numpy.zeros((5, 2)))
    words = ("method=psi_mmd", "dataset=two_sample_file", "scale=smoke")
    answer = runner(*words, f"dataset.path={tmp_path / 'wrong.npz'}", place=tmp_path)
    assert answer.code == 2 and "two samples are x (n, d) and y (m, d)" in answer.message
    answer = runner(*words, place=tmp_path)
    assert answer.code == 2 and "needs dataset.path=FILE.npz" in answer.message


@pytest.mark.filterwarnings("error")
def test_features_that_are_mostly_equal_are_compared_and_constant_ones_tell_nothing():
    generator = numpy.random.default_rng(0)
    first, second = (generator.random((3, 400, 1)) * (generator.random((3, 400, 1)) < share) for share in (0.02, 0.3))
    first[1], second[1] = generator.random((2, 400, 1)) * (generator.random((2, 400, 1)) < 0.02)
    first[2] = second[2] = 1.0
    method = PSIMMD(selected=3, pairs_per_sample=5)
    found = method.measure(first, second, generator)
    chosen = method.choose(found.values)
    p = method.p_values(found, chosen)
    assert chosen[0] == 0 and tails(found)[0] < 1e-6 and p[0] < 0.01
    assert p[chosen == 2] == tails(found)[2] == 0.5
