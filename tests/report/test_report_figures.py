"""runner report --figures: PNG and PDF pictures; the front against its definition."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.cli import main
from runner.report.figures import front

NUMBERS = st.integers(0, 6).map(float)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1), st.sampled_from([1, -1]))
def test_the_front_is_what_nothing_beats(points, sign):
    def beaten(one):
        return any(other != one and other[0] <= one[0] and sign * other[1] >= sign * one[1] for other in points)

    assert front(points, sign) == sorted({point for point in points if not beaten(point)})


@pytest.mark.slow
def test_pictures_by_data_set_scale_and_machine(runs, capsys):
    pytest.importorskip("matplotlib")
    assert main(["report", str(runs), "--figures"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [str(runs / "report.html")]
    assert "pictures in" in shown.err and "thinned" not in shown.err
    written = {path.name for path in (runs / "report-figures").iterdir()}
    machine = "Some_CPU_cpu_threads_2"
    names = {
        "curves-loss-digits-smoke",
        "curves-accuracy_validation-digits-smoke",
        *(f"against-accuracy-flops-digits-{scale}" for scale in ("smoke", "desk")),
        *(f"against-accuracy-latency_{batch}-digits-smoke-beta_{machine}" for batch in (1, 64)),
        *(
            f"against-accuracy-latency_{batch}-digits-{scale}-alpha_{machine}"
            for batch in (1, 64)
            for scale in ("smoke", "desk")
        ),
    }
    assert written == {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    for path in (runs / "report-figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"%PDF")
    before = {path: path.read_bytes() for path in (runs / "report-figures").iterdir()}
    assert main(["report", str(runs), "--figures"]) == 0
    assert before == {path: path.read_bytes() for path in (runs / "report-figures").iterdir()}, "the same files again"


def test_names_that_matplotlib_would_read_otherwise(runs, capsys):
    pytest.importorskip("matplotlib")
    path = runs / "ekg-resnet20-digits/bbbb00000001"
    lines = [f'{{"phase": "_a $x_{{", "step": {step}, "time": 1, "cost $/h": 1.0}}\n' for step in (1, 2)]
    (path / "metrics.jsonl").write_text("".join(lines))
    assert main(["report", str(runs), "--figures"]) == 0
    assert [name for name in (runs / "report-figures").iterdir() if re.search("curves-cost_h-.*png", name.name)]
