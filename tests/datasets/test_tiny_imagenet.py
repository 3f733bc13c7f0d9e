"""Tiny ImageNet: the published layout, folder and zip, and archives of split/class/image."""

import hashlib
import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from runner.datasets import check_dataset, load_data, tiny_imagenet
from runner.errors import UserError
from runner.schema import DatasetSettings

CLASSES = ("n01443537", "n01629819", "n02058221")


def jpeg(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (level, level, level)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def published(training: int = 4, validation: int = 6) -> dict[str, bytes]:
    """File name -> content: training images of class k are 10k + number gray, validation images 100 + number."""
    files, lines = {}, []
    for k, wnid in enumerate(CLASSES):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"boxes"
        for number in range(training):
            files[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = jpeg(10 * k + number)
    for number in range(validation):
        files[f"val/images/val_{number}.JPEG"] = jpeg(100 + number)
        lines.append(f"val_{number}.JPEG\t{CLASSES[-1 - number % 3]}\t0\t0\t62\t62")
        files[f"test/images/test_{number}.JPEG"] = jpeg(200)
    files["val/val_annotations.txt"] = "\n".join(lines).encode()
    files["words.txt"] = files["wnids.txt"] = b"n01443537\tgoldfish"
    return {f"tiny-imagenet-200/{name}": content for name, content in files.items()}


def as_folder(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder / "tiny-imagenet-200"


def as_zip(files: dict[str, bytes], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def load(scale, tmp_path):
    def load(path=None, root=tmp_path / "data", **settings):
        settings = DatasetSettings(name="tiny_imagenet", path=path and str(path), image_size=64, **settings)
        return load_data(settings, scale("paper"), data_root=root, offline=True)

    return load


@pytest.mark.parametrize("kind", ["folder", "folder above", "zip"])
def test_the_published_layout(tmp_path, load, kind):
    files = published()
    place = {
        "folder": lambda: as_folder(files, tmp_path / "mine"),
        "folder above": lambda: as_folder(files, tmp_path / "mine").parent,
        "zip": lambda: as_zip(files, tmp_path / "mine" / "any.zip"),
    }[kind]()
    data = load(place)
    assert (data.display_name, data.class_names, data.image_size) == ("Tiny ImageNet", list(CLASSES), 64)
    assert data.train.labels.tolist() == [k for k in range(3) for _ in range(4)]
    levels = data.train.images[:, 0, 32, 32].tolist()
    assert levels == pytest.approx([10 * k + number for k in range(3) for number in range(4)], abs=1)
    found = sorted(zip(data.test.images[:, 0, 0, 0].tolist(), data.test.labels.tolist(), strict=True))
    assert [label for _, label in found] == [2, 1, 0, 2, 1, 0]  # as annotated, in order of the images' numbers
    assert load(place, train_size=3).train.labels.tolist() == [0, 1, 2]


def test_the_zip_in_the_data_folder_is_checked(tmp_path, load, monkeypatch):
    with pytest.raises(UserError, match=r"put tiny-imagenet-200\.zip there.*offline=true forbids"):
        load()
    place = as_zip(published(), tmp_path / "data" / tiny_imagenet.ARCHIVE)
    with pytest.raises(UserError, match="is damaged"):
        load()
    monkeypatch.setattr(tiny_imagenet, "MD5", hashlib.md5(place.read_bytes()).hexdigest())
    assert len(load().test) == 6


def test_it_is_fetched_and_checked(tmp_path, monkeypatch, scale, server, capsys):
    folder, address = server
    place = as_zip(published(), folder / tiny_imagenet.ARCHIVE)
    monkeypatch.setattr(tiny_imagenet, "URL", address + tiny_imagenet.ARCHIVE)
    settings = DatasetSettings(name="tiny_imagenet")
    with pytest.raises(UserError, match="failed"):
        load_data(settings, scale("paper"), data_root=tmp_path / "data", offline=False)
    assert not (tmp_path / "data").exists() or not any((tmp_path / "data").iterdir())
    monkeypatch.setattr(tiny_imagenet, "MD5", hashlib.md5(place.read_bytes()).hexdigest())
    assert len(load_data(settings, scale("paper"), data_root=tmp_path / "data", offline=False).train) == 12
    assert "248.1 MB" in capsys.readouterr().err


def test_split_class_image(tmp_path, load):
    files = {f"{split}/{wnid}/{n}.JPEG": jpeg(50) for split in ("train", "val") for wnid in CLASSES for n in range(2)}
    data = load(as_zip(files, tmp_path / "part.zip"))
    assert (len(data.train), len(data.test), data.class_names) == (6, 6, list(CLASSES))


def test_an_image_without_annotation(tmp_path, load):
    files = published() | {"tiny-imagenet-200/val/images/val_77.JPEG": jpeg(1)}
    with pytest.raises(UserError, match=r"does not name val_77\.JPEG"):
        load(as_folder(files, tmp_path))


def test_a_missing_path():
    with pytest.raises(UserError, match="no such file or folder"):
        check_dataset(DatasetSettings(name="tiny_imagenet", path="/no/such"), "data", offline=True)


def test_a_part_of_the_real_set(shared_data, load):
    data = load(shared_data / "tiny_imagenet_100_per_class.tar.xz", train_size=200, test_size=200)
    assert data.num_classes == 200 and data.train.labels.tolist() == [*range(200)]


def test_the_cache_of_decoded_images_knows_who_arranged_them(tmp_path, load, scale):
    path = as_zip(published(), tmp_path / "tiny.zip")
    load(path)
    other = DatasetSettings(name="image_folder", path=str(path), image_size=64)
    with pytest.raises(UserError, match="lies deeper than a class folder"):
        load_data(other, scale("paper"), data_root="unused", offline=True)
