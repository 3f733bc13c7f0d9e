"""Runs of several processes (two, on the CPU): against one process, killed, stopped, refused."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import forked
import numpy
import psutil
import pytest
import torch
from commands import SMOKE, Answer, Command, killed_and_repeated, listing, metric_lines, outcome, runner, until
from safetensors.torch import load_file
from user_methods import write_config

from runner.datasets.augment import augment
from runner.ranks import Ranks, cut
from runner.schema import AugmentationSettings

TWO = "hardware.processes=2"
EVERY_STEP = "checkpoint.every_seconds=0"
SMALL = (
    *("method=supervised", "dataset=digits", "scale=smoke", "hardware=cpu", "scale.max_steps=null"),
    *("dataset.augmentation.horizontal_flip=true", "dataset.augmentation.crop_padding=3", "recipe.batch_size=8"),
    *("scale.max_epochs=2", "recipe.epochs=2", "recipe.evaluation_batch_size=8", "tracking.every_steps=1"),
)
GROUP = (*SMALL, "model.target=rank_methods:network", "+model.arguments.norm=group")
BATCH = (*SMALL, "model.target=rank_methods:network", "+model.arguments.norm=batch", "+model.arguments.dropout=0.3")


def weights(answer: Answer) -> torch.Tensor:
    tensors = load_file(answer.folder / "artifacts" / "model" / "weights.safetensors")
    return torch.cat([tensor.flatten().double() for tensor in tensors.values()])


def close(one: Answer, two: Answer) -> None:
    """Equal but for the order of sums."""
    assert (one.code, two.code) == (0, 0), one.err + two.err
    assert torch.allclose(weights(one), weights(two), rtol=1e-4, atol=1e-5)
    assert two.result["metrics"] == pytest.approx(one.result["metrics"], rel=1e-4)
    for mine, other in zip(metric_lines(one.folder), metric_lines(two.folder), strict=True):
        assert other.pop("phase") == mine.pop("phase")
        assert other == pytest.approx(mine, rel=1e-4)


def scores(answer: Answer) -> dict[str, list]:
    with numpy.load(answer.folder / "artifacts" / "test_scores.npz") as found:
        return {name: found[name].tolist() for name in found}


def others(command: Command) -> list[psutil.Process]:
    return psutil.Process(command.process.pid).children()


def steps_stored(place: Path, phase: str = "train") -> int:
    return len(list(place.glob(f"work/runs/*/*/checkpoints/loop.{phase}.*")))


# ---- the same numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ("dataset.train_size=33", "recipe.drop_last=false"),  # 25 train: the last batch is one image
        ("recipe.accumulation=3", "recipe.gradient_clip=0.5", "recipe.ema_decay=0.8", "recipe.channels_last=true"),
    ],
)
def test_two_processes_do_what_one_does(tmp_path, options):
    one = runner(*GROUP, *options, place=tmp_path / "one")
    two = runner(*GROUP, *options, TWO, place=tmp_path / "two")
    close(one, two)
    found, other = scores(one), scores(two)
    assert other.pop("log_likelihood") == pytest.approx(found.pop("log_likelihood"), rel=1e-4)
    assert found == other
    assert sorted(scores(two)["index"]) == scores(two)["index"] and len(set(scores(two)["index"])) == 20
    assert (one.result["hardware"]["processes"], two.result["hardware"]["processes"]) == (1, 2)
    assert one.folder.name == two.folder.name
    shown = {line.split(" in ")[0] for line in two.err.splitlines() if "finished" in line}
    assert shown == {line.split(" in ")[0] for line in one.err.splitlines() if "finished" in line}
    assert listing(tmp_path / "one" / "work") == listing(tmp_path / "two" / "work")


def test_batch_normalisation_sees_the_parts(tmp_path):
    folder = write_config(tmp_path / "conf", "parts", "rank_methods:PartStatistics")
    options = (*BATCH, "model.arguments.dropout=0")
    reference = runner(*options, "method=parts", "--config-dir", folder, place=tmp_path / "one")
    two = runner(*options, TWO, place=tmp_path / "two")
    close(reference, two)
    plain = runner(*options, place=tmp_path / "plain")
    assert not torch.allclose(weights(plain), weights(two), rtol=1e-4, atol=1e-5), "the test could not fail"


@pytest.mark.slow
def test_every_verb_among_two_processes(tmp_path):
    folder = write_config(tmp_path / "conf", "verbs", "rank_methods:AllVerbs", baseline={"seed": 0})
    command = (*BATCH, TWO, "method=verbs", "--config-dir", folder)
    undisturbed = runner(*command, place=tmp_path / "one")
    assert undisturbed.code == 0, undisturbed.err
    assert undisturbed.result["metrics"]["rows"] == 2 * sum(range(7))  # every row counted once
    assert float((undisturbed.folder / "artifacts" / "numbers.txt").read_text()) == undisturbed.result["metrics"]["sum"]
    moments = [(2, 0.0), (5, 0.01), (3, 0.02), (6, 0.0)]
    answer, kills = killed_and_repeated((*command, EVERY_STEP), tmp_path / "two", moments)
    assert answer.code == 0 and kills >= 3, answer.err
    assert outcome(answer) == outcome(undisturbed)
    left = listing(tmp_path / "two" / "work") ^ listing(tmp_path / "one" / "work")
    assert {Path(name).name for name in left} <= {"log.txt"}  # a cell that resumes says so in its own


# ---- killed and stopped --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    answer = runner(*BATCH, TWO, place=tmp_path_factory.mktemp("undisturbed"))
    assert answer.code == 0, answer.err
    return answer


@pytest.mark.parametrize("who", ["rank 0", "rank 1"])
def test_a_killed_rank_takes_the_run_down_and_it_goes_on(undisturbed, tmp_path, who):
    command = Command(*BATCH, TWO, EVERY_STEP, place=tmp_path)
    until(lambda: steps_stored(tmp_path) >= 2)
    followers = others(command)
    assert len(followers) == 1
    os.kill(command.process.pid if who == "rank 0" else followers[0].pid, signal.SIGKILL)
    answer = command.wait()
    until(lambda: not any(item.is_running() and item.status() != psutil.STATUS_ZOMBIE for item in followers), 10)
    if who == "rank 1":
        assert answer.code == 1
        assert "rank 1 of 2 was killed by SIGKILL; the last saved state is kept" in answer.message
    again = runner(*BATCH, TWO, EVERY_STEP, place=tmp_path)
    assert again.code == 0 and again.result["resumes"] == 1, again.err
    assert outcome(again) == outcome(undisturbed)


@pytest.mark.parametrize(("who", "name"), [("rank 0", "SIGTERM"), ("rank 1", "SIGTERM"), ("both", "SIGINT")])
def test_a_stop_signal_to_any_rank_saves_all(undisturbed, tmp_path, who, name):
    command = Command(*BATCH, TWO, EVERY_STEP, place=tmp_path)
    until(lambda: steps_stored(tmp_path) >= 1)
    (follower,) = others(command)
    for pid in {"rank 0": [command.process.pid], "rank 1": [follower.pid]}.get(
        who, [command.process.pid, follower.pid]
    ):
        os.kill(pid, getattr(signal, name))
    stopped = command.wait()
    assert stopped.code == 75 and "the state is saved" in stopped.message, stopped.err
    assert "Traceback" not in stopped.err
    until(lambda: not follower.is_running(), 10)
    again = runner(*BATCH, TWO, place=tmp_path)
    assert again.code == 0 and outcome(again) == outcome(undisturbed)


def test_another_number_of_processes_does_not_go_on(undisturbed, tmp_path):
    command = Command(*BATCH, TWO, EVERY_STEP, place=tmp_path)
    until(lambda: steps_stored(tmp_path) >= 1)
    command.signal(signal.SIGTERM)
    assert command.wait().code == 75
    refused = runner(*BATCH, place=tmp_path)
    assert refused.code == 2
    assert "was begun with 2 processes" in refused.message and "hardware.processes=2" in refused.message
    again = runner(*BATCH, "hardware.processes=null", place=tmp_path)
    assert again.code == 0 and outcome(again) == outcome(undisturbed)


def test_a_rank_that_fails_is_named(tmp_path):
    folder = write_config(tmp_path / "conf", "raises", "rank_methods:Raises")
    answer = runner(*GROUP, TWO, "method=raises", "--config-dir", folder, place=tmp_path)
    assert answer.code == 1
    assert "rank 1 of 2 failed: ArithmeticError: the metal broke" in answer.message
    (error,) = (tmp_path / "work").glob("runs/*/*/error.txt")
    assert "ArithmeticError: the metal broke" in error.read_text() and "rank_methods.py" in error.read_text()


# ---- methods that cannot ------------------------------------------------------------------------------------------


def test_a_method_that_cannot_be_distributed_runs_in_one_process(tmp_path):
    folder = write_config(tmp_path / "conf", "alone", "rank_methods:Alone")
    answer = runner(*GROUP, TWO, "method=alone", "--config-dir", folder, place=tmp_path)
    assert answer.code == 0, answer.err
    assert "method alone cannot share its batches: one process" in answer.err
    assert answer.result["hardware"]["processes"] == 1


@pytest.mark.slow
def test_cells_that_cannot_be_distributed_run_on_rank_0_of_a_run_that_can(tmp_path):
    answer = runner("method=ekg", *SMOKE[1:], TWO, place=tmp_path)
    assert answer.code == 0, answer.err
    used = {path.parent.parent.name.partition("-")[0]: path for path in tmp_path.glob("work/runs/*/*/result.json")}
    processes = {name: json.loads(path.read_text())["hardware"]["processes"] for name, path in used.items()}
    assert processes == {"ekg": 2, "ekg_search": 1, "supervised": 1}
    again = runner("method=ekg", *SMOKE[1:], TWO, place=tmp_path / "again")
    assert outcome(again) == outcome(answer)


def test_training_by_hand_among_ranks_is_noticed(tmp_path):
    folder = write_config(tmp_path / "conf", "hand", "rank_methods:ByHand")
    answer = runner(*GROUP, TWO, "method=hand", "--config-dir", folder, place=tmp_path)
    assert answer.code == 1 and "`distributed = False`" in answer.message


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_multi_gpu_without_a_gpu_is_refused(tmp_path):
    answer = runner(*GROUP, "hardware=multi_gpu", place=tmp_path)
    assert answer.code == 2 and "hardware.device=cuda" in answer.message
    assert listing(tmp_path / "work") == set()


# ---- a fresh process -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_itself_starts_its_ranks(undisturbed, tmp_path):
    done = subprocess.run(
        [sys.executable, "-B", "-m", "runner", *BATCH, TWO, "hardware.threads=1", f"paths.runs={tmp_path}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(forked.repository()), str(Path(__file__).parent)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(Path(done.stdout.strip()).read_text())["product"] == undisturbed.result["product"]
    assert "Warning" not in done.stderr


# ---- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_parts_cover_a_batch_once(size, count):
    parts = [Ranks(rank, count, Path(), "gloo").part(size) for rank in range(count)]
    values = torch.arange(size).float()
    assert torch.cat([values[rows] for rows, share in parts if share]).tolist() == values.tolist()
    mean = math.fsum(float(values[rows].mean()) * share for rows, share in parts) / count
    assert mean == pytest.approx(float(values.mean()))


def test_a_batch_of_any_shape_is_cut():
    part = Ranks(1, 2, Path(), "gloo").part
    item = {"images": torch.arange(5), "pair": (torch.arange(10).view(5, 2), torch.tensor(3.0)), "name": "a"}
    found = cut(item, part)
    assert found["images"].tolist() == [3, 4] and found["pair"][0].tolist() == [[6, 7], [8, 9]]
    assert found["pair"][1] == 3.0 and found["name"] == "a"
    assert cut(7, part) == 7


@pytest.mark.parametrize("colour", [False, True])
def test_a_part_has_the_views_of_the_whole_batch(colour):
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    settings = AugmentationSettings(horizontal_flip=True, crop_padding=2)
    torch.manual_seed(1)
    whole = augment(images, settings, colour)
    for rows in (slice(0, 3), slice(3, 5)):
        torch.manual_seed(1)
        assert torch.equal(augment(images[rows], settings, colour, rows, 5), whole[rows])
