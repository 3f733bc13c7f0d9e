"""Runs that start from the product of another: pruned widths are kept, the classifier can be replaced."""

import json

import pytest
from commands import runner

SMOKE = ("scale=smoke", "hardware=cpu", "model=resnet20")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A pruned network: the run of a search and its fine-tuning."""
    answer = runner("method=ekg", *SMOKE, place=tmp_path_factory.mktemp("pruned"))
    assert answer.code == 0, answer.err
    return answer


def widths(answer) -> dict[str, list[int]]:
    return json.loads((answer.folder / "artifacts" / "model" / "architecture.json").read_text())["widths"]


def test_a_pruned_network_is_trained_on(pruned, tmp_path):
    answer = runner("method=supervised", *SMOKE, f"model.weights={pruned.folder}", place=tmp_path)
    assert answer.code == 0, answer.err
    assert widths(answer) == widths(pruned)
    assert answer.result["profile"]["final"]["params"] == pruned.result["profile"]["final"]["params"]
    assert pruned.result["metrics"]["params_rate"] < 1
    assert answer.result["product"]["sha256"] != pruned.result["product"]["sha256"]
    again = runner("method=ekg", *SMOKE, f"model.weights={answer.folder}", place=tmp_path)  # and pruned once more
    assert again.code == 0, again.err
    assert again.result["profile"]["baseline"]["params"] == answer.result["profile"]["final"]["params"]


def image_folder(folder, classes):
    from PIL import Image

    for name in classes:
        for split, count in (("train", 8), ("test", 2)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (32, 32), (len(name) * 9, number * 20, 90)).save(
                    folder / split / name / f"{number}.png"
                )
    return folder


def test_other_classes_need_a_fresh_head(pruned, tmp_path):
    data = image_folder(tmp_path / "data", ("cat", "horse", "dromedary"))
    command = (*SMOKE, "dataset=image_folder", f"dataset.path={data}", f"model.weights={pruned.folder}")
    refused = runner("method=supervised", *command, place=tmp_path)
    assert refused.code == 2 and "model.head=reinit" in refused.message
    answer = runner("method=supervised", *command, "model.head=reinit", place=tmp_path)
    assert answer.code == 0, answer.err
    expected = widths(pruned)
    assert widths(answer) == expected | {"fc": [3, expected["fc"][1]]}
    untrained = runner("method=ekg", *command, "model.head=reinit", place=tmp_path)
    assert untrained.code == 2 and "method=supervised" in untrained.message
