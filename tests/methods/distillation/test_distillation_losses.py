"""Losses against numbers of the released code (RepDistiller, run on the same tensors) and small sums by hand."""

import math

import pytest
import torch
from torch import nn
from waves import STUDENT, TEACHER, wave

from runner.methods.distillation import losses, relations
from runner.methods.distillation.ab import ActivationBoundaries
from runner.methods.distillation.adapters import VariationalRegressor, convolution_norms
from runner.methods.distillation.dml import DML
from runner.methods.distillation.factor_transfer import FactorTransfer, Paraphraser
from runner.methods.distillation.features import Features, pool_to_smaller
from runner.methods.distillation.fitnet import linear_maps
from runner.methods.distillation.fsp import FSP
from runner.methods.distillation.rkd import RKD
from runner.methods.distillation.vid import VID

S, T = [maps.relu() for maps in STUDENT], [maps.relu() for maps in TEACHER]
LOGITS = 3 * wave(5, 10, phase=2), 3 * wave(5, 10, phase=5)
EMBEDDINGS = wave(6, 5, phase=1), wave(6, 9, phase=3)


def points(loss, student, teacher):
    return sum(loss(s, t) for s, t in zip(student, teacher, strict=True))


def numbers_of_repdistiller():
    vid = VariationalRegressor(6, [7, 7, 7], norm=False, smallest_variance=1e-5, variance=5.0)
    for number, weight in enumerate(vid.mean.parameters(), 1):
        weight.data = 0.5 * wave(*weight.shape, phase=number)
    s, t = EMBEDDINGS
    yield "soft_logits", 16 * losses.kl_divergence(*LOGITS, 4.0), 5.181946
    yield "attention_transfer", points(losses.attention_difference, S, T), 0.09093551
    yield "attention_transfer, pooled", losses.attention_difference(*pool_to_smaller(S[0], T[1])), 0.02892498
    yield "fsp", FSP().difference(S, T), 0.01529289
    yield "ab", 3e-3 * ActivationBoundaries().difference(STUDENT, TEACHER), 0.9752232
    yield "factor_transfer", FactorTransfer().difference(S[1], T[1]), 0.1235867
    yield "rkd, distances", relations.distance_difference(s, t, zero_diagonal=True), 0.07384049
    yield "rkd, angles", relations.angle_difference(s, t), 0.05995527
    yield "similarity_preserving", relations.similarity_difference(S[2], T[1]), 0.003664686
    yield "pkt", 1e4 * relations.probability_difference(s, t), 283.1222
    yield "correlation_congruence", relations.neighbour_correlation(s, t[:, :5]), 3.630019
    yield "nst", points(losses.selectivity_discrepancy, S, T), 0.6107674
    yield "vid", losses.gaussian_surprise(*vid(STUDENT[0]), wave(4, 7, 8, 8, phase=2)), 0.8568179


@pytest.mark.parametrize(("name", "found", "released"), list(numbers_of_repdistiller()))
def test_it_is_the_number_of_the_released_code(name, found, released):
    assert found.item() == pytest.approx(released, rel=1e-5), name


def maps(*channels):
    """One image, one row of pixels a channel."""
    return torch.tensor(channels, dtype=torch.float32)[None, :, None]


def test_a_divergence_by_hand():
    s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    p = math.e / (1 + math.e)
    expected = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert losses.kl_divergence(s, t).item() == pytest.approx(expected, rel=1e-5)
    assert losses.kl_divergence(t, t, 4.0).item() == pytest.approx(0, abs=1e-7)
    assert losses.kl_divergence(s, 2 * t, 2.0).item() == pytest.approx(expected, rel=1e-5)


def test_kd_gradient_tends_to_the_difference_of_centred_logits():
    """T^2 KL at large T: (z_s - z_t) / classes, each centred (Hinton et al., eq. 4)."""
    s, t = wave(1, 4, phase=1).requires_grad_(), wave(1, 4, phase=2)
    (losses.kl_divergence(s, t, 1000.0) * 1000.0**2).backward()
    expected = (s.detach() - s.detach().mean() - t + t.mean()) / 4
    assert torch.allclose(s.grad, expected, atol=1e-2)


def test_channel_attention_by_hand():
    s, t = maps([3.0, 4.0], [0.0, 2.0]), maps([1.0, 0.0], [0.0, 5.0])
    # channels become (.6, .8) and (0, 1) against (1, 0) and (0, 1): (.16 + .64) / 4
    assert losses.channel_attention_difference(s, t).item() == pytest.approx(0.2)


def test_the_flow_by_hand_and_its_three_reductions():
    lower, upper = maps([1.0, 2.0]), maps([3.0, 1.0], [0.0, 2.0])
    assert losses.flow(lower.repeat(1, 1, 2, 1), upper.repeat(1, 1, 2, 1), "max").tolist() == [[[2.5, 2.0]]]  # HW = 4
    peak = torch.tensor([[[[1.0, 3.0], [0.0, 0.0]]]])
    assert losses.flow(peak, torch.ones(1, 1, 1, 1), "max").item() == 3
    assert losses.flow(peak, torch.ones(1, 1, 1, 1), "average").item() == 1
    s = [torch.ones(2, 2, 1, 1), torch.ones(2, 3, 1, 1)]
    t = [torch.zeros(2, 2, 1, 1), torch.zeros(2, 3, 1, 1)]  # differences: 2 x (2 x 3) ones
    assert FSP(code_base="rep").difference(s, t).item() == 1
    assert FSP(code_base="sib").difference(s, t).item() == 3  # 6 / 2
    assert FSP(code_base="tf2").difference(s, t).item() == 3  # 12 / 2^2


def test_activation_boundaries_by_hand_and_their_three_reductions():
    s, t = maps([0.5, -2.0, 0.0, 2.0]), maps([-1.0, -1.0, 1.0, 1.0])
    assert losses.boundary_difference(s, t).flatten().tolist() == [2.25, 0, 1, 0]
    two = [s, s], [t, t]
    assert ActivationBoundaries(code_base="rep").difference(*two).item() == pytest.approx(3.25 * 1.5)
    assert ActivationBoundaries(code_base="sib").difference(*two).item() == pytest.approx(3.25 * 3)
    assert ActivationBoundaries(code_base="tf2").difference(*two).item() == pytest.approx(3.25 * 1.5 / 4)


def test_factors_are_normalised_in_three_ways():
    s, t = maps([3.0, 0.0], [4.0, 0.0]), maps([1.0, 0.0], [0.0, 0.0])
    assert FactorTransfer(code_base="sib").difference(s, t).item() == pytest.approx((0.4 + 0.8) / 4)
    assert FactorTransfer(code_base="tf2").difference(s, t).item() == pytest.approx((0.4 + 0.8) / 4)
    assert FactorTransfer(code_base="rep").difference(s, t).item() == 0
    whole = maps([3.0, 3.0], [4.0, 4.0])  # each pixel has unit length alone, half the squares together
    assert FactorTransfer(code_base="sib").difference(whole, t).item() == pytest.approx((0.4 + 0.8 + 0.6 + 0.8) / 4)
    root = 2**-0.5
    by_hand = (1 - 0.6 * root + 0.8 * root + 0.6 * root + 0.8 * root) / 4
    assert FactorTransfer(code_base="tf2").difference(whole, t).item() == pytest.approx(by_hand)


@pytest.mark.parametrize(("code_base", "side"), [("rep", 8), ("sib", 4), ("tf2", 4)])
def test_a_paraphraser_gives_back_a_map_of_the_same_shape(code_base, side):
    paraphraser = Paraphraser(16, code_base)
    factors = paraphraser.encoder(torch.randn(2, 16, 8, 8))
    assert factors.shape == (2, 8 if code_base == "rep" else 2, side, side)
    assert paraphraser.decoder(factors).shape == (2, 16, 8, 8)
    assert paraphraser.loss(torch.randn(2, 16, 7, 7)).ndim == 0  # odd sizes too


@pytest.mark.parametrize(("code_base", "released"), [("sib", 0.59733924), ("tf2", 8.75774715)])
def test_a_paraphraser_loses_what_the_released_layers_lose(code_base, released):
    """The layers of the TensorFlow code in NumPy, float64, with symmetric padding: tf2's decoder has ReLUs and no
    biases, its normalisation divides by averages that never move, and its factors pass the leaky ReLU twice."""
    paraphraser = Paraphraser(16, code_base).train()
    for number, item in enumerate(paraphraser.parameters(), 1):
        item.data = 0.3 * wave(*item.shape, phase=number) + (0.5 if code_base == "tf2" and item.ndim == 1 else 0)
    for _ in range(2):  # a step leaves the averages alone
        found = paraphraser.loss(wave(3, 16, 8, 8, phase=4).abs()).item()
        assert found == pytest.approx(released, rel=1e-5)


def test_distances_by_hand():
    points_on_a_line = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 2, 3: mean 2
    found = relations.distances(points_on_a_line, zero_diagonal=True)
    assert torch.allclose(found, torch.tensor([[0, 0.5, 1.5], [0.5, 0, 1.0], [1.5, 1.0, 0]]))
    with_diagonal = relations.distances(points_on_a_line, zero_diagonal=False)  # the mean runs over 9: 12 / 9
    assert torch.allclose(with_diagonal[0], torch.tensor([0, 0.75, 2.25]), atol=1e-5)
    right_angle = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 5.0]])
    assert relations.angles(right_angle)[0, 1, 2].item() == pytest.approx(0, abs=1e-6)
    assert relations.angles(right_angle)[0, 1, 1].item() == pytest.approx(1)


def test_relations_do_not_change_under_motions():
    s = wave(6, 3, phase=1)
    turned = 2.5 * s[:, [1, 2, 0]] + 4
    assert relations.distance_difference(s, turned, zero_diagonal=True).item() == pytest.approx(0, abs=1e-10)
    assert relations.angle_difference(s, turned).item() == pytest.approx(0, abs=1e-10)
    assert relations.similarity_difference(s, 3 * s).item() == pytest.approx(0, abs=1e-12)


def test_rkd_takes_what_its_code_base_takes():
    features = Features(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]]), [])
    assert RKD(code_base="rep").embeddings(features).tolist() == [[0, 2]]
    assert RKD(code_base="sib").embeddings(features).tolist() == [[0, 1]]
    assert torch.allclose(RKD(code_base="tf2").embeddings(features), torch.tensor([[0.6, 0.8]]))


def test_mutual_learning_has_two_forms():
    own, other, labels = LOGITS[0], LOGITS[1], torch.arange(5)
    task = nn.functional.cross_entropy(own, labels)
    there, back = losses.kl_divergence(own, other), losses.kl_divergence(other, own)
    assert torch.isclose(DML().one_loss(own, other, labels), task + (there + back) / 2)
    softer = losses.kl_divergence(own, other, 5.0)
    assert torch.isclose(DML(code_base="tf2", temperature=5.0).one_loss(own, other, labels), (task + softer) / 2)


def test_the_margin_is_the_mean_of_the_negative_values():
    norm = nn.BatchNorm2d(3)
    norm.weight.data, norm.bias.data = torch.tensor([2.0, -0.5, 1.0]), torch.tensor([0.0, -0.3, 5.0])
    margin = losses.overhaul_margin(norm).flatten()
    assert margin[0].item() == pytest.approx(-2 * math.sqrt(2 / math.pi), rel=1e-5)  # of a half-normal distribution
    values = -0.3 + 0.5 * torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    assert margin[1].item() == pytest.approx(values[values < 0].mean().item(), abs=2e-3)
    assert margin[2].item() == -3  # almost never negative


def test_partial_distances_by_hand():
    margin = torch.tensor(-1.0).view(1, 1, 1, 1)
    s, t = maps([1.0, -3.0, 0.5, -3.0]), maps([2.0, -2.0, -0.5, 1.0])
    # positive: 1; below the margin and lower still: 0; negative and exceeded: 1; positive: 16
    assert losses.partial_difference(s, t, margin).item() == pytest.approx(18)


def test_equal_networks_lose_nothing():
    for loss in (losses.attention_difference, losses.channel_attention_difference, losses.selectivity_discrepancy):
        assert loss(S[0], S[0]).item() == pytest.approx(0, abs=1e-6)
    assert FSP().difference(S, S).item() == 0
    assert losses.partial_difference(T[0], T[0], torch.tensor(-1.0)).item() == 0
    embeddings = EMBEDDINGS[0]
    assert relations.probability_difference(embeddings, embeddings).item() == pytest.approx(0, abs=1e-9)
    assert relations.neighbour_correlation(embeddings, embeddings).item() == 0


def test_mutual_learning_smooths_labels_where_the_recipe_does():
    own, other, labels = LOGITS[0], LOGITS[1], torch.arange(5)
    plain, smooth = DML().one_loss(own, other, labels), DML().one_loss(own, other, labels, 0.1)
    tasks = [nn.functional.cross_entropy(own, labels, label_smoothing=share) for share in (0.0, 0.1)]
    assert torch.isclose(smooth - plain, tasks[1] - tasks[0], atol=1e-6) and smooth != plain


def test_adapters_of_the_tensorflow_code_start_with_hes_weights():
    """std = sqrt(2 / fan): over the outputs in sib (variance scaling, FAN_OUT), over the inputs in tf2 (he_normal)."""
    torch.manual_seed(0)
    student, teacher = [torch.empty(1, 64, 4, 4)], [torch.empty(1, 256, 4, 4)]
    sib, tf2 = (VID(code_base=name).regressors(student, teacher)[0].mean[0] for name in ("sib", "tf2"))  # 64 to 512
    (linear,) = linear_maps(student, teacher)  # 256 to 64
    (connector,) = convolution_norms(student, teacher, mode="fan_out")
    found = [layer.weight.std().item() for layer in (sib, tf2, linear, connector[0])]
    assert found == pytest.approx([(2 / fan) ** 0.5 for fan in (512, 64, 64, 256)], rel=0.03)
    encoder = Paraphraser(64, "sib").encoder[0]  # 64 to 32, 3x3
    assert encoder.weight.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.03) and not encoder.bias.any()
