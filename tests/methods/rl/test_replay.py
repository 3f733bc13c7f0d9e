"""The ring of transitions and the tree of priorities."""

import numpy
import pytest
import torch

from runner.checkpoints import decode, encode
from runner.errors import UserError
from runner.methods.rl.learning import check_capacity
from runner.methods.rl.replay import Replay, SumTree


def rows(numbers) -> tuple[numpy.ndarray, ...]:
    """Transitions that are told by their reward."""
    numbers = numpy.asarray(list(numbers), dtype=numpy.float32)
    wide = numpy.repeat(numbers[:, None], 3, axis=1)
    return wide, wide[:, :2] / 100, numbers, numpy.zeros_like(numbers), wide + 1


def test_the_oldest_transitions_make_room():
    replay = Replay(5, (3, 2))
    assert replay.add(*rows(range(3))).tolist() == [0, 1, 2]
    assert len(replay) == 3
    assert replay.add(*rows(range(3, 7))).tolist() == [3, 4, 0, 1]
    batch = replay.at(torch.arange(5))
    assert batch.rewards.tolist() == [5, 6, 2, 3, 4]
    assert batch.observations[:, 0].tolist() == [5, 6, 2, 3, 4]
    assert batch.next_observations[:, 2].tolist() == [6, 7, 3, 4, 5]
    assert [tuple(part.shape) for part in batch] == [(5, 3), (5, 2), (5,), (5,), (5, 3)]


def test_a_restored_replay_is_equal():
    replay, again = Replay(5, (3, 2)), Replay(5, (3, 2))
    replay.add(*rows(range(5)))
    replay.add(*rows([9]))
    again.load_state_dict(decode(encode(replay.state_dict())))
    again.add(*rows([10]))
    replay.add(*rows([10]))
    assert torch.equal(again.rows, replay.rows) and len(again) == 5


def test_batches_are_drawn_from_what_is_there():
    replay = Replay(1000, (3, 2))
    replay.add(*rows(range(4)))
    drawn = replay.sample(4000).rewards
    assert torch.bincount(drawn.long(), minlength=4).tolist() == pytest.approx([1000] * 4, abs=130)


@pytest.mark.parametrize("capacity", [1, 2, 7, 64, 1000])
def test_every_sum_of_the_tree_is_that_of_its_leaves(capacity):
    tree, draws = SumTree(capacity), numpy.random.default_rng(0)
    for _ in range(20):
        places = draws.integers(capacity, size=5)
        tree.set(places, draws.random(5) + 0.1)
    assert tree.total == pytest.approx(tree.sums[tree.leaves :].sum())
    assert tree.leaves >= capacity
    again = SumTree(capacity)
    again.load_state_dict(decode(encode(tree.state_dict())))
    assert numpy.array_equal(again.sums[1:], tree.sums[1:])


def test_places_are_drawn_by_their_priority_and_never_without_one():
    tree, draws = SumTree(9), numpy.random.default_rng(0)
    priorities = numpy.array([0, 1, 0, 3, 0, 0.5, 0, 0, 0])
    tree.set(numpy.arange(9), priorities)
    counts = numpy.bincount(
        numpy.concatenate([tree.sample(draws.random(64)) for _ in range(500)]), minlength=tree.leaves
    )
    assert counts[:9] / counts.sum() == pytest.approx(priorities / priorities.sum(), abs=0.01)
    assert not counts[:9][priorities == 0].any() and not counts[9:].any()
    edges = tree.sample(numpy.full(1000, 1 - 1e-16))  # rounding at the end of every part
    assert set(edges.tolist()) <= {1, 3, 5}


def test_stratified_places_have_the_shares_of_their_priorities_at_once():
    tree = SumTree(4)
    tree.set(numpy.arange(4), numpy.array([1.0, 2, 3, 2]))
    assert tree.sample(numpy.full(8, 0.5)).tolist() == [0, 1, 1, 2, 2, 2, 3, 3]


def test_a_replay_smaller_than_a_step_of_all_copies_is_refused():
    check_capacity(4, 4)
    with pytest.raises(UserError, match=r"method.capacity=3 .* set it to 4 or more"):
        check_capacity(3, 4)
