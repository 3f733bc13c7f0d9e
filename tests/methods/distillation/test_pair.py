"""Runs of distillation methods: one teacher for all, constants by recipe, stored teacher outputs, refused pairs."""

import json
from types import SimpleNamespace

import pytest
import torch
from commands import runner
from PIL import Image
from torch import nn

import runner as package
from runner.compose import compose
from runner.context import Context
from runner.datasets.images import Normalisation
from runner.errors import UserError
from runner.methods.distillation import pair
from runner.plan import plan, role_config
from runner.registry import choices, search_path
from runner.schema import ModelSettings

SMOKE = ("scale=smoke", "hardware=cpu", "dataset=digits", "model=resnet8", "teacher.model=resnet20")


def test_one_teacher_serves_methods_students_and_seeds(tmp_path):
    answers = [
        runner("method=soft_logits", *SMOKE, place=tmp_path),
        runner("method=rkd", *SMOKE, "seed=3", "model=wrn_16_1", "recipe=sib", place=tmp_path),
    ]
    for answer in answers:
        assert answer.code == 0, answer.err
    first, second = (answer.result for answer in answers)
    assert not first["phases"]["teacher"]["reused"] and second["phases"]["teacher"]["reused"]
    assert first["phases"]["teacher"]["run"] == second["phases"]["teacher"]["run"]
    assert first["metrics"]["accuracy_teacher"] == second["metrics"]["accuracy_teacher"]
    assert first["phases"]["teacher"]["run"].startswith("supervised-resnet20-digits/")
    product = json.loads((answers[0].folder / "artifacts" / "model" / "architecture.json").read_text())
    assert product["name"] == "resnet8"

    folder = answers[0].folder.parent.parent / first["phases"]["teacher"]["run"]
    brought = runner("method=soft_logits", *SMOKE, f"teacher.model.weights={folder}", place=tmp_path)
    assert brought.code == 0, brought.err
    assert "teacher" not in brought.result["phases"]
    for name in ("accuracy", "loss", "accuracy_teacher"):
        assert brought.result["metrics"][name] == pytest.approx(first["metrics"][name], abs=1e-6)
    assert brought.result["key"] != first["key"]


def image_folder(folder, classes):
    for number, name in enumerate(classes):
        for split, count in (("train", 8), ("test", 2)):
            (folder / split / name).mkdir(parents=True)
            for place in range(count):
                Image.new("RGB", (32, 32), (number * 50, place, 9)).save(folder / split / name / f"{place}.png")
    return folder


def test_a_teacher_of_another_data_set_teaches_by_its_features_alone(tmp_path):
    here, there = (image_folder(tmp_path / name, classes) for name, classes in (("here", "abc"), ("there", "de")))
    data = ("dataset=image_folder", f"dataset.path={here}", "teacher.dataset=image_folder")
    command = (*SMOKE[:2], *SMOKE[3:], *data, f"teacher.dataset.path={there}")
    answer = runner("method=pkt", *command, place=tmp_path)
    assert answer.code == 0, answer.err
    assert "accuracy_teacher" not in answer.result["metrics"]
    refused = runner("method=soft_logits", *command, place=tmp_path)
    assert refused.code == 2 and "2 classes" in refused.message and "has 3" in refused.message


def test_a_teacher_sees_images_as_it_was_trained_on_them():
    def ctx(channels):
        normalisation = Normalisation(torch.full((channels,), 100.0), torch.full((channels,), 50.0))
        return SimpleNamespace(device="cpu", data=SimpleNamespace(channels=channels, normalisation=normalisation))

    teacher = nn.Conv2d(1, 1, 1)
    teacher.normalisation, teacher.architecture = {"mean": [110.0], "std": [25.0]}, {"channels": 1}
    with pytest.raises(UserError, match="1 channel, and the data set has 3"):
        pair.frozen(ctx(3), teacher)
    images = torch.randn(2, 1, 4, 4)
    expected = teacher((images * 50 + 100 - 110) / 25)
    frozen = pair.frozen(ctx(1), teacher)
    assert torch.allclose(frozen(images), expected, atol=1e-6)
    assert not frozen.training and not frozen.weight.requires_grad


def test_a_teacher_given_by_its_weights_says_how_it_was_trained(tmp_path):
    trained = {"mean": [110.0], "std": [25.0]}
    (tmp_path / "teacher.safetensors").touch()
    (tmp_path / "teacher.safetensors.json").write_text(json.dumps({"normalisation": trained}))
    own = ModelSettings(name="resnet8", weights=str(tmp_path / "teacher.safetensors"))
    ctx = SimpleNamespace(
        settings=SimpleNamespace(model=ModelSettings(name="resnet8")),
        role_model=lambda role: own,
        model=lambda role: nn.Identity(),
    )
    assert Context.trained_model(ctx, "teacher").normalisation == trained


def test_the_students_settings_are_not_the_teachers():
    def teacher_of(*overrides):
        composed = compose(["method=attention_transfer", *overrides])
        return plan(role_config(composed.config, "teacher", composed.search_path)).key

    same = [(), ("model=wrn_16_1",), ("recipe=tf2",), ("seed=4",), ("seeds.order=2",), ("method.weight=3",)]
    assert len({teacher_of(*overrides) for overrides in same}) == 1
    other = [(), ("teacher.model=wrn_40_2",), ("teacher.seed=1",), ("teacher.recipe=sib",), ("dataset=cifar10",)]
    assert len({teacher_of(*overrides) for overrides in other}) == len(other)


def test_the_recipe_selects_the_constants_of_one_code_base():
    def section(method, *overrides):
        return compose([f"method={method}", "scale=paper", *overrides]).config["method"]

    assert section("soft_logits")["labels_weight"] == 0.1
    assert section("soft_logits", "recipe=sib")["labels_weight"] == 0.7
    assert section("soft_logits", "recipe=tf2")["temperature"] == 5
    assert section("soft_logits", "recipe=tf2", "method.temperature=2")["temperature"] == 2  # the command line wins
    assert section("rkd", "recipe=tf2")["angle_weight"] == 200
    assert section("crd", "recipe=tf2")["code_base"] == "rep"  # only one code base has it
    assert section("fitnet", "recipe=cosine")["code_base"] == "rep"
    base = search_path()[0] / "recommended" / "constants"
    for method in base.iterdir():
        for name in choices(f"recommended/constants/{method.name}", search_path()):
            assert section(method.name, f"recipe={name}")["code_base"] == name


def test_a_loss_of_another_code_base_than_the_protocols_is_said(tmp_path):
    answer = runner("method=pkt", *SMOKE, "recipe=sib", place=tmp_path)
    assert answer.code == 0
    assert "the loss and its constants are those of rep, under the protocol of recipe=sib" in answer.err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("method=fsp", "teacher.model=wrn_16_2"), ["point 2", "32 channels", "student's 16", "method.code_base=tf2"]),
        (("method=overhaul", "teacher.model=shufflenet_v2"), ["ShuffleNetV2", "another teacher"]),
        (("method=fitnet", "method.stage=4"), ["method.stage=4", "3 stages"]),
        (("method=fsp", "teacher.model=wrn_40_5"), ["unknown model 'wrn_40_5'", "wrn_40_4"]),
        (("method=fsp", "teacher.model.weights=nowhere"), ["teacher.model.weights", "nowhere"]),
        (("method=soft_logits", "teacher.model.head=reinit"), ["model.head=reinit"]),
        (("method=supervised", "teacher.model=wrn_40_2"), ["unknown key 'teacher.model'"]),
    ],
    ids=lambda item: item[0] if isinstance(item, tuple) else "",
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(overrides, words, tmp_path):
    answer = runner(*SMOKE[:4], *overrides, place=tmp_path)
    assert answer.code == 2, answer.err
    for word in words:
        assert word in answer.message
    assert not list((tmp_path / "work").glob("runs/supervised-*"))


@pytest.mark.parametrize(
    ("method", "teacher", "student"),
    [
        pytest.param("fitnet", "mobilenet_v2_half", "wrn_10_4", marks=pytest.mark.slow),
        pytest.param("nst", "vgg8", "shufflenet_v2", marks=pytest.mark.slow),
        ("vid", "resnet8", "vgg8"),
        pytest.param("overhaul", "wrn_16_1", "mobilenet_v2_half", marks=pytest.mark.slow),
        ("crd", "shufflenet_v2", "resnet18"),
    ],
)
def test_networks_of_different_families_make_a_pair(method, teacher, student, tmp_path):
    answer = runner(f"method={method}", *SMOKE[:3], f"model={student}", f"teacher.model={teacher}", place=tmp_path)
    assert answer.code == 0, answer.err
    assert answer.result["model"] == student


@pytest.mark.parametrize("recipe", ["sib", "tf2"])
@pytest.mark.parametrize(
    "method", ["fitnet", "vid", *(pytest.param(name, marks=pytest.mark.slow) for name in ("factor_transfer", "kd_svd"))]
)
def test_the_forms_of_other_code_bases_train(method, recipe, tmp_path):
    answer = runner(f"method={method}", *SMOKE, f"recipe={recipe}", place=tmp_path)
    assert answer.code == 0, answer.err
    assert "the loss and its constants" not in answer.err  # it has its own


def test_stored_outputs_of_the_teacher_are_those_it_would_compute(tmp_path, monkeypatch):
    """The images are not augmented, so the teacher runs once over them; the student ends the same to rounding."""
    overrides = [
        *("method=attention_transfer", *SMOKE),
        *("dataset.augmentation.crop_padding=0", "recipe.epochs=2", "scale.max_epochs=2"),
    ]
    monkeypatch.chdir(tmp_path)
    stored = package.run([*overrides, "paths.runs=stored"])
    assert "its outputs are stored" in next((tmp_path / "stored").glob("attention*/*/log.txt")).read_text()
    monkeypatch.setattr(pair, "CACHE_LIMIT", 0)
    computed = package.run([*overrides, "paths.runs=computed"])
    assert "its outputs" not in next((tmp_path / "computed").glob("attention*/*/log.txt")).read_text()
    assert stored["metrics"] == pytest.approx(computed["metrics"], abs=1e-4)
