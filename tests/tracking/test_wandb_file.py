"""What W&B gets, read from the files that it wrote offline."""

import json
import os
import resource
import signal
from pathlib import Path

import pytest
import wandb_file
import yaml
from commands import runner
from PIL import Image
from test_wandb import pieces, record, settings, tracker

from runner.wandb_forward import is_whole, log_figures

GIVEN = {"project": "pruning", "entity": "my-lab", "group": "first week", "name": "mine", "notes": "as in the paper"}


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path_factory):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


def read(folder: Path) -> wandb_file.WandbFile:
    (piece,) = pieces(folder)
    return wandb_file.read(piece)


def tracked(folder: Path, lines: list[str] | None = None, *, state="done", summary=None, **changes):
    """One attempt from start to finish; returns what stands in the file then."""
    folder.mkdir(exist_ok=True)
    run = tracker(folder, [] if lines is None else lines, **changes)
    run.start()
    record(folder)
    run.finish(summary or {}, state)
    return read(folder)


# ---- whole runs: three in one process, a method with its search and its baseline


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The files of the three runs by method, each with its run folder."""
    words = [f"tracking.{name}={value}" for name, value in GIVEN.items()]
    words += ["tracking=offline", "tracking.tags=[a,b]", "tracking.every_steps=1", "hardware=cpu", "scale=smoke"]
    answer = runner("method=ekg", "model=resnet20", *words, place=tmp_path_factory.mktemp("three"))
    assert answer.code == 0, answer.err
    folders = {folder.parent.name.partition("-")[0]: folder for folder in answer.folder.parent.parent.glob("*/*")}
    assert set(folders) == {"ekg", "ekg_search", "supervised"}
    return {method: (read(folder), folder) for method, folder in folders.items()}


METHODS = ["ekg", "ekg_search", "supervised"]


@pytest.mark.parametrize("method", METHODS)
def test_project_entity_group_tags_and_notes(three, method):
    run = three[method][0].run
    found = [run.project, run.entity, run.run_group, run.notes, list(run.tags)]
    assert found == [*(GIVEN[name] for name in ("project", "entity", "group", "notes")), ["a", "b"]]


def test_ids_and_names_are_each_runs_own(three):
    ids = {method: found.run.run_id for method, (found, _) in three.items()}
    assert len(set(ids.values())) == 3
    for method, (_, folder) in three.items():
        assert ids[method].startswith(f"{folder.name}-")
    names = [three[method][0].run.display_name for method in METHODS]
    assert names == ["mine", "ekg_search-resnet20-digits-smoke-seed0", "supervised-resnet20-digits-smoke-seed0"]


@pytest.mark.parametrize("method", METHODS)
def test_the_config_is_the_runs_nested_as_it_is(three, method):
    found, folder = three[method]
    expected = yaml.safe_load((folder / "config.yaml").read_text())
    config = {name: value for name, value in found.config.items() if name != "_wandb"}
    assert config == {**expected, "key": folder.name, "attempt": 1}
    assert config["recipe"]["optimizer"]["momentum"] == 0.9


@pytest.mark.parametrize("method", METHODS)
def test_the_summary_has_the_final_metrics_and_the_profile(three, method):
    found, folder = three[method]
    result = json.loads((folder / "result.json").read_text())
    assert {name: found.summary[name] for name in result["metrics"]} == result["metrics"]
    assert found.summary["seconds"] == result["seconds"]
    if result["profile"]:
        assert found.summary["profile"] == result["profile"]
    assert found.exit_code == 0


@pytest.mark.parametrize("method", METHODS)
def test_the_history_is_the_record_and_nothing_of_another_run(three, method):
    found, folder = three[method]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines
    expected = []
    for line in lines:
        phase = line.pop("phase")
        row = {f"{phase}/{name}": value for name, value in line.items() if name != "time"}
        expected.append({"_timestamp": line["time"], **row})
    assert [{key: row[key] for key in row if key not in ("_step", "_runtime")} for row in found.history] == expected
    assert [row["_step"] for row in found.history] == list(range(len(lines)))


@pytest.mark.parametrize("method", METHODS)
def test_every_phase_has_its_own_step_axis(three, method):
    found, _ = three[method]
    phases = {name.partition("/")[0] for row in found.history for name in row if "/" in name}
    for phase in phases:
        assert found.axis(f"{phase}/loss") == f"{phase}/step"
        assert found.metrics[f"{phase}/step"].options.hidden
    assert set(found.metrics) == {f"{phase}/{name}" for phase in phases for name in ("step", "*")}


# ---- single attempts


def test_a_resume_keeps_the_id_and_says_which_attempt_it_is(tmp_path):
    failed = tracked(tmp_path, state="failed")
    assert (failed.exit_code, failed.config["attempt"]) == (1, 1)
    done = tracked(tmp_path, attempt=2, summary={"accuracy": 0.75})
    assert done.run.run_id == failed.run.run_id
    assert (done.exit_code, done.config["attempt"], done.summary["accuracy"]) == (0, 2, 0.75)


def test_variables_of_wandb_are_honoured(tmp_path, monkeypatch):
    variables = {
        "WANDB_PROJECT": "theirs",
        "WANDB_ENTITY": "lab",
        "WANDB_RUN_GROUP": "g",
        "WANDB_NAME": "n",
        "WANDB_TAGS": "x, y",
        "WANDB_NOTES": "from outside",
        "WANDB_RUN_ID": "given-1",
        "WANDB_JOB_TYPE": "train",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run = tracked(tmp_path / "outer", settings=settings()).run
    found = [run.project, run.entity, run.run_group, run.display_name, list(run.tags), run.notes, run.run_id]
    assert found == ["theirs", "lab", "g", "n", ["x", "y"], "from outside", "given-1"]
    assert run.job_type == "train"
    inner = tracked(tmp_path / "inner", inner=True).run
    assert (inner.project, inner.display_name) == ("theirs", "ekg smoke")
    assert inner.run_id.startswith("0123abcd-")


def test_inner_loops_are_one_series_over_their_own_axis(tmp_path):
    found = tracked(tmp_path)
    assert found.axis("search.tune/distance") == "search.tune/step"
    assert found.history[-1]["search.tune/distance"] == float("inf")


# ---- figures


def draw(folder: Path, name: str, colour: int = 0) -> None:
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20), (colour, 5, 6)).save(folder / "figures" / f"{name}.png")


def test_figures_are_there_once_as_images(tmp_path):
    for name in ("surface", "spectrum"):
        draw(tmp_path, name)
    (tmp_path / "figures" / "surface.pdf").write_bytes(b"%PDF")
    (tmp_path / "figures" / "broken.png").write_bytes(b"no image")
    tracked(tmp_path, state="failed")
    found = tracked(tmp_path, attempt=2, summary={"accuracy": 0.5})
    rows = [row for row in found.history if any(name.startswith("figures/") for name in row)]
    assert [{name for name in row if name[0] != "_"} for row in rows] == [{"figures/spectrum", "figures/surface"}]
    image = rows[0]["figures/surface"]
    assert (image["_type"], image["width"], image["height"]) == ("image-file", 30, 20)
    (piece,) = pieces(tmp_path)
    stored = (piece.parent / "files" / image["path"]).read_bytes()
    assert stored == (tmp_path / "figures" / "surface.png").read_bytes()
    assert found.summary["accuracy"] == 0.5


def test_online_only_new_and_changed_figures_are_sent_again(tmp_path):
    class Run:
        def log(self, values):
            sent.append({name for name in values if name[0] != "_"})

    sent: list[set[str]] = []
    draw(tmp_path, "first")
    draw(tmp_path, "second")
    known = log_figures(Run(), tmp_path / "figures", {})
    assert log_figures(Run(), tmp_path / "figures", known) == known
    draw(tmp_path, "second", colour=9)
    draw(tmp_path, "third")
    assert set(log_figures(Run(), tmp_path / "figures", known)) == {"first", "second", "third"}
    assert sent == [{"figures/first", "figures/second"}, {"figures/second", "figures/third"}]


# ---- what goes wrong


def test_a_full_disk_costs_one_line(tmp_path):
    lines: list[str] = []
    run = tracker(tmp_path, lines)
    run.start()
    record(tmp_path, steps=3000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # W&B's processes inherit it
    try:
        run.finish({"accuracy": 0.5}, "done")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    wanted = "its file could not be written to the end, is the disk full?; metrics.jsonl has all values"
    assert lines == [f"W&B: no offline record, {wanted}"]
    assert pieces(tmp_path) == []


# ---- the reader of these tests


def test_long_records_over_several_blocks_are_read_whole(tmp_path):
    run = tracker(tmp_path, [], config={"text": "x" * 100_000})
    run.start()
    record(tmp_path, steps=2000)
    run.finish({}, "done")
    found = read(tmp_path)
    assert found.config["text"] == "x" * 100_000
    assert [row["train/step"] for row in found.history[:-1]] == list(range(1, 2001))


def test_damage_is_seen(tmp_path):
    tracked(tmp_path)
    (piece,) = pieces(tmp_path)
    whole = piece.read_bytes()
    for bad in (whole[:-3], whole[:500] + bytes([whole[500] ^ 1]) + whole[501:], b"x" + whole):
        piece.write_bytes(bad)
        with pytest.raises(ValueError):
            wandb_file.read(piece)
    piece.write_bytes(whole)
    assert is_whole(piece)
    for end in range(8, len(whole), 13):
        piece.write_bytes(whole[:end])
        assert not is_whole(piece)
