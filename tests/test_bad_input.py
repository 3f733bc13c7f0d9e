"""Everything a user can get wrong: the exit code, one short message on the screen, nothing lost.

Two processes on one run folder: test_runs.py.
"""

import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from commands import SMOKE, Answer, Command, listing, outcome, runner, smoke, until
from PIL import Image
from user_methods import write_config

LONGEST = 400  # characters of a message, without the paths in it


def refused(answer: Answer, *words: object, code: int = 2) -> str:
    """Checks what holds for every refusal, and that its message has the words; returns the message."""
    assert answer.code == code, answer.err
    assert answer.out == ""
    assert "Traceback" not in answer.err
    assert answer.message.startswith("runner: ")
    assert sum(line.startswith("runner: ") for line in answer.err.splitlines()) == 1
    plain = " ".join(word for word in answer.message.split() if "/" not in word)
    assert len(plain) < LONGEST, answer.message
    for word in words:
        assert str(word) in answer.message
    return answer.message


def wrong(place: Path, *arguments: object) -> Answer:
    """A command that must end before anything is written."""
    answer = runner(*arguments, place=place)
    assert listing(place / "work") == set(), "a wrong request left files behind"
    assert len(answer.err.splitlines()) == 1, answer.err
    return answer


# ---- names, keys, values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["method=supervized"], ["unknown method 'supervized'", "did you mean supervised?"]),
        (["model=resnet21"], ["unknown model 'resnet21'", "resnet20", "runner list models"]),
        (["dataset=fashion_mnst"], ["unknown dataset 'fashion_mnst'", "did you mean fashion_mnist"]),
        (["recipe.epoch=3"], ["unknown key 'recipe.epoch'", "did you mean recipe.epochs?"]),
        (["method.temprature=3"], ["unknown key 'method.temprature'", "set on the command line"]),
        (["method="], ["names no method", "runner list methods"]),
        (["recipe.epochs=many"], ["recipe.epochs", "expected an integer > 0", "'many'", "set on the command line"]),
        (["recipe.epochs=0"], ["recipe.epochs", "expected an integer > 0", "got 0"]),
        (["seed=-1"], ["seed", "expected an integer >= 0"]),
        (["recipe.accumulation=0"], ["recipe.accumulation", "expected an integer > 0"]),
        (["recipe.ema_decay=1.5"], ["recipe.ema_decay", "expected a number >= 0 and < 1 or null"]),
        (["seeds.order=-1"], ["seeds.order", "expected an integer >= 0"]),
        (
            ["recipe.schedule.name=one_cycle", "recipe.schedule.warmup_epochs=2"],
            ["recipe.schedule", "one_cycle schedule has its own rise", "warmup_epochs=0"],
        ),
        (["precision=float16"], ["precision", "float32, bfloat16"]),
        (["dataset.validation_fraction=1"], ["dataset.validation_fraction", "< 1"]),
        (["epochs=3"], ["unknown key 'epochs'", "recipe.epochs"]),
        (["scale=tiny"], ["unknown scale 'tiny'", "smoke"]),
        (["epochs"], ["'epochs' is not an override", "expected key=value"]),
    ],
)
def test_a_wrong_name_key_or_value(tmp_path, arguments, words):
    refused(wrong(tmp_path, *SMOKE, *arguments), *words)


def test_a_method_that_takes_other_data(tmp_path):
    folder = write_config(tmp_path / "conf", "of_graphs", "user_methods:OfGraphs")
    answer = wrong(tmp_path, "method=of_graphs", *SMOKE[1:], "--config-dir", folder)
    refused(answer, "dataset=digits: method of_graphs takes graphs, and this is images", "runner list datasets")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["method=erm", "method.batch_size=1"], ["method.batch_size", "expected an integer >= 2"]),
        (
            ["method=sac", "dataset.random_return=1", "dataset.expert_return=1"],
            ["random_return and expert_return are equal", "set them to null"],
        ),
    ],
)
def test_a_wrong_value_of_another_kind_of_data(tmp_path, arguments, words):
    refused(wrong(tmp_path, *arguments, *SMOKE[2:]), *words)


@pytest.mark.parametrize("option", ["mixup", "cutmix"])
def test_mixed_labels_where_a_method_takes_class_numbers(tmp_path, option):
    answer = wrong(tmp_path, "method=ekg", *SMOKE[1:], f"recipe.{option}=0.2")
    refused(answer, f"recipe.{option}=0.2", "set on the command line", "method ekg", f"set recipe.{option}=0")


def test_a_network_that_the_model_section_cannot_be(tmp_path):
    refused(wrong(tmp_path, *SMOKE, "model.stem=imagenet"), "resnet20", "stem")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("user_methods:Consumr", ["no 'Consumr'", "did you mean Consumer?"]),
        ("nowhere.module:Class", ["no module 'nowhere'"]),
        ("user_methods:write_config", ["user_methods:write_config", "must be a dataclass with a function run"]),
    ],
)
def test_a_method_whose_class_is_not_there(tmp_path, target, words):
    folder = write_config(tmp_path / "conf", "mine", target)
    refused(wrong(tmp_path, "method=mine", *SMOKE[1:], "--config-dir", folder), "method.target", *words)


def test_a_gpu_where_there_is_none(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    refused(wrong(tmp_path, *SMOKE, "hardware=gpu"), "hardware.device=cuda", "hardware=cpu", "hardware=auto")


# ---- files ---------------------------------------------------------------------------------------------------------


def images(folder: Path, size: int = 32) -> Path:
    """Two classes of four training and two test images."""
    for split, count in (("train", 20), ("test", 10)):
        for number, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for image in range(count):
                colour = (20 * image % 256, 100 * number, 50)
                Image.new("RGB", (size, size), colour).save(folder / split / name / f"{image}.png")
    return folder


def on(path: Path) -> tuple[str, ...]:
    return *SMOKE, "dataset=image_folder", f"dataset.path={path}"


def test_a_missing_data_file(tmp_path):
    (tmp_path / "images.zip").touch()
    answer = wrong(tmp_path, *on(tmp_path / "imagse.zip"))
    refused(answer, "dataset.path", "no such file or folder", "did you mean images.zip?")


def test_no_data_path_at_all(tmp_path):
    refused(wrong(tmp_path, *SMOKE, "dataset=image_folder"), "dataset.path=PATH")


def test_missing_weights(tmp_path):
    refused(wrong(tmp_path, *SMOKE, "model.weights=nowhere.safetensors"), "model.weights", "nowhere.safetensors")


def test_damaged_weights(tmp_path):
    (tmp_path / "damaged.safetensors").write_bytes(b"no weights at all")
    answer = smoke(f"model.weights={tmp_path / 'damaged.safetensors'}", place=tmp_path)
    refused(answer, "damaged.safetensors")


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path / "images.tar.gz").write_bytes(b"not an archive")
    refused(wrong(tmp_path, *on(tmp_path / "images.tar.gz")), "dataset.path", "no archive", ".tar.xz")


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_a_truncated_archive(tmp_path, kind):
    source, path = images(tmp_path / "images"), tmp_path / f"images.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(source.rglob("*.png")):
                archive.write(file, file.relative_to(source))
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            archive.add(source, "images")
    assert runner(*on(path), place=tmp_path / "whole").code == 0
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    answer = runner(*on(path), place=tmp_path / "cut")
    refused(answer, "dataset.path")


def test_zero_images(tmp_path):
    (tmp_path / "images" / "train" / "cat").mkdir(parents=True)
    refused(runner(*on(tmp_path / "images"), place=tmp_path), "holds no images", "train/CLASS/image")


def test_an_image_that_is_none(tmp_path):
    folder = images(tmp_path / "images")
    (folder / "train" / "dog" / "3.png").write_bytes(b"\x89PNG broken")
    refused(runner(*on(folder), place=tmp_path), "train/dog/3.png", "damaged")


def test_a_request_that_failed_late_goes_on_when_it_is_repaired(tmp_path):
    folder = images(tmp_path / "images")
    image = folder / "train" / "dog" / "3.png"
    whole = image.read_bytes()
    image.write_bytes(b"\0" * len(whole))
    answer = runner(*on(folder), place=tmp_path)
    refused(answer, "train/dog/3.png")
    image.write_bytes(whole)
    assert runner(*on(folder), place=tmp_path).code == 0


# ---- the run folder ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    answer = smoke(place=tmp_path_factory.mktemp("undisturbed"))
    assert answer.code == 0, answer.err
    return answer


def the_folder(place: Path) -> Path:
    (folder,) = (place / "work" / "runs").glob("*/*")
    return folder


def test_a_corrupt_checkpoint_falls_back_and_says_so(undisturbed, tmp_path):
    command = Command(*SMOKE, "checkpoint.every_seconds=0", place=tmp_path)
    until(lambda: list(tmp_path.glob("work/runs/*/*/checkpoints/once.*.pt")))
    command.process.kill()
    assert command.wait().code == -9
    newest = max(the_folder(tmp_path).glob("checkpoints/loop.train.*.pt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    again = smoke(place=tmp_path)
    assert again.code == 0
    assert f"{newest.name} is corrupt" in again.err
    assert "is corrupt" in (again.folder / "log.txt").read_text()
    assert outcome(again) == outcome(undisturbed)


def test_torn_files_of_the_run_folder_are_written_again(undisturbed, tmp_path):
    folder = tmp_path / "work" / "runs" / undisturbed.folder.parent.name / undisturbed.folder.name
    shutil.copytree(undisturbed.folder, folder)
    for name in ("status.json", "result.json", "lock.json", "config.yaml"):
        (folder / name).write_text('{"metrics": ')
    again = smoke(place=tmp_path)
    assert again.code == 0, again.err
    assert again.folder == folder and outcome(again) == outcome(undisturbed)


def test_a_place_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    answer = wrong(tmp_path, *SMOKE, f"paths.runs={tmp_path / 'file'}")
    refused(answer, "cannot write run folders", "Not a directory", "paths.runs=DIR")


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of so many bytes; unmounted at the end."""
    mounted = []

    def mount(*options: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "none", folder], capture_output=True)
        if done.returncode:
            pytest.skip("only root may mount a file system")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_read_only_output_folder(tmp_path, small_disk):
    disk = small_disk("ro")
    answer = wrong(tmp_path, *SMOKE, f"paths.runs={disk}/runs")
    refused(answer, "cannot write run folders", "Read-only file system", "paths.runs=DIR")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_of_somebody_else(tmp_path):
    (tmp_path / "runs").mkdir(mode=0o555)
    answer = wrong(tmp_path, *SMOKE, f"paths.runs={tmp_path / 'runs'}")
    refused(answer, "cannot write run folders", "Permission denied", "paths.runs=DIR")


def test_a_full_disk_fails_the_run_and_loses_nothing(undisturbed, tmp_path, small_disk):
    disk = small_disk("size=3m")  # a checkpoint of resnet20 with its optimizer has more than 2 MB
    arguments = *SMOKE, f"paths.runs={disk}/runs", "checkpoint.every_seconds=0"
    answer = runner(*arguments, place=tmp_path)
    refused(answer, "No space left on device", "repeat the command when the disk", code=1)
    (folder,) = (disk / "runs").glob("*/*")
    assert not [path for path in folder.rglob(".*") if path.name != ".lock.guard"], "half-written files were left"
    subprocess.run(["mount", "-o", "remount,size=30m", disk], check=True)
    again = runner(*arguments, place=tmp_path)
    assert again.code == 0, again.err
    assert again.result["resumes"] == 1
    assert outcome(again) == outcome(undisturbed)


@pytest.mark.parametrize("limit", [2_000, 100_000, 1_000_000])
def test_a_limit_on_file_sizes_is_told(undisturbed, tmp_path, limit):
    """As a quota does: writing fails at different places of a run."""
    answer = runner(*SMOKE, "checkpoint.every_seconds=0", place=tmp_path, limits={"RLIMIT_FSIZE": limit})
    refused(answer, "File too large", code=1)
    again = smoke("checkpoint.every_seconds=0", place=tmp_path)
    assert again.code == 0, again.err
    assert outcome(again) == outcome(undisturbed)


# ---- runs that fail ------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number(tmp_path):
    answer = smoke("recipe.optimizer.learning_rate=1e30", "checkpoint.every_seconds=0", place=tmp_path)
    message = refused(answer, "the loss of 'train' is nan at step 2", "recipe.optimizer.learning_rate", code=1)
    folder = the_folder(tmp_path)
    assert f"({folder / 'error.txt'})" in message
    assert "RunFailed: the loss of 'train'" in (folder / "error.txt").read_text()
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    assert not (folder / "result.json").exists()
    (state,) = folder.glob("checkpoints/loop.train.*.pt")
    stored = torch.load(state, weights_only=True)
    assert stored["position"] == 1
    assert '"loss": "nan"' in (folder / "metrics.jsonl").read_text()


def test_a_loss_that_is_not_a_number_is_found_before_it_is_saved(tmp_path):
    """Between written steps too: the state is saved by time, the loss is written every tenth step."""
    answer = smoke("recipe.optimizer.learning_rate=1e30", place=tmp_path)
    refused(answer, "the loss of 'train' is nan", code=1)
    assert not list(the_folder(tmp_path).glob("checkpoints/loop.train.*.pt"))


def test_an_error_of_the_method(tmp_path):
    folder = write_config(tmp_path / "conf", "raises", "user_methods:Raises", {"message": "the metal broke"})
    arguments = "method=raises", *SMOKE[1:], "checkpoint.every_seconds=0", "--config-dir", folder
    answer = runner(*arguments, place=tmp_path)
    message = refused(answer, "ArithmeticError: the metal broke", "error.txt", code=1)
    error = Path(message.rpartition("(")[2].rstrip(")")).read_text()
    assert error.startswith("Traceback") and error.rstrip().endswith("ArithmeticError: the metal broke")
    assert json.loads((the_folder(tmp_path) / "status.json").read_text())["state"] == "failed"
    again = runner(*arguments, place=tmp_path)
    assert again.code == 1 and "resumes (attempt 2)" in again.err


def test_a_metric_that_is_not_a_number(tmp_path):
    """One step, after which nothing but the test shows that the network is broken."""
    answer = smoke("recipe.optimizer.learning_rate=1e30", "recipe.batch_size=30", place=tmp_path)
    refused(answer, "the metric 'loss' is nan", code=1)
    assert not (the_folder(tmp_path) / "result.json").exists()


def test_an_error_in_a_cell_fails_its_run_and_says_where(tmp_path):
    folder = write_config(tmp_path / "conf", "consumer", "user_methods:Consumer", {"number": 0}, baseline={"seed": 0})
    rates = "recipe.optimizer.learning_rate=1e30", "recipe.batch_size=16"
    answer = runner("method=consumer", *SMOKE[1:], *rates, "--config-dir", folder, place=tmp_path)
    message = refused(answer, "baseline: the loss of 'train' is nan", code=1)
    assert message.count("error.txt") == 1 and "/supervised-resnet20-digits/" in message
    files = {path.parts[-3].partition("-")[0]: path for path in (tmp_path / "work" / "runs").glob("*/*/status.json")}
    assert {name: json.loads(path.read_text())["state"] for name, path in files.items()} == {
        "consumer": "failed",
        "supervised": "failed",
    }
    assert files["consumer"].with_name("error.txt").exists()
