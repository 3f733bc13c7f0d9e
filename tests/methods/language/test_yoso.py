"""YOSO's probabilities, tables and gradients against the card's numbers, dense sums and finite differences."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from runner.methods.language.attention import CollisionAttention, SoftmaxAttention
from runner.methods.language.collisions import (
    bucket_sums,
    collision_frequency,
    collision_probability,
    collision_slope,
    draw_directions,
    draw_signs,
    expected_attention,
    fast_projections,
    hadamard,
    hash_codes,
    sampled_attention,
    slope_bound,
    weighted_bucket_sums,
)
from runner.models.transformer import SequenceEncoder

DOUBLE = torch.float64


def unit(*shape, seed=0, dtype=torch.float32):
    return normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def codes_of(query, key, hashes, bits, seed=0):
    torch.manual_seed(seed)
    directions = draw_directions(len(query), query.shape[-1], hashes * bits).to(query.dtype)
    return [hash_codes(part @ directions, bits) for part in (query, key)]


@pytest.mark.parametrize(
    ("cosine", "bits", "expected"),
    [
        (1, 9, 1),
        (0.5, 1, 2 / 3),
        (0.5, 9, 0.0260123),
        (0.9, 1, 0.8564337),
        (0.9, 9, 0.2478813),
        (0, 1, 0.5),
        (0, 9, 0.001953125),
        (-1, 9, 0),
        (1.0000001, 9, 1),
    ],
)
def test_collision_probabilities(cosine, bits, expected):
    assert collision_probability(torch.tensor(float(cosine), dtype=DOUBLE), bits).item() == pytest.approx(
        expected, abs=5e-8
    )


@pytest.mark.parametrize("bits", [1, 4, 9])
def test_the_bound_is_below_the_slope_and_their_ratio_is_that_of_the_cosine(bits):
    cosines = torch.linspace(-0.999, 0.999, 501, dtype=DOUBLE)
    slope, bound = collision_slope(cosines, bits), slope_bound(collision_probability(cosines, bits), bits)
    assert (bound <= slope).all()
    for cosine, ratio in ((0.0, 4 / math.pi), (0.5, 1.10266), (0.9, 1.70533)):
        at = torch.tensor(cosine, dtype=DOUBLE)
        found = collision_slope(at, bits) / slope_bound(collision_probability(at, bits), bits)
        assert found.item() == pytest.approx(ratio, abs=5e-6)


def test_the_slope_is_the_derivative():
    cosine = torch.linspace(-0.9, 0.9, 7, dtype=DOUBLE, requires_grad=True)
    (gradient,) = torch.autograd.grad(collision_probability(cosine, 7).sum(), cosine)
    assert torch.allclose(gradient, collision_slope(cosine.detach(), 7))


def test_codes_are_the_bits_of_the_signs():
    projections = torch.tensor([[[1.0, -1.0, 2.0, -3.0, 4.0, 5.0]]])  # two hashes of three bits
    assert hash_codes(projections, 3).tolist() == [[[5], [6]]]


def test_codes_do_not_depend_on_the_norm():
    points = torch.randn(2, 5, 8)
    directions = draw_directions(2, 8, 12)
    assert torch.equal(hash_codes(points @ directions, 4), hash_codes(7.5 * points @ directions, 4))


def test_the_hadamard_transform():
    from scipy.linalg import hadamard as matrix

    points = torch.randn(3, 16)
    assert torch.allclose(hadamard(points), points @ torch.tensor(matrix(16)).float(), atol=1e-5)
    with pytest.raises(ValueError, match="powers of two"):
        hadamard(torch.zeros(12))


@pytest.mark.parametrize("fast", [False, True])
def test_pairs_collide_as_often_as_their_angle_says(fast):
    query, key = unit(64, 1, 24), unit(64, 1, 24, seed=1)
    key = normalize(key + 1.5 * query, dim=-1)
    torch.manual_seed(0)
    if fast:
        signs = draw_signs(64, 32, 256, 2)
        codes = [hash_codes(fast_projections(part, signs, 256, 2), 2) for part in (query, key)]
    else:
        codes = codes_of(query, key, 256, 2)
    found = collision_frequency(*codes).flatten()
    expected = collision_probability((query * key).sum(-1).flatten(), 2)
    assert (found - expected).abs().max() < 0.17  # four and a half deviations of 256 draws
    assert (found - expected).mean().abs() < 0.02


def test_no_hash_takes_its_bits_from_two_blocks():
    """As released: of 32 projections two hashes of eleven bits, so five hashes take three blocks."""
    torch.manual_seed(0)
    points, signs = unit(2, 4, 30), draw_signs(2, 32, 5, 11)
    assert signs.shape == (2, 3, 3, 32)
    found = fast_projections(points, signs, 5, 11)
    assert found.shape == (2, 4, 55)
    for block in range(3):
        alone = torch.nn.functional.pad(points, (0, 2))
        for step in range(3):
            alone = hadamard(alone * signs[:, None, block, step])
        assert torch.equal(found[:, :, 22 * block : 22 * block + 22], alone[:, :, : 22 if block < 2 else 11])


def test_more_bits_than_features_fill_the_points_up():
    layer = CollisionAttention(1, hashes=2, bits=9, fast=True)
    parts = [torch.randn(1, 1, 5, 6) for _ in range(3)]
    assert layer(*parts, torch.ones(1, 5, dtype=torch.bool)).isfinite().all()


def dense(codes, values, readers):
    return (readers[:, :, :, None] == codes[:, :, None]).to(values.dtype).mean(1) @ values


def test_tables_are_the_dense_sums():
    query, key = unit(3, 7, 8, dtype=DOUBLE), unit(3, 11, 8, seed=1, dtype=DOUBLE)
    codes_query, codes_key = codes_of(query, key, 5, 3)
    value = torch.randn(3, 11, 6, dtype=DOUBLE)
    assert torch.allclose(bucket_sums(codes_key, value, codes_query, 8), dense(codes_key, value, codes_query))
    gradient = torch.randn(3, 7, 6, dtype=DOUBLE)
    weights = collision_frequency(codes_query, codes_key) * (gradient @ value.mT)
    found = weighted_bucket_sums(codes_key, value, key, codes_query, gradient, 8)
    assert torch.allclose(found, weights @ key, atol=1e-6)


def test_a_small_piece_gives_the_same_tables(monkeypatch):
    query, key = unit(2, 9, 8), unit(2, 9, 8, seed=1)
    codes = codes_of(query, key, 4, 3)
    arguments = codes[1], key, key, codes[0], query, 8
    whole = weighted_bucket_sums(*arguments)
    monkeypatch.setattr("runner.methods.language.collisions.PIECE", 400)
    assert torch.allclose(weighted_bucket_sums(*arguments), whole, atol=1e-6)


def test_the_buckets_of_a_hash_hold_all_values():
    key, value = unit(1, 40, 8), torch.randn(1, 40, 8)
    codes, _ = codes_of(key, key, 1, 4)
    every = torch.arange(16).expand(1, 1, 16)
    assert torch.allclose(bucket_sums(codes, value, every, 16).sum(1), value.sum(1), atol=1e-5)


@pytest.mark.parametrize("hashes", [1, 7])
def test_an_identical_key_collides_in_every_hash(hashes):
    point, value = unit(4, 1, 16), torch.randn(4, 1, 16)
    codes = codes_of(point, point, hashes, 9)
    assert torch.allclose(sampled_attention(point, point, value, *codes, 9, pairs=False), value)


def attention_gradients(query, key, value, codes, bits, backward, pairs=None):
    parts = [part.clone().requires_grad_() for part in (query, key, value)]
    out = sampled_attention(*parts, *codes, bits, backward, pairs)
    weight = torch.arange(out.numel(), dtype=out.dtype).view_as(out).sin()
    return torch.autograd.grad((out * weight).sum(), parts), weight


@pytest.mark.parametrize("backward", ["bound", "expected_bound", "collided"])
def test_the_gradients_are_the_cards_sums(backward):
    bits, hashes = 3, 6
    query, key = unit(2, 5, 8, dtype=DOUBLE), unit(2, 6, 8, seed=1, dtype=DOUBLE)
    value = unit(2, 6, 8, seed=2, dtype=DOUBLE)
    codes = codes_of(query, key, hashes, bits)
    found, gradient = attention_gradients(query, key, value, codes, bits, backward)
    for group in range(2):
        by_query, by_key, by_value = (torch.zeros_like(part[group]) for part in (query, key, value))
        for i in range(5):
            for j in range(6):
                collisions = (codes[0][group, :, i] == codes[1][group, :, j]).double().mean().item()
                cosine = query[group, i] @ key[group, j]
                slope = {
                    "bound": bits / 2 * collisions,
                    "expected_bound": bits / 2 * collision_probability(cosine, bits),
                    "collided": (collisions > 0) * collision_slope(0.99 * cosine, bits),
                }[backward]
                share = (gradient[group, i] @ value[group, j]) * slope
                by_query[i] += share * key[group, j]
                by_key[j] += share * query[group, i]
                share = collision_probability(cosine, bits) if backward == "expected_bound" else collisions
                by_value[j] += share * gradient[group, i]
        for part, expected in zip(found, (by_query, by_key, by_value), strict=True):
            assert torch.allclose(part[group], expected, atol=1e-6)


def test_tables_and_pairs_give_the_same_gradients():
    query, key, value = unit(2, 30, 8), unit(2, 30, 8, seed=1), unit(2, 30, 8, seed=2)
    codes = codes_of(query, key, 8, 4)
    both = [attention_gradients(query, key, value, codes, 4, "bound", pairs)[0] for pairs in (True, False)]
    for one, other in zip(*both, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_autograd_through_the_expectation_is_finite_differences():
    parts = [unit(1, 4, 5, seed=seed, dtype=DOUBLE).requires_grad_() for seed in range(3)]
    assert torch.autograd.gradcheck(lambda *given: expected_attention(*given, 5), parts)


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (
            True,
            (
                [0.23122946, 0.97289924, -0.39498871, -0.91868597, -0.13739944, 0.99051572],
                [-0.22712016, 0.0, 0.0, 0.0, -0.1992491, 0.12329772],
                [0.24345268, -0.17599571, -1.42e-06, -1e-07, 0.02795541, -0.00649288],
                [0.58722332, 0.02001312, -0.26902509, 0.11566739, 0.80653873, -0.11836905],
            ),
        ),
        (
            False,
            (
                [0.21158468, 0.97735967, -0.39498872, -0.91868597, -0.09966334, 0.99502122],
                [-0.15980721, 0.0, 1.7e-07, -5e-08, -0.47184607, 0.29198398],
                [0.3904474, -0.28226048, -1.362e-05, -9.7e-07, 0.01943283, -0.00451344],
                [0.57499343, -0.00016639, -0.26902482, 0.11566741, 0.82800084, -0.10620845],
            ),
        ),
    ],
)
def test_the_expectation_and_its_gradients_as_the_released_code_has_them(bound, expected):
    """Version 1 and version 2: its output and gradients in queries, keys and values, all rows normalised, 9 bits."""
    waves = torch.sin(torch.arange(6, dtype=DOUBLE) * 1.7).view(1, 3, 2)
    query, key, value = (part.clone().requires_grad_() for part in (waves, waves.flip(1) + 0.3, waves * 2 - 0.5))
    found = expected_attention(normalize(query, dim=-1), normalize(key, dim=-1), value, 9, bound=bound)
    found = normalize(found, dim=-1)
    found.backward(waves.flip(2))
    for part, numbers in zip((found, query.grad, key.grad, value.grad), expected, strict=True):
        assert part.flatten().tolist() == pytest.approx(numbers, abs=2e-8)


def test_the_values_gradient_is_that_of_the_expectation_on_average():
    query, key, value = unit(1, 6, 8, dtype=DOUBLE), unit(1, 6, 8, seed=1, dtype=DOUBLE), torch.randn(1, 6, 8).double()
    codes = codes_of(query, key, 4000, 3)
    found, gradient = attention_gradients(query, key, value, codes, 3, "bound")
    expected = collision_probability(query @ key.mT, 3).mT @ gradient
    assert torch.allclose(found[2], expected, atol=0.12)


def test_the_error_falls_with_the_root_of_the_number_of_hashes():
    query, key, value = unit(1, 256, 32), unit(1, 256, 32, seed=1), torch.randn(1, 256, 32)
    exact = collision_probability(query @ key.mT, 8) @ value
    counts = [4, 16, 64, 256]
    errors = []
    for count in counts:
        found = sampled_attention(query, key, value, *codes_of(query, key, count, 8, seed=count), 8)
        errors.append(((found - exact).norm() / exact.norm()).log().item())
    places = torch.tensor(counts).double().log()
    places -= places.mean()
    slope = (places @ torch.tensor(errors).double() / places.square().sum()).item()
    assert -0.6 < slope < -0.4


def layer(**changes):
    torch.manual_seed(0)
    return CollisionAttention(2, **{"hashes": 8, "bits": 4, "window": None} | changes)


def test_rows_have_unit_norm_or_are_zero_without_a_bad_gradient():
    parts = [torch.randn(1, 2, 12, 8, requires_grad=True) for _ in range(3)]
    found = layer(hashes=1, bits=9)(*parts, torch.ones(1, 12, dtype=torch.bool))
    norms = found.norm(dim=-1)
    assert torch.all((norms - 1).abs().lt(1e-5) | (norms == 0)) and (norms == 0).any() and (norms > 0).any()
    found.square().sum().backward()
    assert all(torch.isfinite(part.grad).all() for part in parts)


@pytest.mark.parametrize("hashes", [None, 8])
def test_padding_changes_nothing(hashes):
    attention = layer(hashes=hashes, window=None)
    parts = [torch.randn(1, 2, 6, 8) for _ in range(3)]
    torch.manual_seed(3)
    short = attention(*parts, torch.ones(1, 6, dtype=torch.bool))
    longer = [torch.cat((part, torch.randn(1, 2, 4, 8)), 2) for part in parts]
    torch.manual_seed(3)
    long = attention(*longer, torch.tensor([[True] * 6 + [False] * 4]))
    assert torch.allclose(long[:, :, :6], short, atol=1e-5) and not long[:, :, 6:].any()


def test_heads_and_sequences_have_hashes_of_their_own():
    point = torch.randn(1, 1, 5, 8).expand(2, 2, 5, 8)
    codes = layer()._codes(point.flatten(0, 1), 8)
    assert not any(torch.equal(codes[0], codes[group]) for group in range(1, 4))


@pytest.mark.parametrize("backward", ["bound", "collided"])
def test_tied_queries_and_keys_have_finite_gradients(backward):
    point = torch.randn(1, 2, 5, 8, requires_grad=True)
    for hashes in (None, 4):
        out = layer(hashes=hashes, backward=backward)(point, point, point, torch.ones(1, 5, dtype=torch.bool))
        assert torch.isfinite(torch.autograd.grad(out.sum(), point)[0]).all()


def test_the_convolution_is_added_after_the_norm():
    plain, convolved = layer(hashes=None), layer(hashes=None, window=3)
    parts = [torch.randn(2, 2, 7, 8) for _ in range(3)]
    mask = torch.ones(2, 7, dtype=torch.bool)
    added = convolved(*parts, mask) - plain(*parts, mask)
    kernel = convolved.convolution.weight[:, 0, :, 0]  # (heads, 3)
    middle = sum(kernel[None, :, tap, None, None] * parts[2][:, :, tap : tap + 5] for tap in range(3))
    assert torch.allclose(added[:, :, 1:-1], middle, atol=1e-5)


def test_evaluation_may_take_more_hashes():
    attention = layer(hashes=2, evaluation_hashes=2000, bits=2).eval()
    parts = [torch.randn(1, 2, 6, 8) for _ in range(3)]
    mask = torch.ones(1, 6, dtype=torch.bool)
    assert torch.allclose(attention(*parts, mask), layer(hashes=None, bits=2)(*parts, mask), atol=0.15)


def test_the_encoder_does_not_see_padding():
    torch.manual_seed(0)
    encoder = SequenceEncoder(
        vocabulary=9,
        length=10,
        num_classes=3,
        attention=lambda heads: SoftmaxAttention(0.1),
        width=16,
        layers=2,
        heads=2,
        head_width=8,
        hidden=16,
        dropout=0.1,
    ).eval()
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    padded = torch.cat((tokens, torch.zeros(1, 5, dtype=torch.int64)), 1)
    assert torch.allclose(encoder(tokens), encoder(padded), atol=1e-6)
