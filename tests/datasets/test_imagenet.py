"""dataset=imagenet: files decoded on the fly, the same bits whatever reads them, and every wrong layout."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy
import psutil
import pytest
import torch
from commands import Command, killed_and_repeated, outcome, runner, until
from PIL import Image
from safetensors.torch import load_file

from runner.datasets import check_dataset, fingerprint, load_data
from runner.datasets.image_files import ImageFiles, default_workers
from runner.datasets.images import Normalisation
from runner.errors import UserError
from runner.schema import AugmentationSettings, DatasetSettings

ROOT = Path(__file__).parents[2]
CLASSES = ("n01440764", "n01443537", "n02096585")
SIZES = {"train": 8, "val": 4}
PLAIN = Normalisation(torch.zeros(3), torch.ones(3))
NORMALISATION = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of small JPEGs of many sizes; read only."""
    root = tmp_path_factory.mktemp("imagenet")
    random = numpy.random.RandomState(0)
    for split, count in SIZES.items():
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                height, width = random.randint(30, 70, 2)
                pixels = random.randint(0, 80, (height, width, 3)) + 80 * label
                Image.fromarray(pixels.astype(numpy.uint8)).save(root / split / name / f"{name}_{number}.JPEG")
    return root


@pytest.fixture
def load(scale):
    def load(path: Path, *, limits: tuple = (None, None), **settings):
        settings = {"image_size": 32, "normalisation": NORMALISATION, **settings}
        settings = DatasetSettings(name="imagenet", path=str(path), **settings)
        return load_data(settings, scale("paper", *limits), data_root=path.parent, offline=True)

    return load


def batches(images: ImageFiles, *, size=5, augment=True, seed=11, **changes):
    """An object that makes the same epoch whenever it is asked."""
    augmentation = AugmentationSettings(horizontal_flip=True) if augment else None
    made = images.batches(PLAIN, size, **{"shuffle": True, "augmentation": augmentation, "workers": 0, **changes})

    def epoch(start: int = 0, **part) -> list:
        torch.manual_seed(seed)  # as a loop does at the start of every epoch
        return list(made.iterate(7, start, **part))

    return epoch


def same(first: list, second: list) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


# ---- what is there


def test_splits_classes_and_rows(folder, load):
    data = load(folder)
    assert data.class_names == list(CLASSES)
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 0, 12)
    assert data.train.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert data.train.index.tolist() == list(range(24))
    assert (data.channels, data.image_size, data.num_classes) == (3, 32, 3)
    assert data.display_name == f"imagenet:{folder.name}"
    assert data.train.names[9] == b"n01443537/n01443537_1.JPEG"


def test_subsets_are_balanced_and_validation_comes_from_training(folder, load):
    data = load(folder, train_size=12, limits=(None, 3), validation_fraction=0.25)
    assert data.train.index.tolist() == [0, 1, 2, 8, 9, 10, 16, 17, 18]
    assert data.validation.index.tolist() == [3, 11, 19]
    assert data.test.index.tolist() == [0, 4, 8]
    first, last = data.train.first_per_class(1), data.train.last_per_class(1)
    assert (first.index.tolist(), last.index.tolist()) == ([0, 8, 16], [2, 10, 18])
    assert os.fsdecode(last.names[1]) == "n01443537/n01443537_2.JPEG"


def test_nothing_is_decoded_before_it_is_asked_for(folder, load, tmp_path):
    root = shutil.copytree(folder, tmp_path / "copy")
    (root / "train" / CLASSES[1] / f"{CLASSES[1]}_5.JPEG").write_bytes(b"no image")
    data = load(root)
    for workers in (0, 2):
        with pytest.raises(UserError, match=r"n01443537_5\.JPEG cannot be read .* replace or remove it") as caught:
            batches(data.train, workers=workers)()
        assert "\n" not in str(caught.value)
    assert len(batches(data.train.take(torch.arange(8)))()) == 2


def test_a_part_of_a_batch_holds_what_the_whole_batch_holds_there(folder, load):
    epoch = batches(load(folder).train, size=6, views=2, colour=True)
    whole, part = epoch(1, stride=2), epoch(1, stride=2, part=lambda count: (slice(2, count - 1), 1.0))
    cut = [tuple(item[2:5] for item in batch) for batch in whole]
    assert same(part, cut)


# ---- views


def test_evaluation_cuts_the_centre_out_of_the_resized_image(tmp_path, load):
    pixels = numpy.random.RandomState(1).randint(0, 256, (64, 80, 3), dtype=numpy.uint8)
    for split in SIZES:
        for name in CLASSES[:2]:
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / split / name / "0.png")
    data = load(tmp_path, image_size=56)  # 64 = 56 * 256 / 224: the shorter side stays as it is
    (batch,) = batches(data.test, augment=False, shuffle=False)()
    expected = torch.from_numpy(pixels[4:60, 12:68]).permute(2, 0, 1).float()
    assert torch.equal(batch.images[0], expected)
    assert (batch.labels.tolist(), batch.index.tolist()) == ([0, 1], [0, 1])


def test_training_views_are_parts_of_the_image(tmp_path, load):
    """Of an image whose red rises from left to right and whose green from top to bottom."""
    rising = numpy.tile(numpy.linspace(0, 255, 128).astype(numpy.uint8), (128, 1))
    pixels = numpy.stack([rising, rising.T, 0 * rising], -1)
    for split in SIZES:
        for name in CLASSES[:2]:
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(100):
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    train = load(tmp_path).train
    views = torch.cat([batch.images for batch in batches(train, size=50)()])
    left, right = views[:, 0, :, 0].mean(1), views[:, 0, :, -1].mean(1)
    top, bottom = views[:, 1, 0].mean(1), views[:, 1, -1].mean(1)
    mirrored = right < left
    assert 70 < mirrored.sum() < 130  # of 200
    assert (bottom > top).all()
    area = (right - left).abs() * (bottom - top) / 255**2
    assert 0.05 < area.min() < 0.2 and 0.8 < area.max() < 1.05
    never = torch.cat([batch.images for batch in batches(train, augmentation=AugmentationSettings())()])
    assert (never[:, 0, :, -1].mean(1) > never[:, 0, :, 0].mean(1)).all()


@pytest.mark.parametrize("views", [1, 2])
def test_no_bit_depends_on_the_workers(folder, load, views):
    train = load(folder).train
    alone = batches(train, views=views)()
    assert [len(batch.labels) for batch in alone] == [5, 5, 5, 5, 4]
    assert alone[0].images.shape == ((5, 3, 32, 32) if views == 1 else (5, 2, 3, 32, 32))
    for workers in (1, 2):
        assert same(batches(train, views=views, workers=workers)(), alone)


def test_an_epoch_is_a_function_of_its_seed(folder, load):
    train = load(folder).train
    first = batches(train)()
    assert same(batches(train)(), first)
    assert not torch.equal(batches(train, seed=12)()[0].images, first[0].images)
    views = batches(train, views=2)()[0].images
    assert not torch.equal(views[:, 0], views[:, 1])
    part = batches(train.take(torch.tensor([20, 3, 9])), shuffle=False)()[0]
    whole = {int(row): image for batch in first for row, image in zip(batch.index, batch.images, strict=True)}
    assert all(torch.equal(part.images[place], whole[row]) for place, row in enumerate([20, 3, 9]))


def test_entering_an_epoch_gives_the_rest_and_decodes_nothing_else(folder, load, monkeypatch):
    train = load(folder).train
    whole = batches(train)()
    read = []
    original = ImageFiles.read
    monkeypatch.setattr(ImageFiles, "read", lambda self, row: read.append(row) or original(self, row))
    assert same(batches(train)(3), whole[3:])
    assert read == [row for batch in whole[3:] for row in batch.index.tolist()]


def test_a_process_that_leaves_an_epoch_half_read_ends(folder):
    script = f"""
import torch
from runner.datasets import load_data
from runner.schema import DatasetSettings, Scale
settings = DatasetSettings(name="imagenet", path={str(folder)!r}, image_size=32, normalisation={NORMALISATION!r})
scale = Scale(
    name="paper", max_train_examples=None, max_test_examples=None, max_epochs=None, max_steps=None,
    small_image_stem="imagenet", export_program=False)
data = load_data(settings, scale, data_root=".", offline=True)
epoch = data.train.batches(data.normalisation, 2, shuffle=True, augmentation=data.augmentation, workers=2).iterate(7)
next(epoch)
raise KeyError("left with the epoch in its hand")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "KeyError: 'left with the epoch in its hand'"


def test_the_generators_of_the_run_are_left_alone(folder, load):
    train = load(folder).train
    for workers in (0, 2):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        list(batches_without_seed(train, workers))
        assert torch.equal(torch.get_rng_state(), before)


def batches_without_seed(images, workers):
    augmentation = AugmentationSettings(horizontal_flip=True)
    return images.batches(PLAIN, 5, shuffle=True, augmentation=augmentation, workers=workers).iterate(7)


def test_workers_by_the_number_of_cores():
    assert 1 <= default_workers() <= 8


# ---- runs


def words(folder: Path, *more: str) -> tuple[str, ...]:
    short = ("dataset=imagenet", f"dataset.path={folder}", "dataset.image_size=32", "scale=smoke", "hardware=cpu")
    return ("method=supervised", "model=resnet20", *short, "scale.max_steps=4", "recipe.batch_size=4", *more)


@pytest.mark.slow
def test_killed_and_resumed_with_other_workers_it_ends_with_the_same_bits(folder, tmp_path):
    undisturbed = runner(*words(folder, "hardware.workers=0"), place=tmp_path / "undisturbed")
    assert undisturbed.code == 0, undisturbed.err
    command = words(folder, "checkpoint.every_seconds=0", "hardware.workers=2")
    answer, kills = killed_and_repeated(command, tmp_path / "killed", [(1, 0.0), (1, 0.0), (2, 0.0)])
    assert answer.code == 0, answer.err
    assert kills >= 1
    assert outcome(answer) == outcome(undisturbed)
    assert answer.folder.name == undisturbed.folder.name
    until(lambda: not writing_below(tmp_path), seconds=30)  # workers look for their run every five seconds


def writing_below(folder: Path) -> list[int]:
    """The processes that have a file below ``folder`` open."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(Path(file.path).is_relative_to(folder) for file in process.open_files()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_a_stop_of_the_whole_process_group_saves(folder, tmp_path):
    """As a scheduler sends it: the workers get the signal too."""
    more = ("scale.max_steps=null", "scale.max_epochs=null", "recipe.epochs=400", "hardware.workers=2")
    command = Command(*words(folder, *more), place=tmp_path)
    until(lambda: list(tmp_path.glob("work/runs/*/*/metrics.jsonl")) or not command.process.is_alive())
    main = psutil.Process(command.process.pid)
    until(lambda: main.children() or not command.process.is_alive())
    for process in [*main.children(), main]:
        process.send_signal(signal.SIGTERM)
    answer = command.wait()
    assert answer.code == 75, answer.err


def test_two_processes_read_what_one_reads(folder, tmp_path):
    network = ("model.target=rank_methods:network", "recipe.batch_size=7", "scale.max_steps=null")
    one = runner(*words(folder, *network, "hardware.workers=0"), place=tmp_path / "one")
    two = runner(*words(folder, *network, "hardware.processes=2"), place=tmp_path / "two")
    assert (one.code, two.code) == (0, 0), one.err + two.err
    assert two.result["metrics"] == pytest.approx(one.result["metrics"], rel=1e-4)
    weights = [load_file(answer.folder / "artifacts" / "model" / "weights.safetensors") for answer in (one, two)]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])


@pytest.mark.slow
def test_a_method_with_a_search_runs_on_it(folder, tmp_path):
    command = [word for word in words(folder, "hardware.workers=0") if not word.startswith("method=")]
    answer = runner("method=ekg", *command, place=tmp_path)
    assert answer.code == 0, answer.err
    assert answer.result["dataset"] == f"imagenet:{folder.name}"


def test_without_a_path_it_is_refused_before_anything_is_written(tmp_path):
    answer = runner("method=supervised", "dataset=imagenet", "recipe=imagenet", "scale=paper", place=tmp_path)
    assert (answer.code, answer.out) == (2, "")
    assert "needs dataset.path=FOLDER with train/WNID" in answer.message and "image-net.org" in answer.message
    assert not (tmp_path / "work" / "runs").exists()


# ---- wrong layouts


def refused(path: Path, words: str, **settings) -> None:
    settings = {"image_size": 32, "normalisation": NORMALISATION, **settings}
    with pytest.raises(UserError, match=words) as caught:
        check_dataset(DatasetSettings(name="imagenet", path=str(path), **settings), path.parent, offline=True)
    assert "\n" not in str(caught.value)


def test_unsorted_validation_images_name_the_cure(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "flat")
    shutil.rmtree(root / "val")
    (root / "val").mkdir()
    for number in (1, 2):
        Image.new("RGB", (8, 8)).save(root / "val" / f"ILSVRC2012_val_0000000{number}.JPEG")
    refused(root, r"2 images lie in val itself, such as ILSVRC2012_val_00000001\.JPEG.*sorted into val/WNID.*devkit")


def test_other_mistakes(folder, tmp_path, load):
    refused(tmp_path, "has no folder train")
    (tmp_path / "ILSVRC2012_img_train.tar").touch()
    refused(tmp_path, r"has no folder train.*ILSVRC2012_img_train\.tar is there")
    refused(tmp_path / "ILSVRC2012_img_train.tar", "is a file; needs a folder")
    refused(tmp_path / "nowhere", "no such file or folder")
    for split in SIZES:
        (tmp_path / split).mkdir()
    refused(tmp_path, "train is empty")
    refused(folder, r"dataset\.image_size=null", image_size=None)
    refused(folder, r"dataset\.normalisation=null", normalisation=None)
    refused(folder, "crop_padding=4.*set 0", augmentation=AugmentationSettings(crop_padding=4))
    root = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(root / "val" / CLASSES[2])
    with pytest.raises(UserError, match="the class n02096585 is not in both"):
        load(root)
    (root / "val" / CLASSES[2]).mkdir()
    with pytest.raises(UserError, match="holds no images"):
        load(root)


def test_fingerprint(folder, tmp_path):
    def mark(path: Path) -> str | None:
        return fingerprint("imagenet", str(path))

    root = shutil.copytree(folder, tmp_path / "copy")
    first = mark(folder)
    assert mark(root) == first
    with (root / "val" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG").open("ab") as file:
        file.write(b"x")
    larger = mark(root)
    (root / "train" / CLASSES[2] / f"{CLASSES[2]}_7.JPEG").rename(root / "train" / CLASSES[2] / "other.JPEG")
    assert len({first, larger, mark(root)}) == 3


# ---- real data


@pytest.mark.slow
def test_tiny_imagenet_in_its_layout(shared_data, tmp_path, load):
    wanted: set[str] = set()
    with tarfile.open(shared_data / "tiny_imagenet_100_per_class.tar.xz") as archive:
        for member in archive:
            split, _, rest = member.name.removeprefix("./").partition("/")
            if member.isfile() and split in SIZES and (rest[:9] in wanted or len(wanted) < 5):
                wanted.add(rest[:9])
                archive.extract(member, tmp_path, filter="data")
    data = load(tmp_path, image_size=56, limits=(50, 50))
    assert (data.num_classes, len(data.train), len(data.test)) == (5, 50, 50)
    (batch,) = batches(data.test, size=50, augment=False, shuffle=False, workers=2)()
    path = data.test.folder / os.fsdecode(data.test.names[17])
    stored = torch.from_numpy(numpy.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    assert stored.shape == (3, 64, 64)
    assert torch.equal(batch.images[17], stored[:, 4:60, 4:60].float())
