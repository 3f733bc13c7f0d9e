"""The user's own images: every kind of archive, every layout, every mistake."""

import gzip
import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from runner.datasets import check_dataset, decoded, fingerprint, image_folder, load_data
from runner.errors import UserError
from runner.schema import DatasetSettings

KINDS = ["folder", "tar", "tar.gz", "tar.bz2", "tar.xz", "zip"]


def png(value: int, size: tuple[int, int] = (6, 6)) -> bytes:
    """A one-coloured image (width, height)."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 2 * value % 256, 255 - value)).save(buffer, "png")
    return buffer.getvalue()


def tree(splits: tuple[str, ...] = ("train", "test"), root: str = "", count: int = 5) -> dict[str, bytes]:
    """split/class/NN.png; the value of each image tells split, class and number."""
    return {
        f"{root}{split + '/' if split else ''}{name}/{number:02}.png": png(100 * s + 20 * c + number)
        for s, split in enumerate(splits)
        for c, name in enumerate(["cat", "dog"])
        for number in range(count)
    }


def pack(folder: Path, content: dict[str, bytes], kind: str = "tar", reverse: bool = False) -> Path:
    """Write the files as a folder or archive; archives hold them in the given or the reverse order."""
    items = sorted(content.items(), reverse=reverse)
    if kind == "folder":
        for name, data in items:
            target = folder / "pets" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        return folder / "pets"
    path = folder / f"pets.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in items:
                archive.writestr(name, data)
        return path
    with tarfile.open(path, f"w:{kind.partition('.')[2]}") as archive:
        for name, data in items:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def load(scale):
    def load(path: Path, *, limits: tuple = (None, None), **settings):
        settings = DatasetSettings(name="image_folder", path=str(path), **settings)
        return load_data(settings, scale("paper", *limits), data_root=path.parent, offline=True)

    return load


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(tmp_path, load, kind, reverse):
    data = load(pack(tmp_path, tree(), kind, reverse))
    assert data.display_name == "image_folder:pets"
    assert data.class_names == ["cat", "dog"]
    assert data.train.images.shape == data.test.images.shape == (10, 3, 6, 6)
    assert data.train.labels.tolist() == data.test.labels.tolist() == [0] * 5 + [1] * 5
    assert data.train.index.tolist() == list(range(10))
    red = [100 * split + 20 * c + n for split in (0, 1) for c in (0, 1) for n in range(5)]
    assert data.train.images[:, 0, 3, 3].tolist() + data.test.images[:, 0, 3, 3].tolist() == red
    assert data.train.images[7, :, 0, 0].tolist() == [22, 44, 233]


@pytest.mark.parametrize("kind", ["folder", "tar.xz", "zip"])
def test_limits_take_the_first_of_every_class(tmp_path, load, kind):
    path = pack(tmp_path, tree(), kind)
    data = load(path, limits=(None, 2), train_size=5)
    assert data.train.index.tolist() == [0, 1, 2, 5, 6]
    assert data.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 20, 21]
    assert data.test.images[:, 0, 0, 0].tolist() == [100, 120]


@pytest.mark.parametrize("root", ["", "./", "pets-v1/", "a/b/"])
def test_folders_around_it_all_are_looked_through(tmp_path, load, root):
    assert load(pack(tmp_path, tree(root=root), "tar")).class_names == ["cat", "dog"]


def test_val_is_the_test_split_where_there_is_no_test(tmp_path, load, capsys):
    data = load(pack(tmp_path, tree(("train", "val"))))
    assert data.test.images[:, 0, 0, 0].tolist() == [100, 101, 102, 103, 104, 120, 121, 122, 123, 124]
    assert "val is the test split" in capsys.readouterr().err


def test_val_beside_test_is_left_and_said(tmp_path, load, capsys):
    data = load(pack(tmp_path, tree(("train", "val", "test"), count=3)))
    assert data.test.images[0, 0, 0, 0] == 200
    assert "val is left unread" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["", "train"])
def test_without_splits_the_last_fifth_is_the_test_split(tmp_path, load, capsys, split):
    path = pack(tmp_path, tree((split,), count=10))
    for _ in range(2):  # said again when the images come from the cache
        data = load(path)
        assert data.train.images[:, 0, 0, 0].tolist() == [*range(8), *range(20, 28)]
        assert data.test.images[:, 0, 0, 0].tolist() == [8, 9, 28, 29]
        assert "the last fifth of every class" in capsys.readouterr().err


def test_other_files_are_ignored(tmp_path, load):
    other = {"words.txt": b"x", "train/.DS_Store": b"x", "__MACOSX/train/cat/._01.png": b"x", "train/cat/notes.md": b""}
    assert len(load(pack(tmp_path, tree() | other)).train) == 10


def test_gray_and_palette_images_become_rgb(tmp_path, load):
    content = tree()
    for name, mode in [("train/cat/00.png", "L"), ("train/cat/01.png", "P"), ("train/cat/02.png", "RGBA")]:
        buffer = io.BytesIO()
        Image.new("RGB", (6, 6), (51, 51, 51)).convert(mode).save(buffer, "png")
        content[name] = buffer.getvalue()
    assert load(pack(tmp_path, content)).train.images[:3].unique().tolist() == [51]


def test_sizes_shorter_side_resized_and_centre_cut(tmp_path, load):
    wide = numpy.zeros((4, 12, 3), dtype=numpy.uint8)
    wide[:, 4:8] = 200  # the centre square
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, "png")
    data = load(pack(tmp_path, tree() | {"train/cat/00.png": buffer.getvalue()}), image_size=4)
    assert data.train.images.shape[2:] == (4, 4)
    assert data.train.images[0].unique().tolist() == [200]
    assert data.train.images[1, 0].unique().tolist() == [1]


def test_bytes_of_the_result_do_not_depend_on_the_cache(tmp_path, load, own_cache, monkeypatch):
    path = pack(tmp_path, tree(), "tar.gz")
    fresh = load(path, train_size=4)
    monkeypatch.setattr(image_folder, "decode_all", None)  # only the cache is left
    again = load(path, train_size=4)
    for split in ("train", "test"):
        for name in ("images", "labels", "index"):
            assert torch.equal(getattr(getattr(fresh, split), name), getattr(getattr(again, split), name))
    assert again.class_names == fresh.class_names


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_cache_is_ignored_and_rewritten(tmp_path, load, own_cache, damage):
    path = pack(tmp_path, tree())
    fresh = load(path)
    (stored,) = (own_cache / "decoded").iterdir()
    whole = bytearray(stored.read_bytes())
    bad = {"cut": whole[:-100], "empty": b"", "text": b"hello" * 20}.get(damage)
    if bad is None:
        whole[-50] ^= 1
        bad = whole
    stored.write_bytes(bad)
    assert torch.equal(load(path).train.images, fresh.train.images)
    assert decoded.read(stored.stem) is not None
    assert len(list((own_cache / "decoded").iterdir())) == 1


def test_the_cache_keeps_a_few(tmp_path, load, own_cache):
    path = pack(tmp_path, tree())
    for size in range(2, 10):
        load(path, train_size=size)
    assert len(list((own_cache / "decoded").iterdir())) == decoded.KEPT


def test_a_changed_folder_is_read_again(tmp_path, load):
    path = pack(tmp_path, tree(), "folder")
    load(path)
    changed = path / "train/cat/00.png"
    size = changed.stat().st_size
    value = next(value for value in range(1, 200) if len(png(value)) == size)  # the same names and sizes
    changed.write_bytes(png(value))
    os.utime(changed, ns=(1, 1))
    assert load(path).train.images[0, 0, 0, 0] == value


def test_an_unwritable_cache_costs_nothing_else(tmp_path, load, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))  # a file, so no folder can be made in it
    assert len(load(pack(tmp_path, tree())).train) == 10


# ---- mistakes


def refused(load, path: Path, match: str, **settings) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load(path, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_no_images(tmp_path, load, kind):
    refused(load, pack(tmp_path, {"train/cat/words.txt": b"x"}, kind), "holds no images")


def test_an_empty_folder(tmp_path, load):
    refused(load, tmp_path, "holds no images")


def test_other_layouts(tmp_path, load):
    refused(load, pack(tmp_path, {"a.png": png(1), "b.png": png(2)}), "a.png lies outside a class folder")
    refused(load, pack(tmp_path, tree() | {"train/a.png": png(1)}), "train/a.png lies outside a class folder")
    refused(load, pack(tmp_path, tree() | {"train/cat/x/a.png": png(1)}), "x/a.png lies deeper than a class folder")
    refused(load, pack(tmp_path, tree(("test", "val"))), "needs train and test")
    refused(load, pack(tmp_path, {"train/cat/1.png": png(1), "test/cat/1.png": png(1)}), "only the class cat")
    refused(load, pack(tmp_path, {"cat/1.png": png(1), "dog/1.png": png(1)}), "the class cat has one image")


def test_classes_that_are_missing_in_a_split(tmp_path, load):
    content = tree()
    refused(load, pack(tmp_path, content | {"train/emu/1.png": png(1)}), "the class emu has no test images")
    refused(load, pack(tmp_path, content | {"test/emu/1.png": png(1)}), "the class emu has no train images")


@pytest.mark.parametrize("kind", KINDS)
def test_a_corrupt_image_is_named(tmp_path, load, kind):
    content = tree()
    whole = content["train/dog/03.png"]
    content["train/dog/03.png"] = whole[: len(whole) // 2]
    path = pack(tmp_path, content, kind)
    refused(load, path, r"the image train/dog/03\.png is damaged")
    assert len(load(path, train_size=6).train) == 6  # it is not among these


def test_differing_sizes_without_a_size(tmp_path, load):
    path = pack(tmp_path, tree() | {"train/cat/03.png": png(1, (7, 6))})
    refused(load, path, r"train/cat/03\.png is 7x6 pixels, .* is 6x6; set dataset\.image_size")
    path = pack(tmp_path, {name: png(1, (4, 6)) for name in tree()})
    refused(load, path, "is 4x6 pixels, not square")


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.8])
def test_truncated_archives(tmp_path, load, kind, part):
    content = {name: data + os.urandom(3000) for name, data in tree().items()}  # what follows a png's end is not read
    path = pack(tmp_path, content, kind)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    refused(load, path, "cut off")


def test_a_plain_tar_cut_between_members(tmp_path, load):
    path = pack(tmp_path, tree())
    with tarfile.open(path) as archive:
        end = archive.getmembers()[-3].offset
    path.write_bytes(path.read_bytes()[:end])
    refused(load, path, "without an end mark")


def test_not_an_archive(tmp_path, load):
    for name, content in [("a.png", png(1)), ("b.tar", b""), ("c.zip", b"hello"), ("d.gz", gzip.compress(b"hello"))]:
        path = tmp_path / name
        path.write_bytes(content)
        refused(load, path, "no archive that can be read")


def test_missing_paths(tmp_path, load, scale):
    pack(tmp_path, tree())
    refused(load, tmp_path / "pet.tar", r"no such file or folder; did you mean pets\.tar\?")
    refused(load, tmp_path / "nowhere" / "x.tar", "no such file or folder")
    with pytest.raises(UserError, match=r"needs dataset\.path=PATH"):
        check_dataset(DatasetSettings(name="image_folder"), tmp_path, offline=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_paths(tmp_path, load):
    path = pack(tmp_path, tree())
    path.chmod(0)
    refused(load, path, "permission denied")


def test_more_than_the_memory_holds(tmp_path, load):
    refused(load, pack(tmp_path, tree()), "GiB of memory", image_size=100_000)


# ---- real data


def test_cifar10_jpeg(shared_data, load):
    data = load(shared_data / "cifar10_jpeg.tar.xz", train_size=50, limits=(None, 20))
    assert data.display_name == "image_folder:cifar10_jpeg"
    assert data.class_names[:3] == ["airplane", "automobile", "bird"]
    assert data.train.index.tolist() == [5000 * c + n for c in range(10) for n in range(5)]
    with tarfile.open(shared_data / "cifar10_jpeg.tar.xz") as archive:
        for member in archive:  # test/airplane comes first
            if member.name == "test/airplane/0001.jpg":
                expected = numpy.asarray(Image.open(archive.extractfile(member)))
                break
    assert numpy.array_equal(data.test.images[1].permute(1, 2, 0).numpy(), expected)


@pytest.mark.slow
def test_layouts_of_real_archives(shared_data, load):
    layout = image_folder.arrange(
        Path("x"), image_folder.archive.list_files(shared_data / "tiny_imagenet_100_per_class.tar.xz")
    )
    assert len(layout.class_names) == 200
    assert {split: len(names) for split, names in layout.names.items()} == {"train": 20_000, "test": 10_000}
    refused(load, shared_data / "omniglot" / "images_background_small1.zip", "lies deeper than a class folder")


@pytest.mark.slow
def test_cifar10_jpeg_whole(shared_data, load):
    data = load(shared_data / "cifar10_jpeg.tar.xz")
    assert torch.bincount(data.train.labels).tolist() == [5000] * 10
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    assert data.normalisation.mean.tolist() == pytest.approx([125.3, 123.0, 113.9], abs=0.1)
    assert data.normalisation.std.tolist() == pytest.approx([63.0, 62.1, 66.7], abs=0.6)  # JPEG takes some contrast


# ---- fingerprints


def mark(path: Path) -> str | None:
    return fingerprint("image_folder", str(path))


def test_fingerprint_of_an_archive_is_its_content(tmp_path, own_cache):
    path = pack(tmp_path, tree(), "zip")
    moved = tmp_path / "other.zip"
    shutil.copy(path, moved)
    first = mark(path)
    assert first == mark(moved) == mark(path)
    moved.write_bytes(moved.read_bytes() + b"x")
    assert mark(moved) != first
    for bad in ("{", "[]", '{"a": 1}'):
        (own_cache / "fingerprints.json").write_text(bad)
        assert mark(path) == first


def test_fingerprint_is_cached_by_size_and_time(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"one")
    os.utime(path, ns=(5, 5))
    first = mark(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(5, 5))
    assert mark(path) == first  # neither differs: the stored one
    os.utime(path, ns=(6, 6))
    assert mark(path) != first


def test_fingerprint_of_a_folder_is_names_and_sizes(tmp_path):
    path = pack(tmp_path, tree(), "folder")
    first = mark(path)
    os.utime(path / "train/cat/00.png", ns=(1, 1))
    (path / ".hidden").write_text("x")
    assert mark(path) == first == mark(shutil.copytree(path, tmp_path / "copy"))
    (path / "train/cat/00.png").rename(path / "train/cat/99.png")
    renamed = mark(path)
    with (path / "train/cat/99.png").open("ab") as file:
        file.write(b"x")
    assert len({first, renamed, mark(path)}) == 3
