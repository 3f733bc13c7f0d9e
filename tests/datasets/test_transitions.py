"""Logged transitions out of files, and what is told of files that do not fit."""

import numpy
import pytest

from runner.datasets.environments import EnvironmentData, EnvironmentSettings
from runner.datasets.transitions import Behaviour, Part, Settings, check, file_actions, read_transitions
from runner.errors import UserError

PENDULUM = EnvironmentData(EnvironmentSettings(id="Pendulum-v1", reward_scale=0.1))


def arrays(terminals, timeouts=None) -> dict[str, numpy.ndarray]:
    """Rows that are told by their observation."""
    count = len(terminals)
    found = {
        "observations": numpy.arange(count, dtype=numpy.float32)[:, None].repeat(3, 1),
        "actions": numpy.linspace(-2, 2, count, dtype=numpy.float32)[:, None],
        "rewards": numpy.arange(count, dtype=numpy.float32) * 10,
        "terminals": numpy.array(terminals, dtype=bool),
    }
    return found | ({} if timeouts is None else {"timeouts": numpy.array(timeouts, dtype=bool)})


def stored(tmp_path, found):
    numpy.savez(tmp_path / "log.npz", **found)
    return read_transitions(tmp_path / "log.npz", PENDULUM)


def test_units_and_scales(tmp_path):
    found = stored(tmp_path, arrays([0, 0, 1]))
    assert found.actions.flatten().tolist() == [-1, 0, 1]
    assert found.rewards.tolist() == [0, 1, 2]
    assert numpy.allclose(file_actions(found.actions.numpy(), PENDULUM), [[-2], [0], [2]])


def test_without_next_observations_they_are_the_following_rows_and_time_limits_have_none(tmp_path):
    found = stored(tmp_path, arrays([0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]))
    assert found.observations[:, 0].tolist() == [0, 1, 2, 4]  # 3 is at a time limit, after 5 nothing follows
    assert found.next_observations[[0, 2, 3], 0].tolist() == [1, 3, 5]
    assert found.terminals.tolist() == [0, 1, 0, 0]
    assert found.truncated.tolist() == [False, False, True, True]
    assert [(rows.start, rows.stop) for rows in found.episodes()] == [(0, 2), (2, 3), (3, 4)]
    assert found.returns().tolist() == [1, 2, 4]


def test_next_observations_of_the_file_keep_every_row(tmp_path):
    rows = arrays([0, 0, 0], [0, 1, 0])
    rows["next_observations"] = rows["observations"] + 100
    found = stored(tmp_path, rows)
    assert found.next_observations[:, 0].tolist() == [100, 101, 102]
    assert (found.truncated.tolist(), found.terminals.tolist()) == ([False, True, False], [0, 0, 0])


def test_an_end_that_is_also_at_the_time_limit_is_a_terminal(tmp_path):
    found = stored(tmp_path, arrays([0, 1, 1], [0, 1, 0]))
    assert (found.terminals.tolist(), found.truncated.any().item()) == ([0, 1, 1], False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rewards": None}, "no array rewards"),
        ({"rewards": numpy.zeros(2)}, "equally long"),
        ({"observations": numpy.zeros((3, 4))}, r"observations have shape \(4,\), those of Pendulum-v1 have \(3,\)"),
        ({"actions": numpy.zeros((3, 2))}, "actions have shape"),
        ({"actions": numpy.array([["a"]] * 3)}, "actions are no numbers"),
        ({"observations": numpy.full((3, 3), numpy.nan)}, "observations hold values that are not finite"),
        ({"rewards": numpy.array(1.0)}, "equally long"),
        ({"rewards": numpy.zeros((3, 2))}, r"rewards have shape \(2,\), not one number"),
        ({"next_observations": numpy.zeros((3, 4))}, "next_observations have shape"),
        ({"terminals": numpy.zeros(3), "timeouts": numpy.ones(3)}, "no row has a next observation"),
    ],
)
def test_files_that_do_not_fit_are_told(tmp_path, change, reason):
    found = {name: value for name, value in (arrays([0, 0, 1]) | change).items() if value is not None}
    with pytest.raises(UserError, match=reason):
        stored(tmp_path, found)


@pytest.mark.parametrize("content", [b"PK nothing", b"PK\x03\x04 nothing", b""])
def test_a_damaged_file_is_told(tmp_path, content):
    (tmp_path / "log.npz").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        read_transitions(tmp_path / "log.npz", PENDULUM)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "no transitions are given"),
        ({"path": "nowhere.npz"}, "there is no file"),
        ({"file": "halfcheetah-medium-v2"}, "it is not downloaded"),
        ({"path": __file__}, "not of a known kind"),
    ],
)
def test_what_is_missing_is_told_before_anything_runs(tmp_path, fields, reason):
    with pytest.raises(UserError, match=reason):
        check(Settings(name="transitions", environment=PENDULUM.settings, **fields), tmp_path, True)


def test_a_file_of_the_data_root_is_found(tmp_path):
    (tmp_path / "transitions").mkdir()
    numpy.savez(tmp_path / "transitions" / "mine.npz", **arrays([0, 0, 1]))
    check(Settings(name="transitions", environment=PENDULUM.settings, file="mine"), tmp_path, True)
    behaviour = Behaviour(parts=[Part(steps=0, transitions=4)])
    check(Settings(name="pendulum_logged", environment=PENDULUM.settings, behaviour=behaviour), tmp_path, True)


def test_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "log.hdf5", "w") as file:
        for name, value in arrays([0, 0, 1]).items():
            file[name] = value
        file["metadata/algorithm"] = "sac"
    assert len(read_transitions(tmp_path / "log.hdf5", PENDULUM)) == 3
