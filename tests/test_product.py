"""A saved network comes back: from the zoo, pruned, foreign, or as its exported program."""

import json
import shutil
import sys
import zipfile

import pytest
import torch
from torch import nn

from runner import product
from runner.errors import UserError
from runner.models import architecture_of, build_model
from runner.models.resize import resize_to, widths_of
from runner.models.weights import origin_of
from runner.schema import ModelSettings

FOREIGN = """
from torch import nn

def tiny(num_classes, in_channels, width=4):
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, num_classes),
    )
"""
DATA = {"num_classes": 10, "image_size": 32, "channels": 3, "small_image_stem": "cifar"}
NORMALISATION = {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}


def save(folder, settings, model, *, export=False):
    architecture = architecture_of(
        settings, **DATA, normalisation=NORMALISATION, class_names=[str(digit) for digit in range(10)]
    )
    return product.save_model(
        folder / "artifacts" / "model", model, architecture, torch.zeros(1, 3, 32, 32), export=export
    )


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32)


@pytest.fixture
def pruned():
    """A resnet20 whose first inner width is 5 of 16, with values that no initialisation gives."""
    settings = ModelSettings(name="resnet20", padding="tensorflow")
    model = build_model(settings, **DATA)
    widths = widths_of(model)
    widths["layer1.0.conv1"][0] = widths["layer1.0.conv2"][1] = widths["layer1.0.bn1"][0] = 5
    resize_to(model, widths)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 0.2)
    return settings, model


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A network from a package that can be made absent."""
    (tmp_path / "foreign_networks.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "foreign_networks", raising=False)
    settings = ModelSettings(name="tiny", target="foreign_networks:tiny", arguments={"width": 6})
    yield settings, build_model(settings, **DATA)
    sys.modules.pop("foreign_networks", None)


def make_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "foreign_networks", None)


def test_pruned_network_comes_back_trainable(tmp_path, pruned, images):
    settings, model = pruned
    report = save(tmp_path, settings, model)
    assert report["warning"] is None and len(report["sha256"]) == 64
    random_state = torch.get_rng_state()
    for path in (tmp_path, tmp_path / "artifacts", tmp_path / "artifacts" / "model"):
        loaded = product.load(path)
        assert not loaded.training and torch.equal(loaded(images), model.eval()(images))
    assert torch.equal(torch.get_rng_state(), random_state)
    loaded.train()(images).sum().backward()
    assert loaded.layer1[0].conv1.weight.grad.shape == (5, 16, 3, 3)
    assert loaded.normalisation == NORMALISATION and loaded.architecture["widths"]["layer1.0.bn1"] == [5]
    assert loaded.padding == "tensorflow"


def test_a_run_folder_serves_as_weights(tmp_path, pruned, images):
    settings, model = pruned
    save(tmp_path, settings, model)
    loaded = build_model(ModelSettings(name="resnet20", weights=str(tmp_path)), **DATA)
    assert loaded.training and torch.equal(loaded.eval()(images), model.eval()(images))
    origin = origin_of(tmp_path)
    assert (origin.padding, origin.normalisation, origin.num_classes) == ("tensorflow", NORMALISATION, 10)
    with pytest.raises(UserError, match="10 classes"):
        build_model(ModelSettings(name="resnet20", weights=str(tmp_path)), **{**DATA, "num_classes": 7})


def test_equal_weights_give_equal_bytes(tmp_path, pruned):
    settings, model = pruned
    first = save(tmp_path / "a", settings, model)
    again = save(tmp_path / "b", settings, model.to(memory_format=torch.channels_last))
    assert first["sha256"] == again["sha256"]
    with torch.no_grad():
        model.fc.bias[0] += 1e-6
    assert save(tmp_path / "b", settings, model)["sha256"] != first["sha256"]
    assert [path.name for path in (tmp_path / "b" / "artifacts").iterdir()] == [
        "model"
    ]  # replaced, nothing left beside


def test_foreign_network_is_rebuilt_where_its_class_is(tmp_path, foreign, images):
    settings, model = foreign
    save(tmp_path, settings, model)
    loaded = product.load(tmp_path)
    assert isinstance(loaded, nn.Sequential) and torch.equal(loaded(images), model.eval()(images))


def test_foreign_network_comes_back_as_its_program_where_its_class_is_absent(tmp_path, foreign, images, monkeypatch):
    settings, model = foreign
    assert save(tmp_path, settings, model, export=True)["warning"] is None
    make_absent(monkeypatch)
    loaded = product.load(tmp_path)
    assert loaded.normalisation == NORMALISATION and not loaded.training
    for count in (1, 3):  # any batch size
        assert torch.allclose(loaded(images[:count]), model.eval()(images[:count]), atol=1e-6)
    with pytest.raises(UserError, match="evaluation only"):
        loaded.train()
    assert loaded.eval() is loaded


def test_absent_class_without_program(tmp_path, foreign, monkeypatch):
    save(tmp_path, *foreign)
    make_absent(monkeypatch)
    with pytest.raises(UserError, match=r"cannot be imported.*no exported program"):
        product.load(tmp_path)


def test_a_program_with_a_pickled_object_is_not_loaded(tmp_path, foreign, monkeypatch):
    import pickle

    class Payload:
        def __reduce__(self):
            return (eval, (f"open({str(tmp_path / 'executed')!r}, 'w')",))

    settings, model = foreign
    save(tmp_path, settings, model, export=True)
    make_absent(monkeypatch)
    file = tmp_path / "artifacts" / "model" / "program.pt2"
    original = file.with_suffix(".original")
    shutil.move(file, original)
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            content = pickle.dumps(Payload()) if name.endswith("sample_inputs/model.pt") else source.read(name)
            target.writestr(name, content)
    with pytest.raises(UserError, match="no readable exported program"):
        product.load(tmp_path)
    assert not (tmp_path / "executed").exists()
    with zipfile.ZipFile(file, "a") as target:
        target.writestr("program/data/constants/custom_obj_0", b"")
    with pytest.raises(UserError, match="would be executed"):
        product.load(tmp_path)


def test_what_cannot_be_exported_is_a_warning(tmp_path, foreign):
    class Branching(nn.Module):
        def forward(self, images):
            return images if images.sum() > 0 else -images

    settings, _ = foreign
    report = save(tmp_path, settings, Branching(), export=True)
    assert "torch.export failed" in report["warning"]
    assert sorted(path.name for path in (tmp_path / "artifacts" / "model").iterdir()) == [
        "architecture.json",
        "weights.safetensors",
    ]


def test_damaged_products_are_refused(tmp_path, pruned):
    settings, model = pruned
    with pytest.raises(UserError, match="no such folder"):
        product.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no network"):
        product.load(tmp_path)
    save(tmp_path, settings, model)
    weights = tmp_path / "artifacts" / "model" / "weights.safetensors"
    architecture = weights.with_name("architecture.json")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="not the weights"):
        product.load(tmp_path)
    weights.write_bytes(content[:-100])
    with pytest.raises(UserError, match="truncated"):
        product.load(tmp_path)
    architecture.write_text(json.dumps({"name": "resnet20"}))
    with pytest.raises(UserError, match="lacks target"):
        product.load(tmp_path)
    architecture.write_text("{")
    with pytest.raises(UserError, match="JSON"):
        product.load(tmp_path)


@pytest.mark.parametrize("padding", ["symmetric", "tensorflow"])
def test_exported_resnet_gives_equal_logits(tmp_path, images, padding):
    settings = ModelSettings(name="resnet20", padding=padding)
    model = build_model(settings, **DATA)
    assert save(tmp_path, settings, model, export=True)["warning"] is None
    program = torch.export.load(tmp_path / "artifacts" / "model" / "program.pt2").module()
    assert torch.allclose(program(images), model.eval()(images), atol=1e-6)
