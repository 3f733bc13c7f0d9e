"""The page in a headless Chromium: it draws without complaints, filters, sorts, compares; hostile texts stay texts."""

import json
import shutil
from pathlib import Path

import browser
import pytest
from browser import Browser

from runner.cli import main

pytestmark = pytest.mark.skipif(browser.PROGRAM is None, reason="needs a chromium")


@pytest.fixture
def opened(tmp_path, capsys):
    """Writes a report with the given words and opens it; afterwards the page must have complained of nothing."""
    with Browser(tmp_path / "profile") as page:

        def open_page(*words: object) -> Browser:
            assert main(["report", *map(str, words)]) == 0
            page.open(Path(capsys.readouterr().out.splitlines()[-1]))
            return page

        yield open_page
        page.value("new Promise(done => setTimeout(done, 50))")
        assert page.complaints == []


def shown_keys(page: Browser) -> list[str]:
    rows = "[...document.querySelectorAll('#runs tbody tr')].filter(row => !row.hidden)"
    return page.value(f"{rows}.map(row => row.querySelector('a').textContent)")


def choose(page: Browser, name: str, value: str) -> None:
    select = f"document.getElementById('{name}')"
    page.value(f"{select}.value = {json.dumps(value)}, {select}.dispatchEvent(new Event('change'))")
    assert page.value(f"{select}.value") == value


def search(page: Browser, text: str) -> None:
    page.value(f"search.value = {json.dumps(text)}, search.dispatchEvent(new Event('input'))")


def tick(page: Browser, *keys: str) -> None:
    for key in keys:
        page.value(f"document.querySelector('input[aria-label$=\"{key}\"]').click()")


def text_of(page: Browser, selector: str) -> str:
    return page.value(f"document.querySelector('{selector}').innerText")


ALL = ["aaaa00000001", "bbbb00000001", "bbbb00000002", "bbbb00000003", "bbbb00000004"]


def test_filters_and_sorting(runs, opened):
    page = opened(runs)
    assert sorted(shown_keys(page)) == ALL
    choose(page, "filter-method", "ekg")
    choose(page, "filter-state", "done")
    assert sorted(shown_keys(page)) == ["bbbb00000001", "bbbb00000002", "bbbb00000004"]
    search(page, "EPOCHS=7 rate=0.6")
    assert shown_keys(page) == ["bbbb00000002"]
    assert "1 of 5 runs shown" in text_of(page, "#count")
    page.value("reset.click()")
    assert sorted(shown_keys(page)) == ALL
    search(page, "loss is nan")
    assert shown_keys(page) == ["bbbb00000003"], "errors are searched too"
    search(page, "")
    column = "document.querySelector('[data-column=\"metric accuracy\"]')"
    expected = ["bbbb00000002", "bbbb00000001", "aaaa00000001", "bbbb00000004"]
    for order, keys in (("ascending", expected), ("descending", expected[::-1])):
        page.value(f"{column}.querySelector('button').click()")
        assert shown_keys(page) == [*keys, "bbbb00000003"], "a missing value stands last both ways"
        assert page.value(f"{column}.getAttribute('aria-sort')") == order


def test_every_row_says_its_scale(runs, opened):
    page = opened(runs)
    column = "[...document.querySelectorAll('#runs thead th')].findIndex(cell => cell.innerText.trim() === 'Scale')"
    cells = f"[...document.querySelectorAll('#runs tbody tr')].map(row => row.cells[{column}].innerText)"
    assert sorted(page.value(cells)) == ["desk"] + ["smoke"] * 4
    assert "5 runs of 5 at desk or smoke scale: demonstrations" in text_of(page, "#overview")


def test_a_column_can_be_added(runs, opened):
    page = opened(runs)
    assert page.value("document.querySelector('[data-column=\"latency 64\"]')") is None
    box = "[...document.querySelectorAll('.columns label')].find(one => one.textContent.includes('batch 64'))"
    page.value(f"{box}.querySelector('input').click()")
    assert page.value("document.querySelectorAll('[data-column=\"latency 64\"]').length") == 1
    assert sorted(shown_keys(page)) == ALL


def test_curves_have_a_plot_for_every_phase(runs, opened):
    page = opened(runs)
    choose(page, "curve-metric", "loss")
    tick(page, "bbbb00000001")
    titles = "[...document.querySelectorAll('#curves svg .title')].map(one => one.textContent)"
    assert page.value(titles) == ["search", "fine_tune"]
    paths = "[...document.querySelectorAll('#curves .panel path')]"
    points = f"{paths}.map(one => one.getAttribute('d').split(/[ML]/).length - 1)"
    assert page.value(points) == [5, 30]
    tick(page, "bbbb00000002")
    assert page.value(points) == [5, 5, 30, 30]
    choose(page, "curve-metric", "accuracy_validation")
    assert page.value(titles) == ["fine_tune"]
    assert "Thinned" not in text_of(page, "#curve-note")


def test_a_thinned_curve_says_so(runs, opened):
    lines = [{"phase": "train", "step": step, "time": 1.0, "loss": step % 7} for step in range(5000)]
    lines[60]["loss"] = "nan"
    file = runs / "ekg-resnet20-digits/bbbb00000001/metrics.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    page = opened(runs, "state=done", "seed=0", "accuracy=0.9")
    note = text_of(page, "#curve-note")
    assert "of 5,000 points" in note and "1 value not finite" in note


def test_the_front_is_within_one_data_set_scale_and_machine(runs, opened):
    page = opened(runs)
    marks = "[...document.querySelectorAll('#pareto .panel .mark')].map(one => one.dataset.run.split('/')[1]).sort()"
    choose(page, "pareto-group", "digits · smoke")
    assert page.value(marks) == ["aaaa00000001", "bbbb00000001", "bbbb00000002"]
    front = "[...document.querySelectorAll('#front tbody tr a')].map(one => one.textContent.split('/')[1])"
    assert page.value(front) == ["bbbb00000001", "aaaa00000001"], "the third is slower and worse than the first"
    choose(page, "pareto-cost", "latency_ms.64")
    assert page.value(marks) == ["aaaa00000001", "bbbb00000001"], "the other machine's latency stands apart"
    choose(page, "pareto-machine", "beta · Some CPU · cpu, threads: 2")
    assert page.value(marks) == ["bbbb00000002"]
    choose(page, "pareto-metric", "loss")
    assert page.value("document.getElementById('pareto-better').value") == "lower"
    search(page, "supervised")
    assert page.value(marks) == ["aaaa00000001"], "the plot follows the filters of the table"


def test_two_ticked_runs_are_compared(runs, opened):
    page = opened(runs)
    tick(page, "bbbb00000001", "bbbb00000002")
    cells = "[...table.tBodies[0].rows].map(row => [...row.cells].map(cell => cell.innerText))"
    rows = f"[...document.querySelectorAll('#differences table')].map(table => {cells})"
    settings, numbers = page.value(rows)
    assert [row[2] for row in settings if row[0] == "recipe.epochs"] == ["7"]
    assert [row[1:] for row in settings if row[0] == "seed"] == [["0", "1"]]
    assert ["accuracy", "0.9000", "0.7000", "-0.2000"] in numbers
    names = {row[0] for row in settings}
    assert "hardware.host (code)" not in names
    page.value("others.click()")
    assert "hardware.host (code)" in {row[0] for row in page.value(rows)[0]}
    choose(page, "second", page.value("document.getElementById('first').value"))
    assert "No setting differs" in text_of(page, "#differences")


def test_tables_show_measured_beside_reported_and_the_verdict(runs, table, opened):
    page = opened(runs, "--table", "ekg/knowledge")
    shown = text_of(page, "#tables")
    measured = ("0.9000 (n = 1)", "reported 93.69 ± 0.1", "no verdict", "missing", "not measured")
    about = ("scale smoke", "not under the paper's protocol", "ekg: official", "ekg: one crop")
    for words in (*measured, *about, "ensemble > single", "holds"):
        assert words in shown, words
    link = page.value("document.querySelector('#tables .cells a').getAttribute('href')")
    assert link == f"./{table['cells'][0]['runs'][0]}"
    assert shown_keys(page) == ["bbbb00000001"]


HOSTILE = "</script><script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>"


def test_hostile_texts_stay_texts(runs, table, opened):
    path = runs / "ekg-resnet20-digits/bbbb00000001"
    result = json.loads((path / "result.json").read_text())
    result["metrics"][HOSTILE] = 1.0
    result["hardware"] |= {"host": HOSTILE, "processor": "javascript:alert(1)"}
    (path / "result.json").write_text(json.dumps(result))
    line = {"phase": HOSTILE, "step": 1, "time": 1.0, HOSTILE: 1.0}
    (path / "metrics.jsonl").write_text(f"{json.dumps(line)}\n")
    config = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(config + f'extra: {{"note": {json.dumps(HOSTILE)}}}\n')
    (runs / "ekg-resnet20-digits/bbbb00000003/error.txt").write_text(HOSTILE)
    folder = runs / "javascript:window.hurt=1" / "<script>window.hurt = 1<"  # a folder's name cannot hold a slash
    folder.parent.mkdir()
    shutil.copytree(path, folder)
    text = json.dumps(table | {"title": HOSTILE, "source": HOSTILE, "rows": [HOSTILE, *table["rows"]]})
    (runs / "tables/ekg/hostile.json").write_text(text)
    page = opened(runs)
    assert page.value("window.hurt") is None
    assert page.value("document.querySelectorAll('img, script:not(#data)').length") == 1
    assert page.value("document.querySelectorAll('a[href^=\"javascript\"]').length") == 0
    assert "<script>window.hurt = 1</script>" in text_of(page, "#tables")
    tick(page, "bbbb00000001", "bbbb00000002")
    choose(page, "curve-metric", HOSTILE)
    assert HOSTILE in page.value("document.querySelector('#curves svg .title').textContent")
    links = "[...document.querySelectorAll('#runs tbody a')].map(one => one.href)"
    assert all(link.startswith("file:///") for link in page.value(links))
    assert page.value("window.hurt") is None


def test_nothing_and_one_run(runs, tmp_path, opened):
    (tmp_path / "empty").mkdir()
    page = opened(tmp_path / "empty")
    assert "There are no runs here yet" in text_of(page, "#overview")
    page = opened(runs, "state=failed")
    assert shown_keys(page) == ["bbbb00000003"]
    assert "There are no two runs" in text_of(page, "#difference")


@pytest.mark.slow
def test_two_thousand_runs(runs, opened):
    first = runs / "ekg-resnet20-digits/bbbb00000001"
    for number in range(2000 - 5):
        shutil.copytree(first, runs / "ekg-resnet20-digits" / f"cccc{number:08d}")
    page = opened(runs)
    assert "2,000 of 2,000 runs shown" in text_of(page, "#count")
    search(page, "cccc00001")
    assert len(shown_keys(page)) == 995
    page.value("document.querySelector('[data-column=\"metric accuracy\"] button').click()")
    assert page.value("document.querySelectorAll('#pareto .mark[data-run]').length") == 995


def test_narrow_and_dark(runs, tmp_path):
    assert main(["report", str(runs)]) == 0
    with Browser(tmp_path / "profile", width=700, dark=True) as page:
        page.open(runs / "report.html")
        assert page.value("document.documentElement.scrollWidth <= innerWidth"), "only tables scroll sideways"
        assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
        assert page.complaints == []
