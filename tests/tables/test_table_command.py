"""`runner table`: runs what is missing, prints, exports, records; in real processes where something runs."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import runner
from forked import repository
from toy_table import TABLE, cell_of, grid_of, pretend, write_table
from user_methods import write_config

from runner.cli import main

SMALL = {
    "title": "Two arms",
    "source": "Author 2020, table 1",
    "overrides": ["method=arm", "model=resnet20", "hardware=cpu", "tracking=none"],
    "seeds": [0, 1],
    "rows": {"low": ["method.level=0.4"], "high": ["method.level=0.6"], "broken": ["method.fails_at=[1]"]},
    "columns": {"digits": [], "best": {"metric": "accuracy_best_validation"}},
    "reported": {"high": {"digits": 61.0}},
    "claims": [{"text": "high beats low", "left": "high", "right": "low"}],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where the commands run: <place>/work, with configs in <place>/configs."""
    place = tmp_path_factory.mktemp("table")
    write_config(place / "configs", "arm", "user_methods:Arm", {"level": 0.5, "fails_at": []})
    write_table(place / "configs", SMALL, "toy/two")
    return place


def table(place: Path, *words: str, name: str = "toy/two"):
    return runner("table", name, "scale=smoke", "--config-dir", place / "configs", *words, place=place)


@pytest.fixture(scope="module")
def first(place):
    return table(place)


def finished(place: Path) -> dict[Path, float]:
    """Every result below the runs, with the time it was written."""
    return {path: path.stat().st_mtime for path in (place / "work/runs").glob("arm-*/*/result.json")}


def test_a_failing_cell_does_not_take_the_table_with_it(first, place):
    assert first.code == 1, first.err
    path = Path(first.out.splitlines()[-1])
    assert path == place / "work/runs/tables/toy/two-smoke.json"
    found = json.loads(path.read_text())
    assert cell_of(found, "high", "digits")["mean"] == pytest.approx(60.5)
    broken = cell_of(found, "broken", "digits")
    assert (broken["n"], broken["seeds_asked"]) == (1, 2)
    assert "ArithmeticError: the arm broke" in broken["error"]
    assert "--only broken,digits" in broken["command"]
    assert "the arm broke" in first.err
    assert "60.50 ± 0.71 [54.15, 66.85] n=2" in first.err
    assert "high beats low (digits): " in first.err
    assert all((path.parents[2] / run / "result.json").is_file() for run in broken["runs"])


def test_again_nothing_but_the_failed_cell_runs(first, place):
    before = finished(place)
    again = table(place)
    assert finished(place) == before
    assert again.code == 1
    assert len(before) == 5


def test_a_deleted_result_is_missing_and_runs_again(first, place):
    before = finished(place)
    found = json.loads(Path(first.out.splitlines()[-1]).read_text())
    victim = place / "work/runs" / cell_of(found, "low", "digits")["runs"][0] / "result.json"
    victim.unlink()
    dry = table(place, "--dry")
    assert "low, digits: 1 of 2 stored, 1 to run" in dry.out
    answer = table(place, "--only", "low,digits")
    assert answer.code == 0, "the broken cell was not asked for"
    after = finished(place)
    assert {path for path in after if after[path] != before.get(path)} == {victim}


def test_exports_go_to_standard_output_alone(first, place):
    answer = table(place, "--format", "csv", "--only", "high")
    assert answer.out.startswith("row,column,metric")
    assert answer.out.splitlines()[-1].startswith("high beats low (digits),claim")
    target = place / "work/out.md"
    answer = table(place, "--format", "markdown", "--output", "out.md", "--only", "high")
    assert target.read_text().startswith("# Two arms")


def test_the_record_is_written_and_replaced(first, place):
    file = place / "work/RESULTS.md"
    table(place, "--record", "--only", "high")
    text = file.read_text()
    assert text.count("## Two arms") == 1
    assert "n=2" in text
    assert re.search(r"seeds 0, 1; \d{4}-\d\d-\d\d\.", text)
    file.write_text(text.replace("# Results", "# Our results") + "\nA last word.\n")
    table(place, "--record", "--only", "high")
    again = file.read_text()
    assert again.startswith("# Our results")
    assert again.endswith("A last word.\n")
    assert again.count("## Two arms") == 1


def test_nothing_is_written_outside_the_runs(first, place):
    assert {path.name for path in (place / "work").iterdir()} <= {"runs", "out.md", "RESULTS.md"}


def test_data_that_is_not_there_makes_missing_cells_and_the_others_run(tmp_path):
    """Refused before anything runs, for all seeds at once; a table of refused cells alone is a wrong request."""
    configs = write_config(tmp_path / "configs", "arm", "user_methods:Arm", {"level": 0.5, "fails_at": []})
    content = copy.deepcopy(SMALL)
    del content["rows"]["broken"], content["columns"]["best"]
    content["columns"]["their images"] = ["dataset=image_folder", "dataset.image_size=32"]
    write_table(configs, content, "toy/two")
    answer = table(tmp_path)
    assert answer.code == 1
    found = json.loads(Path(answer.out.splitlines()[-1]).read_text())
    assert [cell["n"] for cell in found["cells"]] == [2, 0, 2, 0]
    assert "dataset.path" in cell_of(found, "low", "their images")["error"]
    answer = table(tmp_path, "--only", "*,their images", "paths.runs=empty")
    assert answer.code == 2
    assert "dataset.path" in answer.message


# ---- without running -----------------------------------------------------------------------------------------------


def test_the_plan_and_a_finished_table_need_no_torch(configs):
    """In a process of its own: planning, statistics and every form of the output."""
    grid = grid_of(configs)
    pretend(grid)
    code = (
        "import sys; from runner.cli import main; "
        f"words = ['table', 'toy/arms', 'scale=paper', '--config-dir', {str(configs)!r}]; "
        "codes = [main([*words, *more]) for more in (['--dry'], [], ['--format', 'html'])]; "
        "heavy = [name for name in ('torch', 'torchvision', 'wandb', 'pandas', 'sklearn') if name in sys.modules]; "
        "sys.exit(f'{codes} {heavy}' if any(codes) or heavy else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (repository(), repository() / "tests")))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "differs" in done.stderr


def test_the_user_chooses_seeds_and_the_plan_says_what_would_run(configs, capsys):
    assert main(["table", "toy/arms", "--dry", "seed=7,8", "--config-dir", str(configs)]) == 0
    out = capsys.readouterr().out
    assert "toy/arms at scale=desk" in out
    assert "6 runs in all, 6 to run: 6 runs of a kind that was never run here; 1 cell is only reported" in out
    assert "method=arm model=resnet20 hardware=cpu method.level=0.4" in out
    assert not Path("runs").exists()


def test_a_table_as_it_stands_without_running(configs, capsys):
    assert (
        main(["table", "toy/arms", "scale=paper", "--dry", "--format", "markdown", "--config-dir", str(configs)]) == 0
    )
    text = capsys.readouterr().out
    assert "| high | missing<br>reported 75.00 |" in text
    assert f"everything; all of it: runner --config-dir {configs} table toy/arms scale=paper" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "table takes one name, as PAPER/TABLE: no name was given"),
        (["toy/arsm"], "unknown table 'toy/arsm'; did you mean toy/arms"),
        (["toy/arms", "toy/arms2"], "takes one name"),
        (["toy/arms", "scale=paepr"], "unknown scale 'paepr' .*did you mean paper"),
        (["toy/arms", "seed=a"], "'seed=a': expected whole numbers"),
        (["toy/arms", "--output", "x"], "--output x needs a --format"),
        (["toy/arms", "--dry", "--record"], "--dry runs and stores nothing"),
        (["toy/arms", "--fromat", "csv"], "unknown option '--fromat'; did you mean --format"),
        (["toy/arms", "--format", "excel"], "invalid choice: 'excel'"),
        (["toy/arms", "method.levle=1"], "method.levle"),
        (["toy/arms", "--only", "x,y", "--dry"], "--only 'x,y': no such ROW,COLUMN"),
    ],
)
def test_a_wrong_request_is_one_message(configs, capsys, words, message):
    assert main(["table", *words, "--config-dir", str(configs)]) == 2
    err = capsys.readouterr().err
    assert re.search(message, err), err
    assert len(err.splitlines()) == 1


def test_the_lists_show_tables(configs, capsys):
    for words in (["table", "--list"], ["list", "tables"]):
        assert main([*words, "--config-dir", str(configs)]) == 0
        out = capsys.readouterr().out
        assert re.search(r"^toy/arms +Arms & levels, 100% toy$", out, re.MULTILINE)
        assert "ekg/knowledge_ablation" in out


def test_help_is_the_text_of_the_module(capsys):
    assert main(["table", "--help"]) == 0
    assert "--only ROW,COLUMN" in capsys.readouterr().out


def test_a_record_needs_a_measured_cell(configs, capsys):
    content = copy.deepcopy(TABLE)
    content["rows"] = {"theirs": "reported"}
    content |= {"claims": [], "reported": {"theirs": {"digits": 1.0}}}
    write_table(configs, content)
    assert main(["table", "toy/arms", "--record", "--config-dir", str(configs)]) == 2
    assert "nothing to record" in capsys.readouterr().err


def test_the_analysis_stands_under_the_table(first, place):
    """Per-example scores of both arms, two seeds each; the arms differ by 0.2 on 20 examples."""
    pytest.importorskip("runner.statistics")
    answer = table(place, "--analyse", "--format", "markdown", "--only", "high")
    assert answer.code == 0, answer.err
    analysis = answer.out.partition("Analysis of digits")[2]
    assert "low" in analysis
    assert "high" in analysis
    assert "Analysis of best" not in answer.out, "the same runs again"
