"""What holds for every data set: names, light checks, configs, limits of the scales."""

import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from runner.datasets import MODULES, check_dataset, kind_of, load_data, settings_class
from runner.errors import UserError
from runner.schema import AugmentationSettings, DatasetSettings

CONFIGS = Path(__file__).parents[2] / "conf" / "dataset"


def test_an_unknown_name():
    with pytest.raises(UserError, match="did you mean digits"):
        check_dataset(DatasetSettings(name="digit"), "data", offline=True)


def test_checks_import_nothing_heavy():
    code = """
import sys
from runner.datasets import check_dataset, fingerprint, kind_of
from runner.errors import UserError
from runner.registry import choices, read_yaml, search_path
from runner.settings import build_section
for name, file in choices("dataset", search_path()).items():
    settings = build_section("dataset", read_yaml(file))
    if kind_of(settings) in ("environment", "transitions"):
        continue  # gymnasium knows their names, and needs NumPy
    settings.path = sys.argv[1] if name == "image_folder" else None
    try:
        check_dataset(settings, "nowhere", True)
        fingerprint(settings.name, settings.path)
    except UserError:
        pass
print(sorted({"torch", "torchvision", "numpy", "sklearn", "PIL", "safetensors"} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code, __file__], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_set_has_a_whole_and_valid_config(name):
    config = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    settings = settings_class(name)
    assert set(config) == set(settings.__dataclass_fields__)
    if settings is DatasetSettings:
        assert set(config["augmentation"]) == set(AugmentationSettings.__dataclass_fields__)
    assert TypeAdapter(settings).validate_python(config).name == name


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_set_that_needs_no_files_is_read(name, scale, tmp_path):
    """Embedded and generated ones, by their own configs; of tasks one is drawn from every split."""
    settings = TypeAdapter(settings_class(name)).validate_python(
        OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    )
    try:
        data = load_data(settings, scale("smoke", train=40, test=20), data_root=tmp_path, offline=True)
    except UserError as problem:
        assert any(word in str(problem) for word in ("is not in", "bring it", "needs", "to your", "set:", "not set"))
        return
    if kind_of(settings) == "episodes":
        for split in ("train", "validation", "test"):
            assert len(data.task(split, 0).support) > 0


def test_every_config_has_a_module():
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == sorted(MODULES)


@pytest.mark.parametrize(
    ("name", "limit", "wished", "expected"),
    [
        ("paper", None, None, 1442),
        ("desk", 500, None, 500),
        ("desk", 500, 700, 700),  # an explicit wish is not trimmed
        ("desk", 5000, None, 1442),
        ("smoke", 40, 700, 40),
        ("smoke", 40, 20, 20),
    ],
)
def test_sizes(scale, name, limit, wished, expected):
    settings = DatasetSettings(name="digits", train_size=wished)
    data = load_data(settings, scale(name, limit), data_root="unused", offline=True)
    assert len(data.train) == expected
    counts = torch.bincount(data.train.labels, minlength=10)
    if expected < 1442:
        assert counts.tolist() == [expected // 10] * 10


def test_too_many_wished(scale):
    with pytest.raises(UserError, match=r"dataset\.test_size=400, but digits has 355 test images"):
        load_data(DatasetSettings(name="digits", test_size=400), scale("desk"), data_root="unused", offline=True)


@pytest.mark.parametrize("name", ["graph_file", "ising_file", "two_sample_file"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", None])
def test_what_is_no_file_of_arrays_is_told(name, content, tmp_path, scale):
    file = tmp_path / "mine.npz"
    with file.open("wb") as opened:
        if content is None:
            numpy.save(opened, numpy.zeros(3))  # one array, and not by name
        else:
            opened.write(content)
    with pytest.raises(UserError, match=r"is no \.npz file"):
        load_data(settings_class(name)(name=name, path=str(file)), scale("paper"), data_root="unused", offline=True)
