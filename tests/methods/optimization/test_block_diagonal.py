"""Block-diagonal adaptation: the card's invariants, the diagonal case against Adam, layouts, limits."""

import pytest
import torch
from torch import nn

from runner.methods.optimization.block_optimizer import (
    BlockOptimizer,
    clipping_bounds,
    from_blocks,
    preconditioner,
    to_blocks,
)
from runner.methods.optimization.matrix_optimizers import GGT, Shampoo, low_rank_update
from runner.methods.optimization.rotated_blocks import draw_hessian, noisy_gradient


def stepped(make, gradients, start):
    """The weights after one step for each gradient."""
    weight = nn.Parameter(start.clone())
    optimizer = make([weight])
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


def gradients_of(*shape, count=20, seed=0):
    torch.manual_seed(seed)
    return list(torch.randn(count, *shape, dtype=torch.float64))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_blocks_of_one_are_adam(weight_decay):
    gradients, start = gradients_of(3, 4), torch.randn(3, 4, dtype=torch.float64)
    ours = stepped(
        lambda weights: BlockOptimizer(weights, 0.01, block_size=1, delta=1e-8, weight_decay=weight_decay),
        gradients,
        start,
    )
    adam = stepped(lambda weights: torch.optim.AdamW(weights, 0.01, weight_decay=weight_decay), gradients, start)
    assert torch.allclose(ours, adam, atol=1e-6)


def test_a_vector_has_blocks_of_one_whatever_the_size():
    gradients, start = gradients_of(7), torch.zeros(7, dtype=torch.float64)
    ours = stepped(lambda weights: BlockOptimizer(weights, 0.01, block_size=3, delta=1e-8), gradients, start)
    assert torch.allclose(ours, stepped(lambda weights: torch.optim.Adam(weights, 0.01), gradients, start), atol=1e-6)


@pytest.mark.parametrize(("size", "expected"), [(2, (0.6, 0.8)), (1, (1.0, 1.0))])
def test_the_first_step_without_momenta(size, expected):
    gradient = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    moved = stepped(
        lambda weights: BlockOptimizer(weights, 1.0, momentum=0.0, decay=0.0, delta=1e-6, block_size=size),
        [gradient],
        torch.zeros_like(gradient),
    )
    assert moved[0].tolist() == pytest.approx([-part for part in expected], abs=1e-6)


def test_the_preconditioner_inverts_the_root_plus_delta():
    torch.manual_seed(0)
    root = torch.randn(3, 4, 4, dtype=torch.float64)
    root = root @ root.mT
    found = preconditioner(root @ root, 0.1)
    eye = torch.eye(4, dtype=torch.float64)
    assert torch.allclose(found @ (root + 0.1 * eye), eye.expand(3, 4, 4), atol=1e-7)
    assert torch.allclose(found, found.mT) and (torch.linalg.eigvalsh(found) > 0).all()
    singular = torch.zeros(1, 2, 2, dtype=torch.float64)
    assert torch.allclose(preconditioner(singular, 0.1), 10 * torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("accumulation", ["moving", "mean"])
def test_a_rotated_block_has_a_rotated_update(accumulation):
    gradients, start = gradients_of(2, 3, count=6), torch.zeros(2, 3, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    turned = [gradient @ rotation.T for gradient in gradients]

    def blocks(weights):
        return BlockOptimizer(weights, 0.1, block_size=3, accumulation=accumulation)

    assert torch.allclose(stepped(blocks, turned, start), stepped(blocks, gradients, start) @ rotation.T)

    def adam(weights):
        return torch.optim.Adam(weights, 0.1)

    assert not torch.allclose(stepped(adam, turned, start), stepped(adam, gradients, start) @ rotation.T, atol=1e-2)


def test_a_spectrum_clipped_to_one_value_is_sgd():
    gradients, start = gradients_of(2, 4, count=5), torch.zeros(2, 4, dtype=torch.float64)
    moved = stepped(
        lambda weights: BlockOptimizer(
            weights, 0.01, momentum=0.0, block_size=4, clipping=(3.0, 1e15), bias_correction=False
        ),
        gradients,
        start,
    )
    assert torch.allclose(moved, -0.01 * 3.0 * sum(gradients), atol=1e-9)


def test_the_bounds_meet_and_hold_the_eigenvalues():
    widths = [clipping_bounds(step, 2.0, 0.01) for step in (1, 100, 10**6)]
    assert widths[1] == pytest.approx((1.0, 4.0)) and widths[2] == pytest.approx((2.0, 2.0), rel=1e-3)
    assert widths[0][0] < widths[1][0] and widths[0][1] > widths[1][1]
    torch.manual_seed(0)
    factor = torch.randn(50, 4, 4, dtype=torch.float64)
    clipped = torch.linalg.eigvalsh(preconditioner(factor @ factor.mT, 1e-4, widths[1]))
    assert clipped.min() >= 1.0 - 1e-9 and clipped.max() <= 4.0 + 1e-9


@pytest.mark.parametrize("grouping", ["rows", "columns", "kernels", "random"])
@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 3, 3), (6,)])
def test_blocks_go_back_to_their_places(grouping, shape):
    values = torch.randn(shape)
    order = torch.randperm(values.numel()) if grouping == "random" else None
    blocks = to_blocks(values, 4, grouping, order)
    assert blocks.shape[1] == 4
    assert torch.equal(from_blocks(blocks, values, grouping, order), values)


def test_a_block_holds_a_neurons_an_inputs_or_a_kernels_weights():
    matrix = torch.arange(6.0).view(2, 3)
    assert to_blocks(matrix, 2, "rows").tolist() == [[0, 1], [2, 0], [3, 4], [5, 0]]
    assert to_blocks(matrix, 2, "columns").tolist() == [[0, 3], [1, 4], [2, 5]]
    kernels = torch.arange(36.0).view(2, 2, 3, 3)
    assert to_blocks(kernels, 9, "kernels").tolist() == kernels.view(4, 9).tolist()
    assert to_blocks(matrix, 4, "random", torch.tensor([5, 0, 1, 2, 3, 4])).tolist() == [[5, 0, 1, 2], [3, 4, 0, 0]]


def test_permuted_rows_have_permuted_updates_and_padding_stays_out():
    gradients, start = gradients_of(4, 5, count=6), torch.zeros(4, 5, dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])

    def blocks(weights):
        return BlockOptimizer(weights, 0.1, block_size=3)  # the last of each row has one zero

    moved = stepped(blocks, gradients, start)
    assert torch.allclose(stepped(blocks, [item[order] for item in gradients], start), moved[order])
    alone = stepped(blocks, [item[:, 3:] for item in gradients], start[:, 3:])  # the last two columns by themselves
    assert torch.allclose(moved[:, 3:], alone)


def test_between_refreshes_the_preconditioner_stays():
    weight = nn.Parameter(torch.zeros(2, 3))
    optimizer = BlockOptimizer([weight], 0.1, block_size=3, refresh_every=3)
    seen = []
    for gradient in gradients_of(2, 3, count=4):
        weight.grad = gradient.float()
        optimizer.step()
        seen.append(optimizer.state[weight]["preconditioner"].clone())
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[3])


def test_a_share_of_the_tensors_takes_part_in_a_refresh():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(2, 3))
    optimizer = BlockOptimizer([weight], 0.1, block_size=3, refresh_share=0.5)
    for gradient in gradients_of(2, 3, count=40):
        weight.grad = gradient.float()
        optimizer.step()
    assert 10 < optimizer.state[weight]["updates"] < 30


@pytest.mark.parametrize("grouping", ["rows", "random"])
def test_its_stored_state_goes_on_to_the_same_bits(grouping):
    gradients = gradients_of(3, 4, count=6)

    def build(weight):
        return BlockOptimizer([weight], 0.1, block_size=3, grouping=grouping, seed=5)

    whole, half = nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(3, 4))
    first, second = build(whole), build(half)
    for number, gradient in enumerate(gradients):
        if number == 3:
            state = second.state_dict()
            second = build(half)
            second.load_state_dict(state)
        for weight, optimizer in ((whole, first), (half, second)):
            weight.grad = gradient.float()
            optimizer.step()
    assert torch.equal(whole, half)


def test_a_low_rank_update_is_that_of_the_whole_matrix_on_its_span():
    torch.manual_seed(0)
    past, delta = torch.randn(3, 8, dtype=torch.float64), 0.1
    mean = past.T @ torch.randn(3, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(past.T @ past)
    whole = vectors @ ((vectors.T @ mean) / (values.clamp(min=0).sqrt() + delta))
    assert torch.allclose(low_rank_update(past, mean, delta), whole, atol=1e-6)


def test_a_first_step_of_ggt_has_length_one_and_one_of_shampoo_is_orthogonal():
    gradient = torch.randn(4, 3, dtype=torch.float64)
    start = torch.zeros_like(gradient)
    ggt = stepped(lambda weights: GGT(weights, 1.0, delta=1e-9), [gradient], start)
    assert torch.allclose(ggt, -gradient / gradient.norm(), atol=1e-6)
    shampoo = stepped(lambda weights: Shampoo(weights, 1.0, momentum=0.0, delta=1e-12), [gradient], start)
    assert torch.allclose(shampoo.T @ shampoo, torch.eye(3, dtype=torch.float64), atol=1e-4)


def test_the_quadratic_has_the_blocks_of_the_card():
    torch.manual_seed(0)
    hessian = draw_hessian(permuted=False)
    assert torch.count_nonzero(hessian) == 10 * 25
    eigenvalues = torch.linalg.eigvalsh(hessian).view(5, 10).mean(1)
    assert eigenvalues.log10().tolist() == pytest.approx([-2, -1.25, -0.5, 0.25, 1], abs=1e-6)
    torch.manual_seed(0)
    mixed = draw_hessian(permuted=True)
    assert torch.allclose(torch.linalg.eigvalsh(mixed), torch.linalg.eigvalsh(hessian))
    assert torch.count_nonzero(torch.block_diag(*[torch.ones(5, 5)] * 10) * mixed) < 125
    draws = torch.stack([noisy_gradient(torch.zeros(50).double(), hessian) for _ in range(2000)])
    assert torch.allclose(draws.var(0), 0.09 * hessian.diagonal(), rtol=0.2)
