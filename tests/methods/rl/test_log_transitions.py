"""What a run of log_transitions leaves: transitions of the environment itself, and where they are from."""

import json
import math

import numpy
import pytest
import torch
from commands import runner

from runner.datasets.environments import EnvironmentData, Environments, EnvironmentSettings
from runner.datasets.transitions import read_transitions
from runner.methods.rl.log_transitions import Log
from runner.methods.rl.networks import Ensemble, TanhGaussian
from runner.models.perceptron import perceptron

PENDULUM = EnvironmentSettings(id="Pendulum-v1", reward_scale=0.1, time_limit=4)


def log(steps: int, policy=None) -> Log:
    numpy.random.seed(0)
    torch.manual_seed(0)
    found = Log(policy, Environments(PENDULUM, 0, 1), 20, torch.device("cpu"))
    for _ in range(steps):
        found.step()
    return found


def test_rows_follow_one_another_and_rewards_are_unscaled():
    arrays = log(10).arrays()
    assert arrays["timeouts"].nonzero()[0].tolist() == [3, 7, 9]  # 9: the log ends inside an episode
    assert not arrays["terminals"].any()
    inside = [0, 1, 2, 4, 5, 6, 8]
    following = [row + 1 for row in inside]
    assert numpy.array_equal(arrays["next_observations"][inside], arrays["observations"][following])
    assert not numpy.array_equal(arrays["next_observations"][3], arrays["observations"][4])
    cosine, sine, speed = arrays["observations"].T
    cost = numpy.arctan2(sine, cosine) ** 2 + 0.1 * speed**2 + 0.001 * (2 * arrays["actions"][:, 0]) ** 2
    assert numpy.allclose(arrays["rewards"], -cost, atol=1e-4)
    assert numpy.allclose(arrays["log_density"], -math.log(2))


def test_the_density_is_that_of_the_policy():
    policy = TanhGaussian(Ensemble([perceptron(3, 2, [8])]), exact=True)
    arrays = log(12, policy).arrays()
    with torch.no_grad():
        expected = policy.log_density(torch.from_numpy(arrays["observations"]), torch.from_numpy(arrays["actions"]))
    assert arrays["log_density"] == pytest.approx(expected.numpy(), abs=1e-3)


def test_a_file_gives_back_what_was_logged(tmp_path):
    from runner.datasets.transitions import file_actions

    arrays = log(10).arrays()
    environment = EnvironmentData(PENDULUM)
    numpy.savez(tmp_path / "log.npz", **arrays | {"actions": file_actions(arrays["actions"], environment)})
    found = read_transitions(tmp_path / "log.npz", environment)
    assert len(found) == 10 and [rows.stop for rows in found.episodes()] == [4, 8, 10]
    torch.testing.assert_close(found.actions, torch.from_numpy(arrays["actions"]))
    torch.testing.assert_close(found.rewards, torch.from_numpy(arrays["rewards"]) * 0.1)


def test_a_run_says_where_its_transitions_are_from_and_its_file_is_a_data_set(tmp_path):
    made = runner("method=log_transitions", "scale=smoke", "hardware=cpu", place=tmp_path)
    assert made.code == 0, made.err
    provenance = json.loads((made.folder / "artifacts" / "provenance.json").read_text())
    trained, random = provenance["parts"]
    assert trained["run"].startswith("sac-perceptron-environment/") and trained["steps"] == 2
    assert random["policy"] == "uniformly random"
    file = made.folder / "artifacts" / "transitions.npz"
    smoke = ("scale=smoke", "hardware=cpu", f"dataset.path={file}", "dataset.environment.id=Pendulum-v1")
    answer = runner("method=awac", "dataset=transitions", *smoke, place=tmp_path)
    assert answer.code == 0, answer.err
    assert "4 of a file" in answer.err


def test_discrete_actions_and_missing_transitions_are_told(tmp_path):
    answer = runner(
        "method=sac", "scale=smoke", "dataset=environment", "dataset.id=CartPole-v1", "hardware=cpu", place=tmp_path
    )
    assert (answer.code, answer.out) == (2, "") and "discrete actions" in answer.message
    answer = runner("method=cql", "scale=smoke", "dataset=transitions", "hardware=cpu", place=tmp_path)
    assert answer.code == 2 and "no environment is set" in answer.message
