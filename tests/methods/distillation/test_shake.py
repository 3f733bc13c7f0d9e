"""Shadow distillation: standardised logits, who learns from whom, and the shape of the shadow."""

from pathlib import Path

import pytest
import torch
import yaml
from commands import runner
from torch import nn
from waves import wave

from runner.compose import compose
from runner.methods.distillation.shake import SHAKE, TeacherShadow, standardised

ROOT = Path(__file__).parents[3]
SMOKE = ("scale=smoke", "hardware=cpu", "dataset=digits", "model=resnet8", "teacher.model=resnet8x4")


def logits(seed, gradient=True):
    return torch.randn(4, 7, generator=torch.manual_seed(seed), dtype=torch.double).requires_grad_(gradient)


def test_standardised_rows_have_mean_0_and_variance_9_869_at_any_number_of_classes():
    for classes in (5, 100):
        rows = standardised(torch.randn(3, classes, dtype=torch.double))
        assert torch.allclose(rows.mean(1), torch.zeros(3, dtype=torch.double), atol=1e-9)
        assert rows.var(1, unbiased=False).tolist() == pytest.approx([9.869] * 3, abs=2e-3)


def test_shift_and_scale_of_logits_change_no_loss_and_no_prediction():
    s, h, t = (standardised(logits(seed, False)) for seed in range(3))
    moved = standardised(7 * logits(0, False) + 3)
    assert torch.allclose(SHAKE().mutual(moved, h, t), SHAKE().mutual(s, h, t), atol=1e-6)
    assert torch.equal(moved.argmax(1), logits(0, False).argmax(1))


def test_who_learns_from_whom():
    def gradients(**weights):
        zero = {"weight": 0.0, "reversed_weight": 0.0, "shadow_imitation_weight": 0.0, "shadow_teacher_weight": 0.0}
        s, h, t = logits(0), logits(1), logits(2)
        SHAKE(**zero | weights).mutual(s, h, t).backward()
        return [item.grad is not None and bool(item.grad.abs().max() > 0) for item in (s, h, t)]

    assert gradients(weight=1.0) == [True, False, False]
    assert gradients(reversed_weight=1.0) == [False, True, False]
    assert gradients(shadow_imitation_weight=1.0) == [False, True, False]
    assert gradients(shadow_teacher_weight=1.0) == [False, True, False]


def test_equal_logits_cost_nothing():
    s, t = logits(0), logits(1)
    assert float(SHAKE(shadow_imitation_weight=0.0).mutual(s, s, t).detach()) == pytest.approx(0, abs=1e-9)
    only = SHAKE(weight=0.0, reversed_weight=0.0)
    assert only.mutual(s, t, t) == 0
    assert float(only.mutual(s, t + 2, t).detach()) == pytest.approx(4)  # a mean over examples and classes


def test_at_a_high_temperature_the_gradient_is_the_difference_of_centred_logits():
    s, t = logits(0), logits(1, False)
    SHAKE(temperature=1e4).divergence(s, t).backward()
    centred = (s - s.mean(1, keepdim=True) - t + t.mean(1, keepdim=True)).detach() / 7
    assert torch.allclose(s.grad * len(s), centred, atol=1e-3)


@pytest.mark.parametrize("sizes", [(32, 16, 8), (16, 4, 4), (8, 4, 2)])
def test_the_shadow_joins_maps_and_leaves_the_classifier_alone(sizes):
    maps = [torch.randn(2, width, size, size) for width, size in zip((6, 10, 12), sizes, strict=True)]
    shadow, classifier = TeacherShadow(maps, 20), nn.Linear(20, 5).requires_grad_(False)
    shadow.classify = [classifier]
    found = shadow(maps)
    assert found.shape == (2, 5)
    found.sum().backward()
    assert classifier.weight.grad is None
    assert all(item.grad is not None for item in shadow.parameters())
    assert not {id(item) for item in classifier.parameters()} & {id(item) for item in shadow.parameters()}


def test_the_shadow_has_the_released_shape():
    maps = [torch.empty(1, width, size, size) for width, size in ((32, 32), (64, 16), (128, 8))]  # WRN-40-2
    convolutions = [item for item in TeacherShadow(maps, 128).modules() if isinstance(item, nn.Conv2d)]
    found = sorted((item.in_channels, item.out_channels, item.kernel_size[0], item.stride[0]) for item in convolutions)
    assert found == [(32, 64, 3, 2), (64, 64, 1, 1), (64, 128, 3, 2), (128, 128, 1, 1), (128, 128, 3, 1)]


def test_head_and_losses_are_those_of_the_released_code():
    """lliai/SHAKE's head and loop, run on the same maps, weights and logits."""
    maps = [wave(4, width, size, size, phase=n) for n, (width, size) in enumerate(((4, 8), (6, 4), (8, 2)), 2)]
    shadow, classifier = TeacherShadow(maps, 8), nn.Linear(8, 100)
    for number, item in enumerate(shadow.parameters(), 1):
        item.data = 0.5 * wave(*item.shape, phase=number) + 0.5 * (item.ndim == 1)
    classifier.weight.data, classifier.bias.data = wave(100, 8, phase=3), wave(100, phase=5)
    shadow.classify = [classifier]
    h = shadow(maps)
    assert h.square().mean().item() == pytest.approx(2.34435177, rel=1e-4)
    s, h, t = (standardised(item) for item in (wave(4, 100, phase=1), h, wave(4, 100, phase=2)))
    labels = 7 * torch.arange(4)
    found = SHAKE().mutual(s, h, t) + nn.functional.cross_entropy(s, labels) + nn.functional.cross_entropy(h, labels)
    assert found.item() == pytest.approx(55.377075, rel=1e-4)


@pytest.mark.parametrize("table", ["cifar100", "mechanism", "released"])
def test_the_student_of_kd_plus_learns_from_the_teacher_that_it_teaches(table):
    """Without the weight of what the moving teacher says, its learning would never reach the student."""
    table = yaml.safe_load((ROOT / "conf" / "table" / "shake" / f"{table}.yaml").read_text())
    row = table["rows"].get("KD+") or ["method=shake", *table["columns"]["KD+, poster"]]
    settings = compose(row).config["method"]
    assert settings["shadow"] == "whole_teacher" and settings["weight"] == settings["reversed_weight"] == 1
    assert settings["teacher_weight"] == settings["shadow_labels_weight"] == settings["shadow_imitation_weight"] == 0


@pytest.mark.parametrize(
    "shadow", ["student", *(pytest.param(name, marks=pytest.mark.slow) for name in ("whole_teacher", "none"))]
)
def test_every_kind_of_shadow_trains(tmp_path, shadow):
    answer = runner("method=shake", *SMOKE, f"method.shadow={shadow}", place=tmp_path)
    assert answer.code == 0, answer.err
    assert answer.result["metrics"]["divergence_from_teacher"] > 0
