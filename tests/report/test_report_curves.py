"""Curves out of metrics.jsonl: nothing but points of the file, extremes kept, foreign lines counted."""

import json
import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.report.curves import Curve, fit_budget, read_curves


def curve(values) -> Curve:
    return Curve("train", "loss", array("d", range(len(values))), array("d", values), total=len(values))


@given(
    st.lists(st.floats(-1e3, 1e3) | st.just(math.nan), min_size=1, max_size=300),
    st.integers(4, 50),
    st.integers(4, 50),
)
def test_thinning_keeps_ends_and_extremes(values, limit, again):
    thin = curve(values)
    thin.thin(limit)
    thin.thin(again)
    assert len(thin.values) == len(thin.steps) <= max(4, min(len(values), limit, again))
    assert list(thin.steps) == sorted(set(thin.steps)), "steps in order, none twice"
    for step, value in zip(thin.steps, thin.values, strict=True):
        assert repr(value) == repr(values[int(step)]), "every point is one of the file"
    finite = [value for value in values if math.isfinite(value)]
    kept = [value for value in thin.values if math.isfinite(value)]
    assert (thin.steps[0], thin.steps[-1]) == (0, len(values) - 1)
    assert not finite or (min(kept), max(kept)) == (min(finite), max(finite))


def test_the_budget_is_shared_and_short_curves_stay_whole():
    curves = [curve([0.0, 1.0] * 5), curve([0.0, 1.0] * 500), curve([0.0, 1.0] * 400)]
    fit_budget(curves, 210)
    assert [len(one.values) for one in curves] == [10, 100, 100]


def test_lines_that_are_no_records_are_counted(tmp_path):
    good = [{"phase": "a", "step": step, "time": 9.0, "loss": 0.5, "note": "text", "flag": True} for step in (1, 2)]
    nan = {"phase": "a", "step": 3, "time": 9.0, "loss": "nan"}
    lines = [*map(json.dumps, [*good, nan]), "{torn", "[1]", '{"step": 1}', '{"phase": "a", "step": "x"}']
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join(lines) + '\n{"phase": "a", "step": 4, "lo')
    found, bad = read_curves(file, 100)
    assert bad == 4, "the torn last line may be one that is being written"
    loss = next(one for one in found if one.metric == "loss")
    assert (list(loss.steps), loss.total, loss.not_finite) == ([1, 2, 3], 3, 1)
    assert list(loss.values[:2]) == [0.5, 0.5] and math.isnan(loss.values[2])
    assert "note" not in {one.metric for one in found}
    assert read_curves(tmp_path / "absent", 100) == ([], 0)


def test_bytes_that_are_no_text_do_not_stop_the_reading(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'\xff\xfe\n{"phase": "a", "step": 1, "loss": 2}\n')
    found, bad = read_curves(file, 100)
    assert bad == 1 and found[0].values[0] == pytest.approx(2)
