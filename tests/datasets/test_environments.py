"""Environments come back to the bit after a kill; time limits are no terminals."""

import gymnasium
import numpy
import pytest
import torch

from runner.checkpoints import decode, encode
from runner.datasets.environments import Environments, EnvironmentSettings, Settings, check, make
from runner.errors import RunFailed, UserError

PENDULUM = EnvironmentSettings(id="Pendulum-v1", time_limit=7)
CARTPOLE = EnvironmentSettings(id="CartPole-v1")


class Counting(gymnasium.Env):
    """Ends by itself after ``length`` steps; with ``forgetful`` its start depends on what was before."""

    observation_space = gymnasium.spaces.Box(-1e6, 1e6, (1,), numpy.float32)
    action_space = gymnasium.spaces.Box(numpy.array([0.0, -3.0]), numpy.array([10.0, 3.0]), dtype=numpy.float64)

    def __init__(self, length: int = 3, forgetful: bool = False) -> None:
        self.length, self.forgetful, self.total, self.seen = length, forgetful, 0, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return numpy.array([self.total if self.forgetful else 0.0], numpy.float32), {}

    def step(self, action):
        self.seen.append(action)
        self.count += 1
        self.total += 1
        observation = numpy.array([self.count + (self.total if self.forgetful else 0)], numpy.float32)
        return observation, 2.0, self.count >= self.length, False, {}


gymnasium.register("Counting-v0", entry_point=Counting)


def trail(environments: Environments, steps: int, seed: int = 0) -> list:
    numpy.random.seed(seed)
    found = []
    for _ in range(steps):
        step = environments.step(environments.random_actions())
        found.append((*(part.tolist() for part in step), list(environments.returns)))
    return found


@pytest.mark.parametrize("settings", [PENDULUM, CARTPOLE], ids=lambda s: s.id)
@pytest.mark.parametrize("at", [0, 1, 6, 7, 8, 20])
def test_a_restored_environment_goes_on_to_the_bit(settings, at):
    whole, first = (Environments(settings, 5, copies=3) for _ in range(2))
    trail(whole, at, seed=1)
    trail(first, at, seed=1)
    again = Environments(settings, 5, copies=3)
    again.load_state_dict(decode(encode(first.state_dict())))
    assert trail(again, 20) == trail(whole, 20)


def test_each_episode_of_each_copy_has_its_own_seed():
    environments = Environments(PENDULUM, 0, copies=2)
    starts = {tuple(row) for row in environments.observations.tolist()}
    for _ in range(3 * 7):
        environments.step(environments.random_actions())
        starts |= {tuple(row) for row in environments.observations.tolist()} if environments.returns else set()
    assert len(starts) == 8
    other = Environments(PENDULUM, 1, copies=2)
    assert not numpy.array_equal(other.observations, Environments(PENDULUM, 0, copies=2).observations)


def test_a_time_limit_is_no_terminal_and_the_last_observation_is_the_episodes_own():
    environments = Environments(PENDULUM, 0)
    for number in range(7):
        before = environments.observations
        step = environments.step(environments.random_actions())
        assert numpy.array_equal(step.observations, before)
        assert (step.terminals[0], bool(step.truncated[0])) == (0, number == 6)
    assert not numpy.array_equal(step.next_observations, environments.observations)  # a new episode began
    assert len(environments.returns) == 1


def test_an_end_of_its_own_is_a_terminal():
    environments = Environments(EnvironmentSettings(id="Counting-v0", time_limit=3), 0)
    steps = [environments.step(environments.random_actions()) for _ in range(3)]
    assert [float(step.terminals[0]) for step in steps] == [0, 0, 1]
    assert not any(step.truncated[0] for step in steps)  # at the limit too: it ended by itself


def test_actions_are_mapped_to_the_box_and_rewards_scaled():
    environments = Environments(EnvironmentSettings(id="Counting-v0", reward_scale=0.1), 0)
    step = environments.step(numpy.array([[-1.0, 0.5]], dtype=numpy.float32))
    assert step.rewards.tolist() == pytest.approx([0.2])
    environments.step(numpy.array([[1.0, -1.0]], dtype=numpy.float32))
    seen = environments._made[0].unwrapped.seen
    assert [action.tolist() for action in seen] == [[0.0, 1.5], [10.0, -3.0]]
    environments.step(numpy.zeros((1, 2), dtype=numpy.float32))
    assert environments.returns == [6.0]  # unscaled


def test_an_environment_that_does_not_come_back_is_told():
    settings = EnvironmentSettings(id="Counting-v0", arguments={"forgetful": True})
    environments = Environments(settings, 0)
    trail(environments, 5)
    with pytest.raises(RunFailed, match="cannot be resumed"):
        Environments(settings, 0).load_state_dict(environments.state_dict())


def test_discrete_actions_are_numbers():
    environments = Environments(CARTPOLE, 0, copies=2)
    assert (environments.discrete, environments.sizes) == (True, (4, 2))
    assert environments.step(environments.random_actions()).actions.shape == (2,)


def test_normalised_return():
    settings = EnvironmentSettings(id="Hopper-v5", random_return=-20.0, expert_return=180.0)
    assert (settings.normalised(-20.0), settings.normalised(80.0)) == (0, 50)
    assert PENDULUM.normalised(0.0) is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "no environment is set"),
        ({"id": "Pendulum-v7"}, "Pendulum"),
        ({"id": "Pendulm-v1"}, "did you mean"),
        ({"id": "no_such_package_here:A-v0"}, "there is no environment"),
        ({"id": "Pendulum-v1", "path": "x"}, "reads no file"),
    ],
)
def test_what_is_wrong_is_told_at_once(fields, reason):
    with pytest.raises(UserError, match=reason):
        check(Settings(name="environment", **fields), None, True)


def test_wrong_arguments_are_told():
    with pytest.raises(UserError, match="cannot be made"):
        make(EnvironmentSettings(id="Pendulum-v1", arguments={"gravity": 9.0}))


def test_a_missing_extra_is_told_with_the_line_that_installs_it():
    pytest.importorskip("gymnasium")
    try:
        import mujoco  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"pip install 'paper-runner\[mujoco\]'"):
            make(EnvironmentSettings(id="Hopper-v5"))
    else:
        assert make(EnvironmentSettings(id="Hopper-v5")).observation_space.shape == (11,)


def test_making_and_stepping_leave_the_global_generators_alone():
    before = (torch.get_rng_state(), numpy.random.get_state()[1].copy())
    environments = Environments(PENDULUM, 0)
    for _ in range(10):
        environments.step(numpy.zeros((1, 1), dtype=numpy.float32))
    assert torch.equal(before[0], torch.get_rng_state())
    assert numpy.array_equal(before[1], numpy.random.get_state()[1])


def test_a_restart_leaves_running_episodes_and_no_fresh_one():
    environments = Environments(EnvironmentSettings(id="Counting-v0"), 0, copies=1)
    fresh = Environments(PENDULUM, 5, copies=2)
    fresh.restart()
    assert numpy.array_equal(fresh.observations, Environments(PENDULUM, 5, copies=2).observations)
    last = environments.step(environments.random_actions())
    environments.restart()
    assert (environments.observations.item(), last.next_observations.item()) == (0, 1)
    assert [environments.step(environments.random_actions()).terminals.item() for _ in range(3)] == [0, 0, 1]
    assert environments.returns == [6]  # of the new episode alone
    again = Environments(PENDULUM, 5, copies=2)
    again.load_state_dict(decode(encode(fresh.state_dict())))
    assert trail(again, 9) == trail(fresh, 9)
