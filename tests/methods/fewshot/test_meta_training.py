"""Meta-training and its test: what is measured, what is kept, and that seeds of training leave the test tasks alone."""

import json
import math

import numpy
import pytest
import torch
from commands import metric_lines, runner

from runner.methods.fewshot.anil import class_mean_logits
from runner.methods.fewshot.meta_training import MetaTraining, summary
from runner.methods.fewshot.protonet import prototype_logits

SMOKE = ("method=protonet", "scale=smoke", "hardware=cpu")


def test_means_and_intervals_are_over_tasks():
    targets = torch.tensor([[0, 1], [0, 1], [0, 1]])
    outputs = torch.tensor([[[2.0, 0], [0, 2.0]], [[2.0, 0], [2.0, 0]], [[2.0, 0], [0, 2.0]]])  # 1, 1/2, 1 right
    found = summary({"outputs": outputs, "targets": targets})
    assert found["accuracy"] == pytest.approx(5 / 6)
    assert found["accuracy_interval"] == pytest.approx(1.96 * math.sqrt(1 / 12) / math.sqrt(3))
    assert found["accuracy_binomial_interval"] == pytest.approx(1.96 * math.sqrt(5 / 6 * 1 / 6 / 6))
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert found["loss"] == pytest.approx((5 * right + wrong) / 6)


def test_regression_is_measured_by_the_squared_error():
    outputs, targets = torch.tensor([[[1.0], [2.0]], [[0.0], [0.0]]]), torch.zeros(2, 2, 1)
    found = summary({"outputs": outputs, "targets": targets})
    assert found == {
        "mse": pytest.approx(1.25),
        "mse_interval": pytest.approx(1.96 * 2.5 / math.sqrt(2) / math.sqrt(2)),
    }


def test_an_ensemble_needs_a_validation():
    with pytest.raises(ValueError, match=r"set training\.validation_tasks"):
        MetaTraining(ensemble=5, validation_tasks=0)


def test_prototypes():
    support = torch.tensor([[0.0, 0], [2, 0], [0, 4], [0, 6]])
    found = prototype_logits(support, torch.tensor([0, 0, 1, 1]), torch.tensor([[1.0, 1]]), 2)
    assert found.tolist() == [[-1.0, -17.0]]


def test_the_test_without_a_head():
    support = torch.tensor([[2.0, 0], [0, 3.0]])
    found = class_mean_logits(support, torch.tensor([0, 1]), torch.tensor([[3.0, 4.0]]), 2)
    assert found.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A smoke run of three epochs, so that epochs can be chosen."""
    place = tmp_path_factory.mktemp("trained")
    answer = runner(
        *SMOKE, "scale.max_epochs=3", "recipe.epochs=3", "method.training.ensemble=2", "tracking.every_steps=1",
        place=place,
    )  # fmt: skip
    assert answer.code == 0, answer.err
    return answer


def test_the_last_epoch_the_best_one_and_the_ensemble_stand_apart(trained):
    metrics = trained.result["metrics"]
    names = ("accuracy", "accuracy_best_validation", "accuracy_ensemble", "accuracy_ensemble_interval")
    assert set(names) < set(metrics)
    phases = [name for name in trained.result["phases"] if name.startswith("test of epoch")]
    assert len(phases) == 2, "two epochs make the ensemble"
    found = [line for line in metric_lines(trained.folder) if "accuracy_validation" in line]
    best = max(found, key=lambda line: line["accuracy_validation"])
    number = 1 + found.index(best)
    assert phases[0] == f"test of epoch {number}"


def test_other_sets_are_tested_with_the_same_network(trained, tmp_path):
    answer = runner(
        *SMOKE, "scale.max_epochs=3", "recipe.epochs=3", "method.training.ensemble=2", "tracking.every_steps=1",
        "dataset.episodes.test_sets=[digits]", place=tmp_path,
    )  # fmt: skip
    assert answer.code == 0, answer.err
    metrics = trained.result["metrics"]
    both = answer.result["metrics"]
    assert {name: both[name] for name in metrics} == metrics
    assert {name.removesuffix("_digits") for name in both if name.endswith("_digits")} == set(metrics)
    assert both["loss_digits"] != both["loss"]


def test_scores_of_the_tasks(trained):
    with numpy.load(trained.folder / "artifacts" / "test_scores.npz") as scores:
        assert scores["index"].tolist() == [0, 1, 2, 3]
        assert scores["score"].mean() == pytest.approx(trained.result["metrics"]["accuracy"])
        assert -scores["log_likelihood"].mean() == pytest.approx(trained.result["metrics"]["loss"], abs=1e-6)


def test_the_learner_is_kept(trained):
    from safetensors.torch import load_file

    tensors = load_file(trained.folder / "artifacts" / "learner.safetensors")
    assert tensors["network.features.0.0.weight"].shape == (16, 1, 3, 3)
    assert not [name for name in tensors if "head" in name], "prototypes have no head"


def test_the_seed_of_a_run_leaves_the_test_tasks_alone(tmp_path):
    """An untrained network tells: with one initialisation, the tasks decide the scores alone."""

    def scores(name: str, *more: str) -> list[float]:
        answer = runner(
            *SMOKE, "recipe.optimizer.learning_rate=1e-30", "seeds.initialisation=0", *more, place=tmp_path / name
        )
        assert answer.code == 0, answer.err
        with numpy.load(answer.folder / "artifacts" / "test_scores.npz") as found:
            return found["log_likelihood"].tolist()

    first = scores("first")
    assert scores("second", "seed=7") == first
    assert scores("third", "dataset.episodes.seed=7") != first


def test_imbalanced_tasks_run_one_by_one(tmp_path):
    answer = runner(*SMOKE, "dataset.episodes.max_shots=4", place=tmp_path)
    assert answer.code == 0, answer.err
    assert "1..4-shot" in answer.err


def test_what_takes_tasks_refuses_images_and_the_other_way_round(tmp_path):
    answer = runner("method=maml", "dataset=digits", "scale=smoke", place=tmp_path)
    assert answer.code == 2
    assert "method maml takes episodes or regression episodes, and this is images" in answer.message
    answer = runner("method=supervised", "model=resnet20", "dataset=glyph_episodes", "scale=smoke", place=tmp_path)
    assert answer.code == 2 and "this is episodes" in answer.message


def test_a_data_set_brings_its_network_along_unless_another_is_named(tmp_path):
    answer = runner("method=maml", "dataset=sinusoid", "scale=smoke", place=tmp_path)
    assert answer.code == 0 and answer.folder.parent.name == "maml-sinusoid_mlp-sinusoid", answer.err
    assert json.loads(answer.result_path.read_text())["metrics"].keys() >= {"mse", "mse_interval"}
    assert "model=" not in answer.err.splitlines()[0], "the command for scale=paper is the user's own"
    answer = runner("method=maml", "model=conv4_48", "scale=smoke", place=tmp_path)
    assert answer.code == 0 and answer.folder.parent.name == "maml-conv4_48-glyph_episodes", answer.err


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("method=maml", "dataset.episodes.train_ways=6"), "the network of this method has 5 outputs"),
        (("method=hyperdistill", "dataset=glyph_episodes", "dataset.episodes.train_ways=6"), "has 5 outputs"),
        (("method=hyperdistill", "dataset=glyph_episodes", "dataset.episodes.max_shots=3"), "needs equal sizes"),
        (("method=anil", "dataset=sinusoid", "method.test_head=class_means"), "regression has no classes"),
        (("method=maml", "dataset.augmentation.crop_padding=28"), "must be smaller than the images"),
        (("method=maml", "dataset.normalisation={mean: [0.0], std: [0.0]}"), "std above 0"),
        (("method=maml", "dataset=linear_tasks", "dataset.episodes.rotations=true"), "only for tasks of images"),
        (("method=maml", "dataset=sinusoid", "dataset.episodes.train_ways=2"), "only for tasks of images"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_words(overrides, reason, tmp_path):
    answer = runner(*overrides, *SMOKE[1:], place=tmp_path)
    assert answer.code == 2 and reason in answer.message, answer.err


def test_a_class_without_support_is_at_the_origin():
    found = prototype_logits(torch.tensor([[2.0, 0]]), torch.tensor([0]), torch.tensor([[1.0, 1]]), 2)
    assert found.tolist() == [[-2.0, -2.0]]


def test_weights_that_a_method_would_overwrite_are_refused(trained, tmp_path):
    weights = trained.folder / "artifacts" / "learner.safetensors"
    answer = runner("method=bayesian_taml", f"model.weights={weights}", *SMOKE[1:], place=tmp_path)
    assert answer.code == 2 and "draws the weights of convolutions anew" in answer.message, answer.err


def test_factors_of_imbalanced_tasks(tmp_path):
    answer = runner(
        "method=cxgrad", "dataset.episodes.max_shots=3", "method.context_rate=0", "method.steps=1",
        "method.training.ensemble=0", "method.training.validation_tasks=0", *SMOKE[1:], place=tmp_path,
    )  # fmt: skip
    assert answer.code == 0 and "factor_mean" in answer.result["metrics"], answer.err
