"""Attention by collisions of random-hyperplane hashes: expectation, samples by one table a hash, and gradients.

Zeng et al., "You Only Sample (Almost) Once", ICML 2021, arXiv:2111.09714. A weight is the probability that query and
key fall to the same side of ``bits`` random hyperplanes. Shapes: G groups (batch and heads), n tokens, d features.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

Backward = Literal["bound", "expected_bound", "collided"]
SHRINK = 0.98  # of the cosine in the expectation that autograd differentiates: arccos has no slope at 1
SHRINK_SLOPE = 0.99  # of the cosine at which ``collided`` takes the slope
PIECE = 2**20  # numbers in the largest intermediate tensor of the tables' gradient, which caches hold


def collision_probability(cosine: Tensor, bits: int) -> Tensor:
    """(1 - arccos(c) / pi)^bits, 0..1; the cosine is clamped to -1..1, as rounding takes it beyond."""
    return (1 - torch.acos(cosine.clamp(-1, 1)) / math.pi) ** bits


def collision_slope(cosine: Tensor, bits: int) -> Tensor:
    """Its derivative by the cosine, which has no bound at -1 and 1."""
    return bits * collision_probability(cosine, bits - 1) / (math.pi * (1 - cosine.square()).sqrt())


def slope_bound(probability: Tensor, bits: int) -> Tensor:
    """(bits / 2) * probability, at most the derivative at every cosine (section 3 of the paper)."""
    return bits / 2 * probability


def draw_directions(groups: int, width: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """(groups, width, count) Gaussian normals of hyperplanes, of each group its own."""
    return torch.randn(groups, width, count, device=device)


def draw_signs(groups: int, width: int, hashes: int, bits: int, device: torch.device | str = "cpu") -> Tensor:
    """Signs for ``fast_projections``: (groups, blocks, 3, width), of as many blocks as ``hashes`` need.

    A block has ``width`` projections, a power of two of at least ``bits``, and no hash takes its bits from two blocks.
    """
    return torch.randint(0, 2, (groups, -(-hashes // (width // bits)), 3, width), device=device).float() * 2 - 1


def hadamard(values: Tensor) -> Tensor:
    """The Walsh-Hadamard transform over the last dimension, a power of two; O(d log d)."""
    width = values.shape[-1]
    if width & (width - 1):
        raise ValueError(f"the transform is for powers of two, not for {width}")
    step = 1
    while step < width:
        pairs = values.unflatten(-1, (-1, 2, step))
        values = torch.stack((pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]), -2).flatten(-3)
        step *= 2
    return values


def fast_projections(points: Tensor, signs: Tensor, hashes: int, bits: int) -> Tensor:
    """(G, n, d) to (G, n, hashes * bits): three times random signs and a Hadamard transform, in place of Gaussian
    directions.

    Points are filled up with zeros to the width of ``signs`` (G, blocks, 3, width); what a block's projections leave
    over when they are dealt out in ``bits`` is not used, as released.
    """
    width = signs.shape[-1]
    filled = torch.nn.functional.pad(points, (0, width - points.shape[-1]))[:, :, None]
    for step in range(3):  # only signs count, so nothing is scaled
        filled = hadamard(filled * signs[:, None, :, step])
    return filled[..., : width // bits * bits].flatten(2)[:, :, : hashes * bits]


def hash_codes(projections: Tensor, bits: int) -> Tensor:
    """(G, n, hashes * bits) to codes (G, hashes, n) int64 in 0..2^bits - 1; a bit is set where a projection is > 0."""
    powers = 2.0 ** torch.arange(bits, device=projections.device)  # sums of floats are exact up to 2^24
    set_bits = (projections > 0).to(powers.dtype).unflatten(-1, (-1, bits))
    return (set_bits @ powers).transpose(1, 2).long()


def collision_frequency(codes_one: Tensor, codes_other: Tensor) -> Tensor:
    """(G, n, n'): the share of hashes in which each pair collides; codes (G, hashes, n) and (G, hashes, n')."""
    shape = codes_one.shape[0], codes_one.shape[2], codes_other.shape[2]
    found = torch.zeros(shape, dtype=torch.int16, device=codes_one.device)
    for one, other in zip(codes_one.int().unbind(1), codes_other.int().unbind(1), strict=True):
        found += one[:, :, None] == other[:, None, :]
    return found.float() / codes_one.shape[1]


def bucket_sums(codes: Tensor, values: Tensor, readers: Tensor, buckets: int) -> Tensor:
    """For each reader the mean over hashes of the sum of the values in its bucket: W V with W the collision frequency.

    One table (G * buckets, d) is filled and read for a hash after the other: O(n hashes d), no pair is formed.

    Args:
        codes: (G, hashes, n) of the values (G, n, d).
        readers: (G, hashes, n').

    Returns:
        (G, n', d)
    """
    groups, hashes = codes.shape[:2]
    width = values.shape[-1]
    into, out_of = (_rows(part, buckets) for part in (codes, readers))
    flat = values.reshape(-1, width)
    table = flat.new_empty(groups * buckets, width)
    found = flat.new_zeros(out_of[0].shape[0], width)
    for fill, read in zip(into, out_of, strict=True):
        table.zero_().index_add_(0, fill, flat)
        found += table[read]
    return found.view(groups, -1, width) / hashes


def weighted_bucket_sums(
    codes: Tensor, factors: Tensor, values: Tensor, readers: Tensor, reader_factors: Tensor, buckets: int
) -> Tensor:
    """For each reader i: sum_j (reader_factors_i . factors_j) W_ij values_j with W the collision frequency.

    A table for each coordinate of the factors, some coordinates at once: O(n hashes d^2), no pair is formed.

    Args:
        codes: (G, hashes, n) of factors (G, n, f) and values (G, n, d).
        readers: (G, hashes, n') of reader_factors (G, n', f).

    Returns:
        (G, n', d)
    """
    groups, hashes = codes.shape[:2]
    into, out_of = (_rows(part, buckets) for part in (codes, readers))
    width, depth = values.shape[-1], factors.shape[-1]
    factors, values, reader_factors = (part.reshape(-1, part.shape[-1]) for part in (factors, values, reader_factors))
    found = values.new_zeros(len(reader_factors), width)
    together = max(1, min(depth, PIECE // (max(len(values), len(reader_factors), groups * buckets) * width)))
    for first in range(0, depth, together):
        chosen = slice(first, first + together)
        items = (factors[:, chosen, None] * values[:, None]).flatten(1)
        table = items.new_empty(groups * buckets, items.shape[1])
        for fill, read in zip(into, out_of, strict=True):
            table.zero_().index_add_(0, fill, items)
            found += torch.bmm(reader_factors[:, None, chosen], table[read].unflatten(1, (-1, width)))[:, 0]
    return found.view(groups, -1, width) / hashes


def _rows(codes: Tensor, buckets: int) -> list[Tensor]:
    """Of each hash, the row (G * n) of every token in a table of all groups."""
    offsets = buckets * torch.arange(codes.shape[0], device=codes.device)[:, None]
    return [(part + offsets).flatten() for part in codes.unbind(1)]


class _Sampled(torch.autograd.Function):
    """B = W V with W the collision frequency, and the gradients of the paper in place of that of the signs, 0."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        codes_query: Tensor,
        codes_key: Tensor,
        bits: int,
        backward: Backward,
        pairs: bool,
    ) -> Tensor:
        ctx.bits, ctx.how = bits, backward
        frequency = collision_frequency(codes_query, codes_key).to(value.dtype) if pairs else None
        ctx.save_for_backward(query, key, value, codes_query, codes_key, frequency)
        return bucket_sums(codes_key, value, codes_query, 2**bits) if frequency is None else frequency @ value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, codes_query, codes_key, frequency = ctx.saved_tensors
        bits, buckets = ctx.bits, 2**ctx.bits
        if ctx.how == "bound" and frequency is None:
            by_value = bucket_sums(codes_query, gradient, codes_key, buckets)
            by_query = weighted_bucket_sums(codes_key, value, key, codes_query, gradient, buckets)
            by_key = weighted_bucket_sums(codes_query, gradient, query, codes_key, value, buckets)
            return bits / 2 * by_query, bits / 2 * by_key, by_value, *5 * [None]
        if frequency is None:
            frequency = collision_frequency(codes_query, codes_key).to(value.dtype)
        cosine = query @ key.mT
        if ctx.how == "bound":
            slope = slope_bound(frequency, bits)
        elif ctx.how == "expected_bound":
            frequency = collision_probability(cosine, bits)
            slope = slope_bound(frequency, bits)
        else:
            slope = (frequency > 0) * collision_slope(SHRINK_SLOPE * cosine.clamp(-1, 1), bits)
        weights = slope * (gradient @ value.mT)
        return weights @ key, weights.mT @ query, frequency.mT @ gradient, *5 * [None]


class _ExpectedBound(torch.autograd.Function):
    """The expectation with the lower bound in place of its slope."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bits: int) -> Tensor:
        probability = collision_probability(query @ key.mT, bits)
        ctx.save_for_backward(query, key, value, probability)
        ctx.bits = bits
        return probability @ value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, probability = ctx.saved_tensors
        weights = slope_bound(probability, ctx.bits) * (gradient @ value.mT)
        return weights @ key, weights.mT @ query, probability.mT @ gradient, None


def expected_attention(query: Tensor, key: Tensor, value: Tensor, bits: int, *, bound: bool = False) -> Tensor:
    """W V with W the collision probabilities of unit queries and keys (G, n, d): O(n^2).

    Args:
        bound: the gradient by the lower bound of the slope (version 1 of the released code). Otherwise autograd, and
            the cosine is multiplied by ``SHRINK`` (version 2).
    """
    if bound:
        return _ExpectedBound.apply(query, key, value, bits)
    return collision_probability(SHRINK * (query @ key.mT), bits) @ value


def sampled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    codes_query: Tensor,
    codes_key: Tensor,
    bits: int,
    backward: Backward = "bound",
    pairs: bool | None = None,
) -> Tensor:
    """An unbiased estimate of ``expected_attention`` from hash codes (G, hashes, n), by tables.

    Args:
        query, key: (G, n, d) of unit rows; value: (G, n, d).
        backward: bound: collision frequency times bits / 2 (version 1). expected_bound: the probability in place of
            the frequency, for the values too. collided: pairs that collide in any hash, once, with the slope at 0.99
            times the cosine (version 2). The last two form all pairs.
        pairs: count the collisions of all pairs, in both directions, which gives the same values as the tables; null:
            where it is cheaper, for sequences of at most d^2 / 4 tokens.
    """
    pairs = key.shape[1] <= query.shape[-1] * value.shape[-1] / 4 if pairs is None else pairs
    return _Sampled.apply(query, key, value, codes_query, codes_key, bits, backward, pairs)
