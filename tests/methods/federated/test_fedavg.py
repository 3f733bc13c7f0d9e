"""Federated averaging against centralised gradient descent, and its rounds."""

import numpy
import pytest
import torch
from commands import runner
from safetensors.torch import load_file

from runner.methods.federated.rounds import Federation, rounds_to_target
from runner.randomness import stream_seed

DATA = (
    "model=logistic_regression",
    "dataset=digits",
    "dataset.image_size=8",
    "dataset.train_size=60",
    "dataset.validation_fraction=0",
    "dataset.augmentation.crop_padding=0",
    "scale.export_program=false",
    "tracking=none",
    "hardware=cpu",
    "recipe.optimizer.learning_rate=0.1",
    "recipe.batch_size=1000",
)


def federation(*settings):
    return [f"method.federation.{item}" for item in settings]


def weights(answer):
    return load_file(answer.folder / "artifacts" / "model" / "weights.safetensors")


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_one_full_batch_of_every_client_is_one_step_on_all_examples(tmp_path, partition):
    federated = runner(
        *("method=fedavg", *DATA, "recipe.epochs=1"),
        *federation("clients=7", "participation=1", f"partition={partition}", "rounds=3"),
        place=tmp_path / "federated",
    )
    together = runner("method=supervised", "recipe=federated", "recipe.epochs=3", *DATA, place=tmp_path / "together")
    assert federated.code == together.code == 0, federated.err + together.err
    ours, theirs = weights(federated), weights(together)
    for name, item in theirs.items():
        assert torch.allclose(ours[name], item, atol=1e-6)
    size = sum(item.numel() for item in theirs.values()) * 4
    assert federated.result["metrics"]["bytes_up"] == federated.result["metrics"]["bytes_down"] == 3 * 7 * size


def test_a_dropped_straggler_is_sent_the_weights_and_sends_nothing(tmp_path):
    answer = runner(
        *("method=fedavg", *DATA, "recipe.epochs=2"),
        *federation("clients=5", "participation=0.8", "stragglers=0.5", "rounds=2"),
        place=tmp_path,
    )
    assert answer.code == 0, answer.err
    metrics = answer.result["metrics"]
    assert metrics["bytes_down"] == 2 * metrics["bytes_up"]


def test_more_clients_than_examples_are_refused(tmp_path):
    answer = runner("method=fedavg", *DATA, "method.federation.clients=61", place=tmp_path)
    assert answer.code == 2 and "61 parts cannot be made of 60" in answer.message


def test_what_a_client_has_no_place_for_is_refused(tmp_path):
    answer = runner("method=fedavg", *DATA, "recipe.ema_decay=0.9", place=tmp_path)
    assert answer.code == 2 and "recipe.ema_decay=0.9" in answer.message


def test_a_round_draws_its_clients_and_who_is_late():
    federation = Federation(clients=20, participation=0.5, stragglers=0.9)
    turns = federation.draw_round(8, numpy.random.default_rng(stream_seed(0, "round")))
    assert len({turn.client for turn in turns}) == 10
    assert [turn.straggler for turn in turns] == [False] + [True] * 9
    assert turns[0].epochs == 8 and all(1 <= turn.epochs < 8 for turn in turns[1:])


def test_rounds_to_a_target_are_interpolated_on_the_best_curve():
    history = [[1, 0.5], [2, 0.4], [3, 0.7]]
    assert rounds_to_target(history, 0.6) == pytest.approx(2.5)
    assert rounds_to_target(history, 0.5) == 1
    assert rounds_to_target(history, 0.8) is None
