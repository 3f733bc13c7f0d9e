"""FedWeIT's composition, what is sent, the server's merge and the penalties, on the card's worked numbers."""

import math

import pytest
import torch

from runner.methods.federated.clients import RunningMean
from runner.methods.federated.decomposition import (
    drift,
    half_square,
    hard_threshold,
    kept_units,
    merge,
    received,
    restored,
    transferred,
)

INFINITE = torch.full((3,), float("inf"))


def kernel(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(seed))


def test_an_open_mask_without_adaptive_parts_is_the_base():
    assert torch.equal(restored(kernel(), INFINITE, torch.zeros(3, 2, 5, 5)), kernel())


def test_a_mask_is_one_value_a_unit():
    mask = torch.tensor([0.0, math.log(3), 100.0])  # sigmoids 1/2, 3/4, 1
    found = restored(torch.ones(3, 2), mask, torch.zeros(3, 2))
    assert torch.allclose(found, torch.tensor([[0.5, 0.5], [0.75, 0.75], [1.0, 1.0]]))


def test_transfer_is_a_weighted_sum_over_clients():
    knowledge = torch.stack([kernel(1), kernel(2)])
    assert torch.allclose(transferred(torch.tensor([2.0, -1.0]), knowledge), 2 * kernel(1) - kernel(2), atol=1e-6)
    assert not transferred(torch.zeros(2), knowledge).any()


def test_the_server_averages_over_those_who_sent_a_unit():
    bases = [torch.tensor([[2.0], [4.0], [9.0]]), torch.tensor([[8.0], [6.0], [9.0]])]
    kept = [torch.tensor([True, True, False]), torch.tensor([False, True, False])]
    merged = merge(bases, kept)
    assert torch.allclose(merged, torch.tensor([[2.0], [5.0], [0.0]]))
    assert torch.allclose(received(merged, torch.tensor([[7.0], [7.0], [7.0]])), torch.tensor([[2.0], [5.0], [7.0]]))


def test_with_full_masks_it_is_plain_averaging_with_equal_weights():
    mean = RunningMean()
    for seed in range(3):
        mean.add({"kernel": kernel(seed)}, 1.0)
    merged = merge([kernel(seed) for seed in range(3)], [torch.ones(3, dtype=torch.bool)] * 3)
    assert torch.allclose(merged, mean.take()["kernel"], atol=1e-6)


@pytest.mark.parametrize("units", [10, 50, 100, 7])
def test_the_share_of_units_that_travels(units):
    mask = torch.randn(units, generator=torch.Generator().manual_seed(units))
    kept = kept_units(mask, 0.3)
    assert int(kept.sum()) == units - (math.floor(0.3 * units) + 1)
    assert mask[kept].abs().min() > mask[~kept].abs().max()  # by size, whatever the sign
    assert kept_units(mask, 0).all()


def test_small_entries_of_adaptive_parts_are_zero():
    found = hard_threshold(torch.tensor([0.2, -0.1, 0.1, -0.3, 0.0]), 0.1)
    assert found.tolist() == pytest.approx([0.2, 0, 0, -0.3, 0])


def test_drift_of_one_weight():
    mask, moved = torch.tensor([0.4]), 0.25
    found = 100 * drift(torch.tensor([[1.0 + moved]]), torch.tensor([[1.0]]), [mask])
    gate = 1 / (1 + math.exp(-0.4))
    assert found.item() == pytest.approx(100 / 2 * (gate * moved) ** 2, rel=1e-6)


def test_drift_is_the_distance_of_the_restored_weights():
    masks = [torch.randn(3, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6)]
    start, base = kernel(1), kernel(2)
    whole = sum(
        half_square(restored(base, mask, kernel(3 + k)) - restored(start, mask, kernel(3 + k)))
        for k, mask in enumerate(masks)
    )
    assert torch.allclose(drift(base, start, masks), whole, rtol=1e-5)


def test_drift_is_exactly_zero_where_nothing_moved():
    assert drift(kernel(), kernel().clone(), [torch.randn(3)]).item() == 0
    assert drift(kernel(), kernel(1), []).item() == 0  # no earlier task
