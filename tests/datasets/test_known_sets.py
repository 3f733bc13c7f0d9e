"""Digits, Fashion-MNIST, CIFAR-10: content, downloads from a server of the test, damaged and missing files."""

import gzip
import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

from runner.datasets import check_dataset, fashion_mnist, fingerprint, load_data
from runner.datasets.cifar import SETS
from runner.errors import UserError
from runner.schema import DatasetSettings


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def load(scale, tmp_path):
    def load(name: str, root: Path = tmp_path / "data", offline: bool = True, limits: tuple = (), **settings):
        settings = DatasetSettings(name=name, **settings)
        return load_data(settings, scale("paper", *limits), data_root=root, offline=offline)

    return load


# ---- digits


def test_digits(load):
    data = load("digits", image_size=32)
    assert (len(data.train), len(data.test), data.num_classes, data.channels) == (1442, 355, 10, 3)
    counts = torch.bincount(data.train.labels) + torch.bincount(data.test.labels)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # scikit-learn's page of the set
    assert torch.bincount(data.test.labels).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    assert (data.train.images[:, 0] == data.train.images[:, 2]).all()
    assert data.train.images.max() == 255


def test_digits_as_stored_and_split_at_the_end_of_every_class(load):
    from sklearn.datasets import load_digits

    data, bunch = load("digits"), load_digits()
    assert data.image_size == 8
    first = numpy.round(bunch.images[0] * 255 / 16).astype("uint8")
    assert numpy.array_equal(data.train.images[0, 1].numpy(), first)
    sevens = numpy.flatnonzero(bunch.target == 7)
    expected = numpy.round(bunch.images[sevens[-35:]] * 255 / 16)
    assert numpy.array_equal(data.test.images[data.test.labels == 7][:, 0].numpy(), expected)


def test_digits_take_no_path(tmp_path, load):
    with pytest.raises(UserError, match="dataset=image_folder"):
        load("digits", path=str(tmp_path))


# ---- Fashion-MNIST


def idx(array: numpy.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return header + array.astype("uint8").tobytes()


@pytest.fixture
def fashion(monkeypatch) -> dict[str, bytes]:
    """Small files in the format of the set, with the published checksums replaced by theirs."""
    generator = numpy.random.default_rng(0)
    content = {}
    for name, count in [("train", 30), ("t10k", 20)]:
        content[f"{name}-images-idx3-ubyte"] = idx(generator.integers(0, 256, (count, 28, 28)))
        content[f"{name}-labels-idx1-ubyte"] = idx(numpy.arange(count) % 10)
    monkeypatch.setattr(fashion_mnist, "CONTENT", {name: md5(data) for name, data in content.items()})
    return content


def put(folder: Path, content: dict[str, bytes], packed: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("below", ["", "raw", "FashionMNIST/raw"])
def test_fashion_mnist_is_found_and_only_read(tmp_path, load, fashion, packed, below):
    put(tmp_path / "mine" / below, fashion, packed)
    before = sorted((tmp_path / "mine").rglob("*"))
    data = load("fashion_mnist", path=str(tmp_path / "mine"), image_size=32)
    assert data.train.images.shape == (30, 3, 32, 32)
    assert data.test.labels.tolist() == [*range(10)] * 2
    raw = numpy.frombuffer(fashion["train-images-idx3-ubyte"][16:], "uint8").reshape(-1, 28, 28)
    assert numpy.array_equal(data.train.images[:, 1, 2:30, 2:30].numpy(), raw)
    assert data.train.images.sum() == 3 * int(raw.sum(dtype="int64"))  # zeros around
    assert sorted((tmp_path / "mine").rglob("*")) == before
    assert not (tmp_path / "data").exists()


def test_fashion_mnist_sizes(tmp_path, load, fashion):
    put(tmp_path, fashion)
    raw = numpy.frombuffer(fashion["train-images-idx3-ubyte"][16:], "uint8").reshape(-1, 28, 28)
    assert load("fashion_mnist", path=str(tmp_path)).image_size == 28
    small = load("fashion_mnist", path=str(tmp_path), image_size=14).train.images[:, 0].numpy()
    means = raw.reshape(-1, 14, 2, 14, 2).mean((2, 4))
    assert numpy.abs(small - means).max() <= 0.5


def test_fashion_mnist_download(tmp_path, load, fashion, server, monkeypatch, capsys):
    folder, address = server
    put(folder, fashion)
    sums = [(f"{name}.gz", md5((folder / f"{name}.gz").read_bytes())) for name in fashion]
    monkeypatch.setattr(FashionMNIST, "resources", sums)
    monkeypatch.setattr(FashionMNIST, "mirrors", [address + "nowhere/", address])
    with pytest.raises(UserError, match="offline=true forbids"):
        load("fashion_mnist")
    assert len(load("fashion_mnist", offline=False).train) == 30
    out, err = capsys.readouterr()
    assert "30.9 MB" in err
    assert out == ""
    assert sorted(path.name for path in (tmp_path / "data").rglob("*")) == sorted(
        ["FashionMNIST", "raw", *(name for name, _ in sums)]
    )
    assert len(load("fashion_mnist").train) == 30  # now offline


def test_a_broken_download_leaves_nothing(tmp_path, load, fashion, server, monkeypatch):
    folder, address = server
    put(folder, fashion)
    sums = [(f"{name}.gz", md5((folder / f"{name}.gz").read_bytes())) for name in fashion]
    monkeypatch.setattr(FashionMNIST, "resources", sums)
    monkeypatch.setattr(FashionMNIST, "mirrors", [address])
    last = folder / sums[-1][0]
    last.write_bytes(last.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"failed: .*put .*train-images-idx3-ubyte\.gz"):
        load("fashion_mnist", offline=False)
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == []


def test_fashion_mnist_damaged(tmp_path, load, fashion):
    put(tmp_path, fashion)
    file = tmp_path / "t10k-labels-idx1-ubyte.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte\.gz is damaged"):
        load("fashion_mnist", path=str(tmp_path))
    file.write_bytes(gzip.compress(b"other"))
    with pytest.raises(UserError, match="its checksum differs"):
        load("fashion_mnist", path=str(tmp_path))
    file.unlink()
    with pytest.raises(UserError, match="found no Fashion-MNIST"):
        load("fashion_mnist", path=str(tmp_path))


def test_parse_idx():
    array = numpy.arange(24).reshape(2, 3, 4)
    assert numpy.array_equal(fashion_mnist.parse_idx(idx(array)), array)
    for bad in (b"", b"\0\0\x08\x01", b"\0\0\x0d\x01\0\0\0\0", idx(array)[:-1], idx(array) + b"x"):
        with pytest.raises(ValueError, match=r"idx|reshape"):
            fashion_mnist.parse_idx(bad)


def test_real_fashion_mnist(shared_data, load):
    data = load("fashion_mnist", path=str(shared_data), image_size=28)
    assert torch.bincount(data.train.labels).tolist() == [6000] * 10
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    assert data.train.labels[:5].tolist() == [9, 0, 0, 3, 0]
    # published: mean 0.2860, standard deviation 0.3530 of the training pixels
    assert data.normalisation.mean[0].item() / 255 == pytest.approx(0.2860, abs=5e-5)
    assert data.normalisation.std[0].item() / 255 == pytest.approx(0.3530, abs=5e-5)


# ---- CIFAR-10


@pytest.fixture
def cifar(tmp_path, monkeypatch) -> tuple[Path, numpy.ndarray]:
    """A small archive in the format of the set, with the published checksums replaced by its own; and its pixels."""
    pixels = numpy.random.default_rng(0).integers(0, 256, (60, 3072)).astype("uint8")
    batches, sums = {}, {}
    for number, name in enumerate(SETS["cifar10"].batches[1:]):
        part = pixels[10 * number : 10 * number + 10]
        batches[name] = pickle.dumps({"data": part, "labels": [*range(10)]})
    batches["batches.meta"] = pickle.dumps({"label_names": [f"class {k}" for k in range(10)]})
    sums = {name: md5(content) for name, content in batches.items()}
    archive = tmp_path / "made" / SETS["cifar10"].archive
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in batches.items():
            member = tarfile.TarInfo(f"{SETS['cifar10'].folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive.read_bytes()))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in SETS["cifar10"].batches[1:6]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    return archive, pixels.reshape(60, 3, 32, 32)


def test_cifar10_from_an_archive_and_a_folder(tmp_path, load, cifar):
    archive, pixels = cifar
    data = load("cifar10", path=str(archive))
    assert numpy.array_equal(torch.cat([data.train.images, data.test.images]).numpy(), pixels)
    assert data.class_names[3] == "class 3"
    assert data.train.labels.tolist() == [*range(10)] * 5
    unpacked = tmp_path / "data"
    assert [path.name for path in unpacked.iterdir()] == [SETS["cifar10"].folder]  # nothing temporary is left
    for root, path in [(unpacked, None), (tmp_path, str(unpacked)), (tmp_path, str(unpacked / SETS["cifar10"].folder))]:
        assert len(load("cifar10", root, path=path).train) == 50
    assert load("cifar10", path=str(archive.parent), image_size=16).train.images.shape == (50, 3, 16, 16)


def test_cifar10_download(tmp_path, load, cifar, server, monkeypatch, capsys):
    folder, address = server
    (folder / SETS["cifar10"].archive).write_bytes(cifar[0].read_bytes())
    monkeypatch.setattr(CIFAR10, "url", address + SETS["cifar10"].archive)
    with pytest.raises(UserError, match=r"put cifar-10-python\.tar\.gz .*offline=true forbids"):
        load("cifar10")
    assert len(load("cifar10", offline=False).test) == 10
    assert "downloading CIFAR-10 (170.5 MB)" in capsys.readouterr().err
    assert len(load("cifar10").test) == 10
    assert [path.name for path in (tmp_path / "data").iterdir()] == [SETS["cifar10"].folder]


def test_cifar10_without_network(tmp_path, load, cifar, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:1/x.tar.gz")
    with pytest.raises(UserError, match=r"downloading CIFAR-10 .* failed: .*refused.* put cifar-10-python"):
        load("cifar10", offline=False)
    assert list((tmp_path / "data").iterdir()) == []


def test_cifar10_damaged(tmp_path, load, cifar):
    archive, _ = cifar
    load("cifar10", path=str(archive))
    batch = tmp_path / "data" / SETS["cifar10"].folder / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged"):
        load("cifar10")
    batch.unlink()
    with pytest.raises(UserError, match=r"\(complete\)"):
        load("cifar10", path=str(tmp_path / "data"))
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(UserError, match="its checksum differs"):
        load("cifar10", path=str(archive))


@pytest.fixture
def cifar100(tmp_path, monkeypatch) -> Path:
    """A small archive in the format of the set, with the published checksums replaced by its own."""
    published = SETS["cifar100"]
    pixels = numpy.arange(20 * 3072).reshape(20, 3072).astype("uint8")
    batches = {
        name: pickle.dumps({"data": part, "fine_labels": [3, 99] * 5, "coarse_labels": [0] * 10})
        for name, part in (("train", pixels[:10]), ("test", pixels[10:]))
    }
    batches["meta"] = pickle.dumps({"fine_label_names": [f"class {k}" for k in range(100)]})
    archive = tmp_path / "made" / published.archive
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in batches.items():
            member = tarfile.TarInfo(f"{published.folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(CIFAR100, "tgz_md5", md5(archive.read_bytes()))
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5(batches["train"])]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5(batches["test"])]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": md5(batches["meta"])})
    return archive


def test_cifar100_has_the_fine_labels(tmp_path, load, cifar100, server, monkeypatch, capsys):
    folder, address = server
    data = load("cifar100", path=str(cifar100))
    assert (data.display_name, data.num_classes, data.class_names[99]) == ("CIFAR-100", 100, "class 99")
    assert data.train.labels.tolist() == data.test.labels.tolist() == [3, 99] * 5
    assert data.train.images[0, 0, 0, :4].tolist() == [0, 1, 2, 3]
    (folder / cifar100.name).write_bytes(cifar100.read_bytes())
    monkeypatch.setattr(CIFAR100, "url", address + cifar100.name)
    with pytest.raises(UserError, match=r"put cifar-100-python\.tar\.gz .*offline=true forbids"):
        load("cifar100", tmp_path / "empty")
    assert len(load("cifar100", tmp_path / "empty", offline=False).test) == 10
    assert "downloading CIFAR-100 (169.0 MB)" in capsys.readouterr().err


def test_a_download_folder_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    for name in ("cifar10", "cifar100", "fashion_mnist", "tiny_imagenet"):
        with pytest.raises(UserError, match=r"paths\.data=.* cannot be written"):
            check_dataset(DatasetSettings(name=name), blocked / "data", offline=False)


def test_a_path_of_a_checksummed_set_does_not_enter_the_key(tmp_path):
    assert fingerprint("cifar10", str(tmp_path)) is None
    assert fingerprint("digits", None) is None
