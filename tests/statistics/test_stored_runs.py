"""The method on stored results: which runs it takes, what makes its key, what it writes; bad requests."""

import json
import re
import shutil
import sys

import numpy
import pytest
from commands import runner

from runner.compose import compose
from runner.errors import UserError
from runner.plan import plan
from runner.statistics.stored import score_table, stored_runs

MODEL = ("model=mlp", "scale=smoke", "hardware=cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Smoke runs of two systems, two seeds each, one of them at two noises; read only."""
    place = tmp_path_factory.mktemp("stored")
    runs = [("method=supervised", f"seed={seed}") for seed in (0, 1)]
    runs += [("method=input_noise", f"seed={seed}", f"method.deviation={d}") for seed in (0, 1) for d in (0.5, 2.0)]
    for words in runs:
        answer = runner(*words, *MODEL, place=place)
        assert answer.code == 0, answer.err
    return place


@pytest.fixture(scope="module")
def runs(place):
    return place / "work" / "runs"


def analysed(place, *words):
    return runner("method=inferential_reproducibility", *MODEL, *words, place=place)


def test_the_runs_become_one_table(runs):
    records = stored_runs([str(runs)])
    table, varying = score_table(records, "log_likelihood", ["method.name"])
    assert varying == ["method.deviation"]
    assert len(table) == 6 * 20
    assert sorted(table["system"].unique()) == ["input_noise", "supervised"]
    assert sorted(table["seed"].unique()) == ["0", "1"]
    assert table["label"].nunique() == 10
    assert (table["log_likelihood"] < 0).all()
    assert table.groupby("system")["validation_accuracy"].count().tolist() == [80, 40]
    with numpy.load(records[0].path / "artifacts" / "test_scores.npz") as arrays:
        first = table[: len(arrays["index"])]
        assert first["example"].tolist() == arrays["index"].tolist()
        assert first["log_likelihood"].tolist() == pytest.approx(arrays["log_likelihood"].tolist())


def test_the_log_likelihoods_are_the_loss(runs):
    for record in stored_runs([str(runs / "supervised-*")]):
        with numpy.load(record.path / "artifacts" / "test_scores.npz") as arrays:
            assert -arrays["log_likelihood"].mean() == pytest.approx(record.metrics["loss"], abs=1e-5)
            assert arrays["score"].mean() == pytest.approx(record.metrics["accuracy"])


def test_other_settings_can_tell_the_systems_apart(runs):
    table, varying = score_table(stored_runs([str(runs / "input_noise-*")]), "score", ["method.deviation"])
    assert sorted(table["system"].unique()) == ["0.5", "2.0"]
    assert varying == []


def test_the_analysis_of_stored_runs(runs, tmp_path):
    answer = analysed(tmp_path, f"method.runs=[{runs}/*]")
    assert answer.code == 0, answer.err
    metrics = answer.result["metrics"]
    assert {"chi_squared", "chi_squared_best_configurations", "reliability_supervised"} <= set(metrics)
    assert 0 <= metrics["p_value"] <= 1
    analysis = json.loads((answer.folder / "artifacts" / "analysis.json").read_text())
    assert analysis["systems"] == {"input_noise": 4, "supervised": 2}
    assert analysis["selected_by"] == "validation_accuracy"
    assert {item["comparison"]["factor"] for item in analysis["findings"]} == {"system", "method.deviation"}
    assert "Likelihood-ratio tests" in (answer.folder / "artifacts" / "analysis.md").read_text()
    assert len(list((tmp_path / "work" / "runs").iterdir())) == 1, "stored runs are read, not trained"


def key(*words):
    return plan(compose(["method=inferential_reproducibility", *words]).config).key


def test_the_key_is_that_of_the_content(runs, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(runs, moved)
    whole = key(f"method.runs=[{runs}]")
    assert key(f"method.runs=[{moved}]") == whole
    assert key(f"method.runs=[{runs}/input_noise-*,{runs}/supervised-*]") == whole
    assert key(f"method.runs=[{runs}/supervised-*]") not in (whole, key())
    scores = next(moved.rglob("test_scores.npz"))
    scores.write_bytes(scores.read_bytes() + b"x")
    assert key(f"method.runs=[{moved}]") != whole


def test_properties_of_the_examples_from_a_file(runs, tmp_path):
    file = tmp_path / "properties.csv"
    index = score_table(stored_runs([str(runs)]), "score", ["method.name"])[0]["example"].unique()
    file.write_text("index,length\n" + "".join(f"{number},{number % 7}\n" for number in index))
    words = (f"method.runs=[{runs}]", "method.properties=[length]", f"method.example_properties={file}")
    before = key(*words)
    answer = analysed(tmp_path, *words)
    assert answer.code == 0, answer.err
    analysis = json.loads((answer.folder / "artifacts" / "analysis.json").read_text())
    assert "length" in {item["comparison"]["property"] for item in analysis["findings"]}
    file.write_text(file.read_text().replace(",3", ",4"))
    assert key(*words) != before


def test_the_grid_reuses_a_run_made_by_hand(tmp_path):
    by_hand = runner("method=supervised", "seed=1", "recipe.optimizer.learning_rate=0.05", *MODEL, place=tmp_path)
    answer = analysed(tmp_path)
    assert answer.code == 0, answer.err
    assert f"seed 1: reuses {by_hand.folder.parent.name}/{by_hand.folder.name}" in answer.err
    assert len(list((tmp_path / "work" / "runs").glob("*/*"))) == 5


def test_right_and_wrong_by_logit_models(runs, tmp_path):
    answer = analysed(tmp_path, f"method.runs=[{runs}]", "method.response=score", "method.distribution=binomial")
    assert answer.code == 0, answer.err
    found = json.loads((answer.folder / "artifacts" / "analysis.json").read_text())["findings"]
    assert {item["comparison"]["estimation"] for item in found} == {"adaptive quadrature"}


@pytest.mark.parametrize(
    "words, message",
    [
        (["method.runs=[nowhere/*]"], "method.runs: no folder at 'nowhere/\\*'"),
        (["method.response=scor"], "have no 'scor'; they have index"),
        (["method.system=[method.nam]"], "no setting 'method.nam'; did you mean method.name"),
        (["method.meta_parameters=[recipe.epochs]"], "recipe.epochs varies within no system; method.deviation does"),
        (["method.properties=[length]"], "no column 'length'"),
        (["method.example_properties=no.csv"], "there is no file 'no.csv'"),
        (["method.distribution=binomial"], "binomial needs response=score"),
        (["method.grid.seeds=1"], "method.grid.seeds: expected an integer >= 2, got 1"),
    ],
)
def test_bad_requests_end_with_one_sentence(runs, tmp_path, words, message):
    chosen = [] if any("runs=" in word for word in words) else [f"method.runs=[{runs}]"]
    answer = analysed(tmp_path, *chosen, *words)
    assert answer.code == 2, answer.err
    assert re.search(message, answer.message)


def test_runs_on_different_test_sets_are_refused(runs, tmp_path):
    other = shutil.copytree(runs, tmp_path / "runs")
    result = next(other.glob("supervised-*/*/result.json"))
    result.write_text(json.dumps(json.loads(result.read_text()) | {"dataset": "fashion_mnist"}))
    with pytest.raises(UserError, match="compare runs on one test set"):
        score_table(stored_runs([str(other)]), "score", ["method.name"])


def test_a_missing_extra_is_named_with_its_cure(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install 'paper-runner\[statistics\]'"):
        score_table(stored_runs([str(runs)]), "score", ["method.name"])
