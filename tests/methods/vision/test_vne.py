"""Von Neumann entropy: the card's values, invariances, gradients where eigenvalues vanish; views that agree."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from runner.datasets.images import Normalisation
from runner.methods.vision.i_vne import IVNE, build_projector, mean_cosine, nearest_neighbours, spared_optimizer
from runner.methods.vision.multi_crop import MultiCrop, odd_kernel
from runner.methods.vision.spectrum import (
    Embedding,
    autocorrelation,
    correlation_spread,
    covariance_spread,
    eigenvalues,
    entropy,
    frobenius_spread,
    shannon_entropy,
    stable_rank,
    unit_rows,
    von_neumann_entropy,
)
from runner.methods.vision.vne import SPREADS, spectrum_metrics
from runner.models.resnet import imagenet_resnet
from runner.optimizers import build_optimizer
from runner.schema import OptimizerSettings


def rows(count, width, seed=0):
    return torch.randn(count, width, generator=torch.manual_seed(seed), dtype=torch.double)


def test_worked_values():
    assert von_neumann_entropy(torch.eye(5, 8)).item() == pytest.approx(math.log(5))
    assert von_neumann_entropy(torch.ones(5, 8)).item() == pytest.approx(0, abs=1e-6)
    batch = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.double)
    assert eigenvalues(batch).tolist() == pytest.approx([0.85355, 0.14645], abs=1e-5)
    assert von_neumann_entropy(batch).item() == pytest.approx(0.416496, abs=1e-6)
    assert spectrum_metrics(torch.tensor([0.5, 0.5, 0.0])) == pytest.approx(
        {"entropy": math.log(2), "effective_rank": 2.0, "stable_rank": 2.0}
    )


@pytest.mark.parametrize("shape", [(6, 11), (11, 6)])
def test_bounds_invariances_and_the_other_decomposition(shape):
    batch = rows(*shape)
    found = von_neumann_entropy(batch)
    rotation = torch.linalg.qr(rows(shape[1], shape[1], 1))[0]
    scales = rows(shape[0], 1, 2).abs() + 0.1
    for same in (batch * scales, batch[torch.randperm(shape[0])], batch @ rotation):
        assert von_neumann_entropy(same).item() == pytest.approx(found.item(), abs=1e-10)
    by_eigh = torch.linalg.eigvalsh(autocorrelation(unit_rows(batch)))
    assert entropy(by_eigh.clamp_min(0)).item() == pytest.approx(found.item(), abs=1e-10)
    assert 0 < found < math.log(min(shape)) and eigenvalues(batch).sum().item() == pytest.approx(1)
    assert found.exp() <= torch.linalg.matrix_rank(batch) and stable_rank(eigenvalues(batch)) >= 1


def test_the_derivative_by_the_matrix_is_minus_log_minus_identity():
    square = rows(9, 4)
    matrix = autocorrelation(unit_rows(square)).requires_grad_()
    values, vectors = torch.linalg.eigh(matrix)
    (gradient,) = torch.autograd.grad(entropy(values), matrix)
    expected = -(vectors @ torch.diag(values.log()) @ vectors.T + torch.eye(4))
    assert torch.allclose(gradient, expected.detach(), atol=1e-10)
    assert torch.autograd.gradcheck(von_neumann_entropy, rows(5, 3, 3).requires_grad_())


def test_gradients_stay_finite_where_eigenvalues_vanish_or_repeat():
    dead_unit = rows(8, 4)
    dead_unit[:, 2] = 0
    dead_row = rows(8, 4)
    dead_row[3] = 0
    for batch in (dead_unit, dead_row, torch.ones(5, 3), torch.eye(4), rows(2, 4).repeat(3, 1)):
        batch = batch.clone().requires_grad_()
        amount = von_neumann_entropy(batch)
        amount.backward()
        assert amount.isfinite() and batch.grad.abs().max() < 100
    assert eigenvalues(dead_row).sum().item() == pytest.approx(7 / 8)  # it counts as a row and adds nothing


@pytest.mark.parametrize("name", SPREADS)
def test_every_measure_grows_from_one_direction_to_all(name):
    spread = SPREADS[name]
    line = torch.outer(torch.tensor([1.0, -1.0, 2.0, -2.0] * 4), torch.tensor([3.0, 1.0, 1.0]))
    cloud = torch.eye(3).repeat(4, 1) * torch.tensor([1.0, -1.0]).repeat_interleave(6)[:, None]
    assert spread(line) < spread(cloud)


def test_the_penalties_vanish_at_their_optimum():
    cloud = torch.eye(3).repeat(4, 1) * torch.tensor([1.0, -1.0]).repeat_interleave(6)[:, None]
    for spread in (frobenius_spread, covariance_spread, correlation_spread):
        assert spread(cloud).item() == pytest.approx(0, abs=1e-6)
    assert shannon_entropy(cloud).item() == pytest.approx(math.log(3))
    pair = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    assert covariance_spread(pair).item() == pytest.approx(-2 * 2**2 / 2)
    assert correlation_spread(pair).item() == pytest.approx(-2)
    assert frobenius_spread(pair).item() == pytest.approx(-0.5)  # C is 1/2 everywhere, I / d has none off the diagonal


def test_half_precision_is_left_for_the_decomposition():
    batch = rows(6, 4).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        amount = von_neumann_entropy(batch)
    assert amount.dtype == torch.float32
    amount.backward()
    assert batch.grad.isfinite().all()


def test_the_representation_is_the_input_of_the_last_linear_layer():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
    images = torch.randn(2, 3, 2, 2)
    logits, found = Embedding(network)(images)
    assert torch.equal(found, network[:3](images)) and torch.equal(logits, network(images))
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_pairs_are_those_with_a_large_view_and_both_sides_get_gradients():
    views = [rows(4, 3, seed).requires_grad_() for seed in range(6)]
    cosines = {
        (i, j): torch.cosine_similarity(views[i], views[j]).mean() for i in range(6) for j in range(i + 1, 6) if i < 2
    }
    assert len(cosines) == 9
    found = mean_cosine(views, 2)
    assert found.item() == pytest.approx(sum(cosines.values()).item() / 9)
    found.backward()
    assert all(view.grad.abs().max() > 0 for view in views)


def test_the_loss_is_minus_weighted_similarity_and_the_mean_entropy_of_views():
    views = [torch.eye(4, 6), torch.ones(4, 6)]
    loss, similarity, spread = IVNE(similarity_weight=2.0, entropy_weight=3.0).loss(views)
    assert similarity.item() == pytest.approx(1 / math.sqrt(6))
    assert spread.item() == pytest.approx(math.log(4) / 2, abs=1e-5)
    assert loss.item() == pytest.approx(-(2 * similarity.item() + 3 * spread.item()))
    assert IVNE().similarity_weight == pytest.approx(math.log(64), abs=2e-3)


def test_released_values():
    """Of jaeill/CVPR23-VNE in double precision: the entropy with a row of its gradient, and the loss of six views."""

    def waves(count, width, rate):
        return (torch.arange(count * width, dtype=torch.double) * rate).sin().view(count, width)

    batch = waves(5, 3, 1.0).requires_grad_()
    amount = von_neumann_entropy(batch)
    amount.backward()
    assert amount.item() == pytest.approx(0.1668708789)
    assert batch.grad[0].tolist() == pytest.approx([0.2279223323, 0.1136195491, -0.1051444236])
    loss, similarity, spread = IVNE().loss([waves(4, 6, 1 + 0.3 * number) for number in range(6)])
    assert [similarity.item(), spread.item()] == pytest.approx([0.04803767834, 0.5345182922])
    assert loss.item() == pytest.approx(-0.7343550340857317)


def test_projector_optimizer_and_crops_are_those_of_the_release():
    projector = build_projector(2048, 2048, 2048, 256)
    assert [type(layer).__name__ for layer in projector] == ["Linear", "BatchNorm1d", "ReLU"] * 2 + [
        "Linear",
        "BatchNorm1d",
    ]
    settings = OptimizerSettings(name="sgd", learning_rate=0.1, weight_decay=1e-4)
    small = build_projector(4, 3, 2)
    groups = spared_optimizer(SimpleNamespace(optimizer=settings), small).param_groups
    assert [group["weight_decay"] for group in groups] == [1e-4, 0.0]
    assert [len(group["params"]) for group in groups] == [4, 4]  # the projector's scales decay
    with torch.device("meta"):
        encoder = imagenet_resnet(50, num_classes=2, in_channels=3, stem="imagenet", padding="symmetric")
        encoder.fc = nn.Identity()
        groups = spared_optimizer(
            SimpleNamespace(optimizer=settings), encoder, build_projector(8, 8, 8, 4)
        ).param_groups
    assert [len(group["params"]) for group in groups] == [63, 108]  # counted with the release's rule and torchvision
    assert len(build_optimizer(small.parameters(), settings).param_groups) == 1
    assert (odd_kernel(224), odd_kernel(96)) == (23, 9)
    crops = MultiCrop(Normalisation(torch.tensor([10.0]), torch.tensor([5.0])), 16, 8)
    views = crops((torch.randint(0, 256, (3, 1, 20, 20)).float() - 10) / 5)
    assert [tuple(view.shape) for view in views] == [(3, 1, 16, 16)] * 2 + [(3, 1, 8, 8)] * 4
    assert all(view.min() >= -2 and view.max() <= 49 for view in views)
    assert not torch.equal(views[2], views[4])


def test_nearest_neighbours_vote():
    train = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 1.0], [0.0, 3.0]])
    labels = torch.tensor([2, 2, 0, 1, 1])
    test = torch.tensor([[5.0, 0.2], [0.1, 2.0]])
    assert nearest_neighbours(train, labels, test, 3, 3).tolist() == [2, 1]
    assert nearest_neighbours(train, labels, test, 99, 3).tolist() == [1, 1]  # of a tie the smallest number
