"""The code fingerprint follows what a method imports, and nothing else."""

import importlib
import sys

import pytest

from runner import code
from runner.code import code_fingerprint
from runner.compose import compose
from runner.plan import plan

TARGET = "fingerprinted.method:Method"


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "fingerprinted"
    (folder / "deep").mkdir(parents=True)
    files = {
        "__init__.py": "",
        "method.py": "import torch\nfrom fingerprinted import near\nfrom .deep.further import value\n",
        "near.py": "def inner():\n    import fingerprinted.late\n",
        "late.py": "",
        "deep/__init__.py": "from . import beside\n",
        "deep/further.py": "from runner.fit import fit\nvalue = 1\n",
        "deep/beside.py": "",
        "unused.py": "",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "fingerprinted"]:
        del sys.modules[name]


def changed(path) -> bool:
    before = code_fingerprint(TARGET)
    path.write_text(path.read_text() + "\nchanged = 2\n")
    return code_fingerprint(TARGET) != before


@pytest.mark.parametrize("name", ["method", "near", "late", "deep/__init__", "deep/further", "deep/beside"])
def test_a_module_that_the_method_imports_counts(package, name):
    assert changed(package / f"{name}.py")


@pytest.mark.parametrize("name", ["unused"])
def test_a_module_that_it_does_not_import_does_not(package, name):
    assert not changed(package / f"{name}.py")


def test_a_module_that_takes_the_place_of_another_counts(package):
    before = code_fingerprint(TARGET)
    (package / "near.py").rename(package / "elsewhere.py")
    assert code_fingerprint(TARGET) != before


def covered(monkeypatch, fingerprint) -> set[str]:
    """The modules whose source enters."""
    seen: set[str] = set()
    read = code._read

    def noted(file, module, changed):
        seen.add(module)
        return read(file, module, changed)

    with monkeypatch.context() as patched:
        patched.setattr(code, "_read", noted)
        fingerprint()
    return seen


def test_what_decides_a_result_enters_and_the_command_line_does_not(monkeypatch):
    planned = plan(compose(["method=supervised", "model=resnet20", "dataset=digits"]).config)
    seen = covered(monkeypatch, planned.code)
    decisive = """methods methods.vision.supervised fit optimizers context durable loop checkpoints randomness tracked
        evaluation product datasets.images datasets.digits datasets.augment models.resnet models.weights"""
    assert {f"runner.{name}" for name in decisive.split()} <= seen
    light = "cli commands compose registry progress tracking metrics execute cells plan key folder storage errors"
    assert not {f"runner.{name}" for name in [*light.split(), "datasets.cifar"]} & seen
    assert not [module for module in seen if not module.startswith("runner")]


def test_the_network_of_the_user_enters(package, monkeypatch):
    config = compose(["method=supervised", "model=resnet20", f"model.target={TARGET}"]).config
    seen = covered(monkeypatch, plan(config).code)
    assert "fingerprinted.deep.beside" in seen
    assert "runner.models.resnet" not in seen


def test_the_teacher_of_the_user_enters(package, monkeypatch):
    words = ["method=soft_logits", "model=resnet8", "dataset=digits", f"teacher.model.target={TARGET}"]
    assert "fingerprinted.deep.beside" in covered(monkeypatch, plan(compose(words).config).code)


def test_a_package_in_the_working_directory_is_found(package, monkeypatch):
    before = code_fingerprint(TARGET)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(package.parent)])
    monkeypatch.chdir(package.parent)
    importlib.invalidate_caches()
    assert code_fingerprint(TARGET) == before


def test_it_is_the_same_before_and_after_the_import(package):
    before = code_fingerprint(TARGET)
    importlib.import_module("fingerprinted.near")
    assert code_fingerprint(TARGET) == before
