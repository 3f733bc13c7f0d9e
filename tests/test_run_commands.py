"""evaluate, profile, sync and clean on runs that were really run."""

import json
import os
from pathlib import Path

import numpy
import pytest
import yaml
from commands import listing, runner, smoke

from runner.cli import main
from runner.commands.evaluate import quoted, translation
from runner.compose import compose
from runner.folder import RunFolder
from runner.records import Record

EKG = ("method=ekg", "model=resnet20", "scale=smoke", "hardware=cpu")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """(a finished smoke run of ekg, its place); other tests add evaluations beside it."""
    place = tmp_path_factory.mktemp("pruned")
    answer = runner(*EKG, "dataset.test_size=17", place=place)
    assert answer.code == 0, answer.err
    return answer, place


def scores(folder: Path) -> dict[str, list]:
    with numpy.load(folder / "artifacts" / "test_scores.npz") as found:
        return {name: found[name].tolist() for name in found}


# ---- evaluate ------------------------------------------------------------------------------------------------------


def test_the_evaluation_of_a_run_gives_the_metrics_of_the_run(pruned):
    answer, place = pruned
    evaluated = runner("evaluate", answer.folder.name[:6], "hardware=cpu", place=place)
    assert evaluated.code == 0, evaluated.err
    assert evaluated.out.splitlines() == [str(evaluated.result_path)]
    assert evaluated.folder.parent == place / "work/runs/evaluate-resnet20-digits"
    assert set(evaluated.result["metrics"]) == {"accuracy", "loss"}
    for name, value in evaluated.result["metrics"].items():
        assert value == pytest.approx(answer.result["metrics"][name], abs=1e-6)
    assert scores(evaluated.folder) == scores(answer.folder)
    architecture = json.loads((answer.folder / "artifacts/model/architecture.json").read_text())
    assert evaluated.result["fingerprints"]["model.weights"] == architecture["weights_sha256"]
    assert f"model.weights={answer.folder}" in evaluated.err, "the run that it stands for is shown"
    again = runner("evaluate", answer.folder, "hardware=cpu", place=place)
    assert again.folder == evaluated.folder and "already done" in again.err


def test_overrides_win_and_another_test_set_is_another_run(pruned):
    answer, place = pruned
    other = runner("evaluate", answer.folder, "dataset.test_size=13", "hardware=cpu", place=place)
    assert other.code == 0, other.err
    assert len(scores(other.folder)["index"]) == 13
    assert other.folder.name != runner("evaluate", answer.folder, "hardware=cpu", place=place).folder.name


def test_images_are_normalised_as_the_network_was_trained(pruned):
    """Whatever the data set's own statistics: the numbers stay those of the run."""
    answer, place = pruned
    shifted = "dataset.normalisation={mean:[0,0,0],std:[1,1,1]}"
    other = runner("evaluate", answer.folder, shifted, "hardware=cpu", place=place)
    assert other.result["metrics"]["loss"] == pytest.approx(answer.result["metrics"]["loss"], abs=1e-6)


def test_a_run_without_a_network_is_refused(pruned):
    answer, place = pruned
    search = next((place / "work/runs/ekg_search-resnet20-digits").iterdir())
    for command in ("evaluate", "profile"):
        refused = runner(command, search.name, place=place)
        assert refused.code == 2 and "holds no network" in refused.message
        assert runner(command, place=place).message.endswith("takes one run, got 0; `runner runs` shows the keys")
    wrong = runner("evaluate", answer.folder, "dataset.test_sise=3", place=place)
    assert wrong.code == 2 and "dataset.test_size" in wrong.message


def test_a_network_of_the_user_is_named_by_its_target(tmp_path):
    config = compose(["method=supervised", "model=resnet20", "scale=smoke"]).config
    config["model"] |= {"name": "mine", "target": "package:network", "arguments": {"depth": 3, "kinds": ["a b", None]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    words = translation(Record(RunFolder(tmp_path)), ["model.arguments.depth=4"], [])
    composed = compose(words).config
    assert composed["model"]["target"] == "package:network"
    assert composed["model"]["arguments"] == {"depth": 4, "kinds": ["a b", None]}
    assert (composed["model"]["name"], composed["model"]["weights"]) == ("mine", str(tmp_path))


@pytest.mark.parametrize("value", [None, True, 3, 0.5, "a", "null", "it's [1, 2]", "/a/b-c.d", [1, "x"], {"a": [1.5]}])
def test_quoted_values_come_back(value):
    assert compose([f"+model.arguments.value={quoted(value)}"]).config["model"]["arguments"]["value"] == value


# ---- profile -------------------------------------------------------------------------------------------------------


def test_profile_measures_now_and_here(pruned):
    answer, place = pruned
    stored = json.loads(answer.result_path.read_text())
    elsewhere = {**stored, "hardware": {**stored["hardware"], "host": "elsewhere"}}
    elsewhere["profile"] = {"final": {**stored["profile"]["final"], "latency_ms": {"1": 1e9, "64": 1e9}}}
    answer.result_path.write_text(json.dumps(elsewhere))
    before = listing(place / "work")
    try:
        shown = runner("profile", answer.folder, "hardware=cpu", "--format", "json", place=place)
        text = runner("profile", answer.folder, "hardware=cpu", "hardware.threads=1", place=place)
    finally:
        answer.result_path.write_text(json.dumps(stored))
    found = json.loads(shown.out)
    for name in ("params", "flops"):
        assert found[name] == stored["profile"]["final"][name]
    assert all(0 < value < 1e6 for value in found["latency_ms"].values()) and set(found["latency_ms"]) == {"1", "64"}
    assert found["hardware"]["host"] == stored["hardware"]["host"] and found["hardware"]["device"] == "cpu"
    assert f"{found['params']:,}" in text.out and "stored by the run (elsewhere" in text.out
    assert listing(place / "work") == before, "profile writes nothing"


def test_profile_refuses_what_has_no_effect(pruned):
    answer, place = pruned
    refused = runner("profile", answer.folder, "seed=3", place=place)
    assert refused.code == 2 and "'seed=3' has no effect" in refused.message


# ---- clean ---------------------------------------------------------------------------------------------------------


def test_there_is_nothing_to_clean_after_a_run(tmp_path):
    assert smoke(place=tmp_path).code == 0
    assert runner("clean", "--yes", "--older-than", "0", place=tmp_path).out == "nothing to clean\n"


# ---- sync ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tracked(tmp_path, monkeypatch):
    """The folders of two finished runs that are recorded offline, and of one that is not tracked."""
    found = [smoke(f"seed={seed}", "tracking=offline", place=tmp_path).folder for seed in (0, 1)]
    found.append(smoke("seed=2", place=tmp_path).folder)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    return found


def lines(capsys) -> dict[str, str]:
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    return {first.partition("/")[2]: rest for first, rest in rows}


def test_sync_sends_what_was_not_sent(tracked, monkeypatch, capsys):
    first, second, _ = tracked
    assert main(["sync", "--dry"]) == 0
    found = lines(capsys)
    assert [found[folder.name] for folder in tracked] == ["not sent", "not sent", "not tracked"]

    assert main(["sync"]) == 2
    assert "wandb login" in capsys.readouterr().err

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    sent = []

    def server(folder: Path, mode: str) -> dict[str, str]:  # what runner.tracking.replay leaves when all arrived
        sent.append((folder.name, mode))
        if folder == second:
            return {"error": "the server is down"}
        rows = len((folder / "metrics.jsonl").read_text().splitlines())
        (folder / "wandb" / "forwarded").write_text(str(rows))
        return {"url": f"https://wandb.example/{folder.name}"}

    monkeypatch.setattr("runner.tracking.replay", server)
    assert main(["sync"]) == 1
    out, err = capsys.readouterr()
    assert "1 runs sent, 1 need nothing, 1 failed" in out and f"https://wandb.example/{first.name}" in out
    assert "the server is down" in err
    assert sorted(sent) == sorted([(first.name, "online"), (second.name, "online")])

    assert main(["sync", "--dry"]) == 0
    found = lines(capsys)
    assert [found[folder.name] for folder in tracked] == ["sent", "not sent", "not tracked"]
    assert main(["sync", first.name[:6]]) == 0
    assert "0 runs sent, 1 need nothing" in capsys.readouterr().out
    with (first / "metrics.jsonl").open("a") as file:  # a run that went on
        file.write("{}\n")
    assert main(["sync", str(first), "--dry"]) == 0
    assert lines(capsys)[first.name] == "not sent"
