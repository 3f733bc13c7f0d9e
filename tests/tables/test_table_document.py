"""What a table says about stored results: means, verdicts, claims, axes, and its four exports."""

import copy
import csv
import io
import json
import math
import re
from html.parser import HTMLParser

import pytest
from toy_table import TABLE, cell_of, grid_of, made, pretend, write_table
from user_methods import write_config

from runner.errors import UserError
from runner.tables.document import document
from runner.tables.fill import estimate, pending, plan_lines, store
from runner.tables.formats import digits_for, export, reported_text
from runner.tables.grid import parse_only
from runner.tables.record import record


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """The toy table at scale=paper with all results; read only."""
    place = tmp_path_factory.mktemp("filled")
    configs = write_config(place / "configs", "arm", "user_methods:Arm", {"level": 0.5, "fails_at": []})
    write_table(configs, TABLE)
    grid = grid_of(configs, "paper", f"paths.runs={place / 'runs'}")
    pretend(grid)
    return document(grid, place / "runs")


def test_mean_spread_interval_and_n_stand_together(filled):
    """Levels 0.6 + 0, 0.01, 0.02, 0, 0.01: mean 60.8, sd 0.8367, t(4) = 2.7764, half-width 1.0389."""
    cell = cell_of(filled, "high", "digits")
    assert (cell["n"], cell["unit"], cell["metric"]) == (5, "%", "accuracy")
    assert cell["mean"] == pytest.approx(60.8)
    assert cell["sd"] == pytest.approx(0.83666, abs=1e-5)
    assert cell["interval"] == pytest.approx([59.76114, 61.83886], abs=1e-5)


def test_a_verdict_for_every_measured_cell_with_a_reported_number(filled):
    """low: 40.8 +- 1.04 in 41 +- 1.5; high: 60.8 against 75 +- 0.5; longer: 50.8 +- 1.04 is wider than 51 +- 0.5."""
    verdicts = {(cell["row"], cell["column"]): cell["verdict"] for cell in filled["cells"]}
    assert verdicts["low, plain", "digits"] == "reproduced"
    assert verdicts["high", "digits"] == "differs"
    assert verdicts["longer", "digits"] == "inconclusive"
    assert verdicts["theirs", "digits"] == "reported only"
    assert verdicts["low, plain", "search"] == "", "times are not judged"
    assert verdicts["high", "digits: accuracy_best_validation"] == "", "the reported number is the last epoch's"
    assert cell_of(filled, "low, plain", "digits")["difference"] == pytest.approx(-0.2)
    assert cell_of(filled, "low, plain", "digits")["tolerance"] == 1.5


def test_last_and_best_epoch_stand_apart(filled):
    assert filled["columns"] == ["digits", "digits: accuracy_best_validation", "search"]
    last, best = (cell_of(filled, "high", column)["mean"] for column in filled["columns"][:2])
    assert best - last == pytest.approx(2.0)


def test_claims_are_paired_and_judged_by_the_metrics_direction(filled):
    verdicts = {claim["text"]: claim["verdict"] for claim in filled["claims"]}
    assert verdicts == {
        "high beats low (digits)": "holds",
        "low is quicker": "holds",
        "low beats high (digits)": "contradicted",
    }
    claim = filled["claims"][0]
    assert (claim["test"], claim["n"], claim["level"]) == ("paired t", 5, 0.95)
    assert claim["difference"] == pytest.approx(20.0)


@pytest.mark.parametrize("scale", ["desk", "smoke"])
def test_a_demonstration_never_reproduces_the_papers_number(configs, scale):
    grid = grid_of(configs, scale)
    pretend(grid)
    found = made(grid)
    for cell in found["cells"]:
        assert cell["difference"] is None
        assert cell["verdict"] in ("", "reported only")
    for form in ("markdown", "latex", "html"):
        text = export(found, form)
        assert "paper scale: 41.00" in text.replace("\\", "")
        assert "not the paper's protocol" in text.replace("&#x27;", "'")
        assert "reproduced" not in text
    weak = found["claims"][0]
    assert (weak["verdict"], weak["n"]) == ("holds", 2 if scale == "desk" else 3)
    assert "five or more are advised" in weak["note"]


def test_one_seed_is_no_verdict(configs):
    grid = grid_of(configs, seeds=[0])
    pretend(grid)
    found = made(grid)
    assert cell_of(found, "high", "digits")["verdict"] == "no verdict"
    assert {claim["verdict"] for claim in found["claims"]} == {"no verdict"}


def test_changed_settings_are_no_verdict_and_are_printed(configs):
    grid = grid_of(configs, "paper", "recipe.epochs=1", "hardware.threads=1")
    pretend(grid)
    found = made(grid)
    assert cell_of(found, "high", "digits")["verdict"] == "no verdict: settings changed"
    assert "Settings of this call: recipe.epochs=1 hardware.threads=1" in export(found, "markdown")
    same = grid_of(configs, "paper", "hardware.threads=1", "paths.runs=elsewhere")
    pretend(same)
    assert cell_of(made(same), "high", "digits")["verdict"] == "differs"


def test_missing_cells_say_which_command_fills_them(configs):
    grid = grid_of(configs)
    pretend(grid, rows=("high",))
    found = made(grid)
    cell = cell_of(found, "low, plain", "digits")
    assert (cell["verdict"], cell["n"], cell["runs"]) == ("missing", 0, [])
    command = f"runner --config-dir {configs} table toy/arms scale=paper --only 'low, plain,digits'"
    assert cell["command"] == command
    assert cell_of(found, "high", "digits")["command"] is None
    assert command in export(found, "markdown")
    assert [claim["verdict"] for claim in found["claims"]] == ["no verdict"] * 3


def test_the_record_says_nothing_about_where_somebody_keeps_runs(configs, tmp_path):
    grid = grid_of(configs, "paper", "paths.data=/my/data", "hardware.threads=1", f"paths.runs={tmp_path}/my runs")
    pretend(grid, rows=("high",))
    record(made(grid), tmp_path / "R.md")
    text = (tmp_path / "R.md").read_text()
    assert "paths." not in text and "my runs" not in text
    assert (
        f"runner --config-dir {configs} table toy/arms scale=paper hardware.threads=1 --only 'low, plain,digits'"
        in text
    )
    assert f"Command: `runner --config-dir {configs} table toy/arms scale=paper hardware.threads=1`" in text


def test_some_seeds_missing_count_what_is_there(configs):
    grid = grid_of(configs)
    pretend(grid)
    grid.cell("high", "digits").runs[1].plan.folder.result_path.unlink()
    grid.cell("high", "digits").runs[2].plan.folder.result_path.write_text("{torn")
    grid.forget()
    cell = cell_of(made(grid), "high", "digits")
    assert (cell["n"], cell["seeds_asked"]) == (3, 5)
    assert "n=3 of 5" in export(made(grid), "markdown")
    assert [run.seed for run in pending(grid)] == [1, 2], "a deleted and a torn result are run again, nothing else"


def test_a_changed_default_affects_its_cells_alone(configs):
    grid = grid_of(configs)
    pretend(grid)
    content = copy.deepcopy(TABLE)
    content["rows"]["high"] = ["method.level=0.7"]
    write_table(configs, content)
    after = grid_of(configs)
    assert {run.plan.config["method"]["level"] for run in pending(after)} == {0.7}
    assert len(pending(after)) == 5


def test_older_code_is_shown(configs):
    grid = grid_of(configs)
    pretend(grid)
    path = grid.cell("high", "digits").runs[0].plan.folder.result_path
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code": "older"}))
    grid.forget()
    found = made(grid)
    assert [cell["row"] for cell in found["cells"] if cell["stale"]] == ["high"] * 3
    assert "stale code" in export(found, "markdown")


def test_a_metric_that_a_result_lacks_is_a_missing_value_not_an_error(configs):
    content = copy.deepcopy(TABLE)
    content["metrics"]["search"]["name"] = "phases.search.seconds"
    write_table(configs, content)
    grid = grid_of(configs)
    pretend(grid)
    cell = cell_of(made(grid), "high", "search")
    assert (cell["verdict"], cell["n"]) == ("missing", 0)
    assert "no metric 'phases.search.seconds'" in cell["error"]


def test_claims_refuse_cells_that_differ_in_more_than_the_rows_say(configs):
    """A recipe that a column's choice brings along for one row alone: rows say method.level, not the epochs."""
    content = copy.deepcopy(TABLE)
    content["rows"]["longer"] = ["method=supervised"]
    content["claims"] = [{"text": "longer beats high", "left": "longer", "right": "high", "columns": ["digits"]}]
    (configs / "recommended/arm").mkdir(parents=True)
    (configs / "recommended/arm/desk.yaml").write_text("recipe:\n  epochs: 3\n")
    write_table(configs, content)
    grid = grid_of(configs, "desk")
    pretend(grid, value=lambda cell, seed: 0.5)
    found = made(grid)
    assert found["claims"][0]["verdict"] == "refused"
    assert "recipe.epochs: 5, 3" in found["claims"][0]["note"]
    assert "recipe.epochs: 3, 5" in found["differing_axes"]
    assert "recipe.epochs: 3, 5" in export(found, "markdown")

    content["declared_axes"] = ["recipe"]
    write_table(configs, content)
    grid = grid_of(configs, "desk")
    found = made(grid)
    assert found["claims"][0]["verdict"] == "not distinguishable"
    assert "recipe.epochs: 3, 5 (declared part of the comparison)" in found["differing_axes"]


def test_commit_machine_fidelity_and_deviations_are_told(filled):
    assert (filled["commit"], filled["machine"]) == ("0123456789ab", "a processor, 1 threads, torch 2.0")
    assert filled["fidelity"] == {"arm": "reconstruction"}
    for form in ("markdown", "latex", "html"):
        text = export(filled, form)
        assert "arm: reconstruction" in text
        assert "it draws nothing" in text
        assert "0123456789ab" in text


# ---- exports -------------------------------------------------------------------------------------------------------


def test_markdown_is_a_table_with_equal_rows(filled):
    lines = [line for line in export(filled, "markdown").splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {4 + 2}
    assert "40.80 ± 0.84 [39.76, 41.84] n=5<br>reported 41.00 (1.50)<br>-0.20: reproduced" in lines[2]
    assert "| theirs | reported 70.50 |  |  |" in lines


def test_csv_parses_and_has_full_precision(filled):
    rows = list(csv.DictReader(io.StringIO(export(filled, "csv"))))
    assert len(rows) == 12 + 3
    high = next(row for row in rows if (row["row"], row["column"]) == ("high", "digits"))
    assert float(high["mean"]) == cell_of(filled, "high", "digits")["mean"]
    assert (high["reported"], high["reported_scale"], high["verdict"]) == ("75.0", "paper", "differs")
    assert [row["verdict"] for row in rows if row["column"] == "claim"] == ["holds", "holds", "contradicted"]


def test_latex_is_balanced_and_escaped(filled):
    text = export(filled, "latex")
    for one in ("table", "tabular"):
        assert text.count(f"\\begin{{{one}}}") == text.count(f"\\end{{{one}}}") == 1
    assert r"Arms \& levels, 100\% toy" in text
    body = text.partition(r"\begin{tabular}")[2].partition(r"\end{tabular}")[0].partition("\n")[2]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + 4
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {3}
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert not re.search(r"(?<!\\)[%#_]", text)


def test_html_is_well_formed(filled):
    class Reader(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.cells, self.text = [], 0, []

        def handle_starttag(self, tag, attributes):
            if tag != "br":
                self.open.append(tag)
            self.cells += tag == "td"

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

        def handle_data(self, data):
            self.text.append(data)

    reader = Reader()
    reader.feed(export(filled, "html"))
    assert reader.open == []
    assert reader.cells == 4 * 3
    assert "Arms & levels, 100% toy" in reader.text


def test_the_document_survives_json(filled, tmp_path):
    path = store(filled, tmp_path)
    assert path == tmp_path / "tables/toy/arms-paper.json"
    assert json.loads(path.read_text()) == json.loads(json.dumps(filled))


@pytest.mark.parametrize(
    ("value", "digits", "found"), [(93.8, 2, 2), (0.0211, 2, 4), (0.0, 2, 2), (315.4, 0, 0), (math.inf, 1, 1)]
)
def test_small_numbers_get_more_digits(value, digits, found):
    assert digits_for(value, digits) == found


def test_reported_numbers_are_printed_as_they_are():
    assert reported_text({"value": 93.85, "spread": 0.1, "note": ""}, 2, "paper") == "reported 93.85 (0.10)"
    assert reported_text({"value": 0.0211, "spread": None, "note": ""}, 2, "paper") == "reported 0.0211"
    assert reported_text({"value": None, "spread": None, "note": ""}, 2, "paper") == "reported not found"
    assert reported_text({"value": 51.0, "spread": None, "note": "plot"}, 2, "desk") == "paper scale: 51.00 plot"


# ---- plan ----------------------------------------------------------------------------------------------------------


def test_only_names_cells_with_commas_and_wildcards(configs):
    grid = grid_of(configs)
    assert parse_only(["low, plain,digits"], grid) == [("low, plain", "digits")]
    assert len(parse_only(["low, plain"], grid)) == 3
    assert parse_only(["h*,digits", "longer, search"], grid) == [("high", "digits"), ("longer", "search")]
    assert len(pending(grid, parse_only(["high"], grid))) == 5
    with pytest.raises(UserError, match=r"--only 'hgih,digits': .*did you mean 'high,digits'"):
        parse_only(["hgih,digits"], grid)


def test_the_cost_is_the_median_of_past_runs_of_the_same_kind(configs, tmp_path):
    grid = grid_of(configs)
    assert estimate(pending(grid), tmp_path / "runs") == (0, 15)
    pretend(grid, rows=("high",))
    assert estimate(pending(grid), tmp_path / "runs") == (30.0, 0)
    text = "\n".join(plan_lines(grid, pending(grid), tmp_path / "runs"))
    assert "high, digits: 5 of 5 stored" in text
    assert "low, plain, digits: 0 of 5 stored, 5 to run" in text
    assert "15 runs in all, 10 to run: about 30 s one after another by past runs" in text
