"""Intervals and verdicts, against SciPy and at the borders."""

import math

import pytest
from scipy import stats

from runner.tables.verdicts import cell_verdict, compare, summarise, tolerance_of, welch

VALUES = [93.78, 93.91, 93.60, 94.02, 93.85]
OTHERS = [93.44, 93.56, 93.40, 93.60, 93.51, 93.39]


def test_a_summary_is_scipys():
    found = summarise(VALUES)
    interval = stats.ttest_1samp(VALUES, 0).confidence_interval(0.95)
    assert (found.n, found.mean) == (5, pytest.approx(sum(VALUES) / 5))
    assert found.sd == pytest.approx(stats.tstd(VALUES))
    assert found.interval == pytest.approx(tuple(interval))


def test_one_value_has_no_spread_and_none_no_summary():
    assert summarise([]) is None
    assert (summarise([2.0]).sd, summarise([2.0]).interval) == (None, None)


def test_the_interval_of_two_values_by_hand():
    """0 and 2: mean 1, sd sqrt 2, half-width t(1) * sd / sqrt 2 = 12.7062."""
    low, high = summarise([0.0, 2.0]).interval
    assert (low, high) == (pytest.approx(1 - 12.706204736), pytest.approx(1 + 12.706204736))


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([93.80, 93.82, 93.84], "reproduced"),
        ([93.75, 93.75], "reproduced"),  # on the lower end
        ([93.95, 93.95], "reproduced"),  # on the upper end
        ([93.74, 93.74], "differs"),
        ([93.96, 93.96], "differs"),
        ([93.70, 93.75, 93.80], "inconclusive"),  # straddles the lower end
        ([93.85, 93.95, 94.05], "inconclusive"),  # straddles the upper end
        ([93.0, 93.8, 94.6], "inconclusive"),  # wider than the range
        ([92.0, 92.1, 92.2], "differs"),
        ([93.85], "no verdict"),
        ([], "missing"),
    ],
)
def test_the_verdict_of_a_cell_at_its_borders(values, verdict):
    """Reported 93.85 with spread 0.10: 93.75 to 93.95, ends included."""
    assert cell_verdict(summarise(values), 93.85, 0.10) == verdict


def test_the_tolerance_is_the_spread_else_what_is_stated_else_one_percent():
    assert tolerance_of(93.85, 0.1, 0.5) == 0.1
    assert tolerance_of(93.85, 0.0, 0.5) == 0.0
    assert tolerance_of(93.85, None, 0.5) == 0.5
    assert tolerance_of(-50.0, None, None) == 0.5


def test_shared_seeds_are_paired_as_scipy_does_it():
    left, right = dict(enumerate(VALUES)), dict(enumerate(OTHERS))
    found = compare(left, right, larger=True)
    reference = stats.ttest_rel(VALUES, OTHERS[:5])
    assert (found.test, found.n, found.verdict, found.note) == ("paired t", 5, "holds", "")
    assert found.p == pytest.approx(reference.pvalue)
    assert found.interval == pytest.approx(tuple(reference.confidence_interval(0.95)))
    assert compare(right, left, larger=True).verdict == "contradicted"
    assert compare(right, left, larger=False).verdict == "holds"
    assert compare(left, right, larger=False).verdict == "contradicted"


def test_other_seeds_are_compared_by_welch_as_scipy_does_it():
    left, right = dict(enumerate(VALUES)), {seed + 10: value for seed, value in enumerate(OTHERS)}
    found = compare(left, right, larger=True)
    reference = stats.ttest_ind(VALUES, OTHERS, equal_var=False)
    assert (found.test, found.n, found.verdict) == ("Welch's t", 11, "holds")
    assert found.p == pytest.approx(reference.pvalue)
    assert found.interval == pytest.approx(tuple(reference.confidence_interval(0.95)))


def test_welch_of_equal_sizes_and_spreads_is_students_t():
    difference, interval, p = welch([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    reference = stats.ttest_ind([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert difference == -1
    assert p == pytest.approx(reference.pvalue)
    assert interval == pytest.approx(tuple(reference.confidence_interval(0.95)))


def test_three_pairs_need_a_t_above_4_3_and_the_text_says_so():
    def at(t: float) -> dict[int, float]:
        """Three differences with standard deviation 1 and the t statistic t."""
        return {seed: t / math.sqrt(3) + delta for seed, delta in enumerate((-1.0, 0.0, 1.0))}

    zero = {0: 0.0, 1: 0.0, 2: 0.0}
    assert compare(at(4.31), zero, larger=True).verdict == "holds"
    weak = compare(at(4.29), zero, larger=True)
    assert weak.verdict == "not distinguishable"
    assert "|t| must exceed 4.3" in weak.note


def test_differences_without_spread():
    one, same, more = {0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}, {0: 2.0, 1: 2.0}
    assert compare(one, same, larger=True).verdict == "not distinguishable"
    assert compare(more, one, larger=True).verdict == "holds"
    assert compare(more, one, larger=True).p is None
    assert compare({0: 1.0, 1: 1.0}, {5: 1.0, 6: 1.0}, larger=True).verdict == "not distinguishable"


def test_one_seed_or_none_is_no_verdict():
    for left, right in (({0: 1.0}, {0: 2.0}), ({}, {0: 2.0, 1: 3.0}), ({0: 1.0, 1: 2.0}, {3: 1.0})):
        assert compare(left, right, larger=True).verdict == "no verdict"
