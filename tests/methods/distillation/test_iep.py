"""IEP: projections, messages and losses against the card's numbers and the released formulas in float64."""

import math

import pytest
import torch
from torch import nn
from waves import SHAPES, STUDENT, TEACHER, wave

from runner.compose import compose
from runner.errors import UserError
from runner.methods.distillation.graph_attention import row_divergence
from runner.methods.distillation.iep import IEP, Distiller
from runner.methods.distillation.message_passing import MessagePassing, affinity
from runner.methods.distillation.stacked_pca import BatchPCA, IncrementalPCA, first_axes, sphere_to_plane

NUMBERS, STAGE_A = [0.68721058, 0.00226491, 0.02333546], 0.83297733  # K_alt, K_int, K_BB; the messages on the teacher
S, T = [maps.relu() for maps in STUDENT], [maps.relu() for maps in TEACHER]


def filled(distiller: Distiller) -> Distiller:
    """Parameters, running statistics and axes that are the same on every machine."""
    for part in (*distiller.messages, *distiller.attention):
        with torch.no_grad():
            for number, item in enumerate(part.parameters()):
                item.copy_(wave(*item.shape, phase=number + 1) * 0.5 + 0.3 * (item.ndim == 1))
            for number, item in enumerate(part.buffers()):
                if item.ndim == 1:
                    item.copy_(wave(*item.shape, phase=number + 1) * 0.2 + 0.8)
    for number, projection in enumerate(distiller.projections):
        projection.mean.copy_(wave(*projection.mean.shape, phase=number) * 0.1)
        projection.axes.copy_(torch.linalg.qr(wave(*projection.axes.shape, phase=number + 3)).Q)
    return distiller


@pytest.mark.parametrize(
    ("unit", "expected", "length"),
    [
        ((1.0, 0, 0, 0), (1, -1 / 3, -1 / 3, -1 / 3), 1.1547),
        ((0.6, 0.8, 0, 0), (0.2941, 0.5294, -0.4118, -0.4118), 0.8402),
    ],
)
def test_sphere_to_plane_of_the_card(unit, expected, length):
    found = sphere_to_plane(torch.tensor([unit]))[0]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert found.norm().item() == pytest.approx(length, abs=1e-4)
    angle = math.acos(sum(unit) / 2)
    assert found.norm().item() == pytest.approx(2 * math.tan(angle / 2), abs=1e-5)


def test_sphere_to_plane_has_a_gradient_where_it_touches():
    units = torch.full((1, 4), 0.5, requires_grad=True)
    found = sphere_to_plane(units)
    assert found.abs().max() < 1e-6
    found.sum().backward()
    assert torch.isfinite(units.grad).all()


def test_the_first_axes_are_those_of_the_decomposition():
    left, right = first_axes(T[0])
    u, _, vh = torch.linalg.svd(T[0].flatten(2).transpose(1, 2), full_matrices=False)
    assert torch.allclose(right.abs(), vh[:, 0].abs(), atol=1e-5)
    assert torch.allclose(left.abs(), u[..., 0].abs(), atol=1e-5)
    assert (right.amax(1) >= -right.amin(1)).all()
    assert (right.sum(1) >= 0).all()  # of a map without negative entries (Perron)


def test_the_incremental_pca_of_one_batch_again_and_again_is_that_of_the_batch():
    points = wave(40, 8, phase=2) * torch.tensor([9.0, 6, 4, 3, 0.3, 0.2, 0.1, 0.05])
    pca, of_batch = IncrementalPCA(8), BatchPCA(8)
    of_batch.update(points)
    assert (pca(points) == 0).all()  # before the first update
    pca.update(points)
    assert torch.allclose(pca.mean, 0.9 * points.mean(0, keepdim=True), atol=1e-6)
    for _ in range(200):
        pca.update(points)
    assert torch.allclose(pca.axes.T @ pca.axes, torch.eye(4), atol=1e-4)
    assert torch.allclose(pca.axes @ pca.axes.T, of_batch.axes @ of_batch.axes.T, atol=1e-2)
    assert torch.allclose(pca.mean, points.mean(0, keepdim=True), atol=1e-5)


def test_an_update_is_one_decomposition_of_batch_old_axes_and_shift():
    """Without an outcome of its own: the Gram matrix of what was decomposed."""
    first, second = wave(12, 6, phase=1), wave(12, 6, phase=5) + 1
    pca = IncrementalPCA(6)
    pca.update(first)
    old, shift = (pca.axes * pca.values).clone(), pca.mean - second.mean(0)
    centred = second - second.mean(0)
    expected = torch.linalg.eigvalsh(centred.T @ centred + old @ old.T + shift.T @ shift).flip(0)[:3].sqrt()
    pca.update(second)
    assert torch.allclose(pca.values, expected, atol=1e-4)
    assert (pca.axes.amax(0) >= -pca.axes.amin(0)).all()


def test_codes_move_the_axes_after_they_were_used_and_in_training_alone():
    pca = IncrementalPCA(6)
    assert (pca.observe(wave(9, 6, phase=1)) == 0).all()
    axes = pca.axes.clone()
    assert (axes != 0).any()
    pca.eval().observe(wave(9, 6, phase=3))
    assert torch.equal(pca.axes, axes)


def test_a_batch_smaller_than_the_axes_leaves_the_rest_zero():
    pca = BatchPCA(12)
    assert pca.observe(wave(3, 12, phase=1)).shape == (3, 6)
    assert (pca.axes[:, 3:] == 0).all()


def test_divergence_of_the_card_is_a_sum_over_rows_and_has_a_direction():
    identity, zero = torch.eye(2), torch.zeros(2, 2)
    assert row_divergence(identity, zero).item() == pytest.approx(0.2219, abs=1e-4)
    assert row_divergence(zero, identity).item() == pytest.approx(0.2402, abs=1e-4)
    assert row_divergence(identity.repeat(2, 1), zero.repeat(2, 1)).item() == pytest.approx(2 * 0.2219, abs=1e-4)


def test_before_any_message_the_mean_edge_is_the_cosine():
    network = MessagePassing(5, 7).eval()
    codes = wave(6, 5, phase=2)
    assert torch.allclose(network.edges(codes).mean(-1), affinity(network.edge(codes)), atol=1e-6)
    assert torch.allclose(affinity(codes).diagonal(), torch.ones(6), atol=1e-6)


def test_a_message_is_that_of_the_whole_pair_through_one_linear_map():
    """The network applies its map before it takes differences; the pair written out gives the same."""
    network = MessagePassing(5, 7, iterations=1)
    front, back = wave(6, 5, phase=2), wave(6, 7, phase=3)
    edges = network.edges(front)
    pair = torch.cat([back[:, None] - back[None], edges.mean(-1, keepdim=True)], -1).flatten(0, 1)
    message = network.message_norm(network.message(pair)) * network.gate_norm(network.gate(pair)).sigmoid()
    assert torch.allclose(network(front, back)[1].flatten(0, 1), message, atol=1e-5)


def test_the_losses_are_those_of_the_released_formulas():
    """IEPKT's formulas in NumPy, float64, on the same tensors and weights."""
    distiller = filled(Distiller(IEP(), STUDENT, TEACHER)).eval()
    found = [item.item() for item in distiller.transfer_losses(S, T)]
    assert found == pytest.approx(NUMBERS, rel=1e-3)
    plain = filled(Distiller(IEP(black_box_weight=0), STUDENT, TEACHER))
    plain.train()
    assert plain.teacher_loss(T).item() == pytest.approx(STAGE_A, rel=1e-4)


def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient():
    distiller = filled(Distiller(IEP(), STUDENT, TEACHER)).eval()
    maps = [item.clone().requires_grad_() for item in T]
    losses = distiller.transfer_losses(maps, T)
    assert len(losses) == 3
    assert [item.item() for item in losses] == pytest.approx([0, 0, 0], abs=1e-4)
    for divergence in losses[1:]:
        gradients = torch.autograd.grad(divergence, maps, retain_graph=True)
        assert max(item.abs().max().item() for item in gradients) < 1e-4


def test_losses_without_weight_are_left_out():
    assert len(Distiller(IEP(black_box_weight=0), STUDENT, TEACHER).eval().transfer_losses(S, T)) == 2
    alone = Distiller(IEP(message_weight=0, affinity_weight=0), STUDENT, TEACHER).eval()
    assert len(alone.transfer_losses(S, T)) == 1
    assert len(alone.messages) == 2  # the black box reads their messages


def test_the_first_step_of_the_distiller_has_finite_gradients():
    """All codes are 0 until the axes have moved once."""
    distiller = Distiller(IEP(), STUDENT, TEACHER)
    for _ in range(2):
        loss = distiller.teacher_loss(T)
        loss.backward()
        assert math.isfinite(loss.item())
        assert all(torch.isfinite(item.grad).all() for item in distiller.parameters())
    assert all((projection.axes != 0).any() for projection in distiller.projections)


def test_the_student_alone_learns_from_the_frozen_distiller():
    distiller = filled(Distiller(IEP(), STUDENT, TEACHER)).eval().requires_grad_(False)
    before = {name: item.clone() for name, item in distiller.state_dict().items()}
    maps = [item.clone().requires_grad_() for item in S]
    sum(distiller.transfer_losses(maps, T)).backward()
    assert all(item.grad.abs().sum() > 0 for item in maps)
    assert all(torch.equal(item, before[name]) for name, item in distiller.state_dict().items())


def test_maps_of_other_sizes_are_pooled():
    larger = [nn.functional.interpolate(item, scale_factor=2) for item in S]
    distiller = filled(Distiller(IEP(), larger, TEACHER)).eval()
    expected = distiller.transfer_losses(S, T)
    assert torch.allclose(torch.stack(distiller.transfer_losses(larger, T)), torch.stack(expected), rtol=1e-4)
    assert distiller.sides == [shape[2] for shape in SHAPES]


def test_a_last_batch_of_one_image_is_refused():
    from types import SimpleNamespace

    from runner.methods.distillation.graph_attention import require_graphs

    recipe = SimpleNamespace(batch_size=4, drop_last=False)
    require_graphs(S, 10, recipe)
    with pytest.raises(UserError, match="drop_last=true"):
        require_graphs(S, 9, recipe)
    recipe.drop_last = True
    require_graphs(S, 9, recipe)
    with pytest.raises(UserError, match="needs two"):
        require_graphs(S[:1], 10, recipe)


def test_the_papers_recipe():
    config = compose(["method=iep", "scale=paper"]).config
    assert config["recipe"]["schedule"]["factor"] == 0.2 and config["recipe"]["epochs"] == 100
    assert config["teacher"]["recipe"]["name"] == "iep"
    assert config["method"]["distiller_epochs"] == 20
