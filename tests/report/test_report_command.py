"""runner report: what it reads, writes and refuses; the page's values without a browser."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from runner.cli import main
from runner.report import page as page_module
from runner.report.page import embedded, page


def values_of(file: Path) -> dict:
    """What the page holds, read as a browser reads it: the element ends at the first end tag."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script', file.read_text(), re.DOTALL)
    return json.loads(found[1])


def report(capsys, *words: object) -> dict:
    assert main(["report", *map(str, words)]) == 0
    return values_of(Path(capsys.readouterr().out.splitlines()[-1]))


def refused(capsys, *words: object) -> str:
    assert main(["report", *map(str, words)]) == 2
    return capsys.readouterr().err


def by_key(values: dict) -> dict[str, dict]:
    return {run["key"]: run for run in values["runs"]}


def test_the_page_stands_beside_the_runs_and_links_to_them(runs, capsys):
    assert main(["report"]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    assert path == runs / "report.html"
    values = values_of(path)
    assert len(values["runs"]) == 5
    for run in values["runs"]:
        assert (runs / unquote(run["link"])).samefile(runs / run["name"])
    elsewhere = runs.parent / "a b" / "page.html"
    for run in report(capsys, runs, "--output", elsewhere)["runs"]:
        assert (elsewhere.parent / unquote(run["link"])).samefile(runs / run["name"])
    assert not list(runs.parent.rglob("*.partial"))


def test_a_row_tells_settings_numbers_and_errors(runs, capsys):
    found = by_key(report(capsys, runs))
    run = found["bbbb00000002"]
    assert {"recipe.epochs=7", "method.target_rate=0.6"} <= set(run["settings"])
    assert (run["method"], run["scale"], run["seed"], run["state"]) == ("ekg", "smoke", 1, "done")
    assert run["metrics"] == {"accuracy": 0.7, "loss": 0.9}
    assert run["profile"]["final"] == {"params": 30_000, "flops": 3_000_000, "latency_ms.1": 6, "latency_ms.64": 120}
    assert run["machine"] == "beta · Some CPU" and run["latency_machine"].endswith("cpu, threads: 2")
    failed = found["bbbb00000003"]
    assert failed["error"] == "ValueError: loss is nan" and failed["machine"] == "alpha · Some CPU"
    assert "latency_machine" not in failed
    lengths = {(curve["phase"], curve["metric"]): len(curve["values"]) for curve in run["curves"]}
    assert lengths == {("search", "loss"): 5, ("fine_tune", "loss"): 30, ("fine_tune", "accuracy_validation"): 30}


def test_shared_cells_count_once(runs, capsys):
    path = runs / "ekg-resnet20-digits/bbbb00000001/result.json"
    cells = {
        "search": {"seconds": 2.0, "run": "ekg-resnet20-digits/bbbb00000002", "reused": False},
        "search/baseline": {"seconds": 1.0, "run": "supervised-resnet20-digits/aaaa00000001", "reused": False},
        "teacher": {"seconds": 1.0, "run": "supervised-resnet20-digits/aaaa00000001", "reused": True},
        "deleted": {"seconds": 1.0, "run": "supervised-resnet20-digits/gone", "reused": False},
        "fine_tune": {"seconds": 3.0},
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 10.0, "phases": cells}))
    run = by_key(report(capsys, runs))["bbbb00000001"]
    assert (run["seconds"], run["seconds_own"]) == (10.0, 8.0)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("result.json", '{"metrics": {"accu', "result.json is torn"),
        ("result.json", "[1, 2]", "result.json is torn"),
        ("result.json", '{"metrics": [3], "phases": 7}', "result"),
        ("status.json", "[]", "status.json is torn"),
        ("status.json", '{"updated": "yesterday"}', "state"),
        ("config.yaml", "method: [unclosed", "config.yaml is torn"),
        ("config.yaml", "method: text\nseed: [1]", "config"),
        ("lock.json", "[1]", "state"),
        ("metrics.jsonl", "no json\n", "metrics.jsonl: 1 line is no record"),
    ],
)
def test_a_foreign_or_torn_file_leaves_a_row_with_its_problem(runs, capsys, name, content, problem):
    path = runs / "ekg-resnet20-digits/bbbb00000001"
    if name == "lock.json":
        (path / "result.json").unlink()
    (path / name).write_text(content)
    found = by_key(report(capsys, runs))
    assert len(found) == 5
    assert any(problem in one for one in found["bbbb00000001"]["problems"]), found["bbbb00000001"]["problems"]
    if name == "result.json" and problem != "result":
        assert found["bbbb00000001"]["state"] == "unreadable"
    assert not any(run["problems"] for key, run in found.items() if key != "bbbb00000001")
    assert set(by_key(report(capsys, runs, "accuracy>0.9"))) == {"aaaa00000001", "bbbb00000004"}, "filters pass over it"


def test_no_runs_and_one_run(runs, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert report(capsys, tmp_path / "empty")["runs"] == []
    assert len(report(capsys, "seed=1")["runs"]) == 1
    assert "no run folders" in refused(capsys, tmp_path / "nowhere")


def test_a_table_alone_and_unknown_tables(runs, table, capsys):
    assert len(report(capsys)["tables"]) == 1
    for name in ("knowledge", "ekg/knowledge"):
        values = report(capsys, "--table", name)
        assert [run["name"] for run in values["runs"]] == table["cells"][0]["runs"]
    assert (runs / "report-ekg-knowledge.html").is_file()
    assert "did you mean ekg/knowledge?" in refused(capsys, "--table", "ekg/knowlege")
    (runs / "tables/ekg/torn.json").write_text('{"rows": [')
    (runs / "tables/other.json").write_text('{"rows": [], "columns": [], "cells": ["x"]}')
    assert report(capsys)["unreadable_tables"] == ["tables/ekg/torn.json", "tables/other.json"]


def test_wrong_requests(runs, capsys):
    assert "one folder, got 2" in refused(capsys, "a", "b")
    assert "is a run folder" in refused(capsys, runs / "ekg-resnet20-digits/bbbb00000001")
    assert "cannot write" in refused(capsys, "--output", runs)
    assert "did you mean accuracy" in refused(capsys, "acuracy>0.9")
    assert "paper-runner[figures]" in refused_without_matplotlib(runs)


def fresh(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process that has imported nothing yet."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment)


def refused_without_matplotlib(runs: Path) -> str:
    code = "import sys; sys.modules['matplotlib'] = None; from runner.cli import main; sys.exit(main(sys.argv[1:]))"
    done = fresh(code, "report", str(runs), "--figures")
    assert done.returncode == 2 and not done.stdout
    return done.stderr


def test_torch_and_matplotlib_are_not_imported(runs):
    code = (
        "import sys; from runner.cli import main; code = main(['report', sys.argv[1]]); "
        "print(code, *{'torch', 'matplotlib', 'pandas'} & set(sys.modules))"
    )
    assert fresh(code, str(runs)).stdout.splitlines() == [str(runs / "report.html"), "0"]


@pytest.mark.parametrize(
    "text", ["</script><script>alert(1)</script>", "<!--<script>", "]]>", "\u2028\u2029", "\ud800"]
)
def test_embedded_text_never_leaves_its_element(text):
    found = embedded({"name": text, text: [text]})
    assert not set("<>&\u2028\u2029\ud800") & set(found)
    assert json.loads(found) == {"name": text, text: [text]}


def test_numbers_that_json_lacks_are_texts():
    assert (
        embedded([float("nan"), float("inf"), float("-inf"), 1.5, True, None]) == '["nan","inf","-inf",1.5,true,null]'
    )


def test_the_page_loads_nothing():
    text = page({"title": "{{script}} {{style}}"})
    assert '"title":"{{script}} {{style}}"' in text, "what is put in is not a template"
    code = "".join(file.read_text() for file in page_module.WEB.iterdir())
    for word in (
        "http:",
        "https:",
        "@import",
        "url(",
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "eval(",
        "fetch(",
    ):
        assert word not in code.replace("http://www.w3.org/2000/svg", ""), word
    assert {file.stem for file in page_module.WEB.glob("*.js")} == set(page_module.SCRIPTS)
