"""What vision transformers share: patches, shifted or plain, and attention, plain or local.

Shifted patch tokenization (SPT) and locality self-attention (LSA) are those of Lee, Lee and Song, "Vision Transformer
for Small-Size Datasets", arXiv:2112.13492, sections 3.1 and 3.2. ``Locality`` says which of them a backbone uses; all
off: the plain backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from runner.errors import UserError

# (rows, columns) that the content moves by, in units of the shift: down and right are positive
DIAGONAL = ((1, 1), (1, -1), (-1, 1), (-1, -1))
CARDINAL = ((0, 1), (0, -1), (1, 0), (-1, 0))
DIRECTIONS = {"none": (), "diagonal": DIAGONAL, "cardinal": CARDINAL, "all": CARDINAL + DIAGONAL}


@dataclass(frozen=True, kw_only=True)
class Locality:
    """What a backbone takes of SPT and LSA."""

    shifts: Literal["none", "diagonal", "cardinal", "all"] = "none"  # directions of the shifted copies; none: no SPT
    shift_ratio: float = 0.5  # of the patch's side, rounded down to pixels, at least one
    shift_pooling: bool = True  # SPT takes the place of the pooling of PiT and Swin too
    learnable_temperature: bool = False  # a factor of the logits for every head, learned
    diagonal_mask: bool = False  # no token attends to itself
    cait_mask_bug: bool = False  # CaiT's diagonal becomes 0 before the heads are mixed, as in the released code

    @property
    def shifted(self) -> bool:
        return self.shifts != "none"

    def copies(self) -> int:
        """Images that a patch sees: its own and the shifted ones."""
        return 1 + len(DIRECTIONS[self.shifts])

    def pixels(self, patch_size: int) -> int:
        """How far the copies move."""
        return max(1, int(self.shift_ratio * patch_size))


def with_shifted_copies(maps: Tensor, pixels: int, directions: Sequence[tuple[int, int]] = DIAGONAL) -> Tensor:
    """The maps (B,C,H,W) and behind them their copies moved by ``pixels``, zeros moving in: (B, C(1+D), H, W).

    Diagonal: left-up neighbour's pixels first, then right-up, left-down, right-down (SPT, section 3.1).
    """
    height, width = maps.shape[-2:]
    padded = F.pad(maps, [pixels] * 4)
    copies = [
        padded[..., pixels * (1 - rows) :, pixels * (1 - columns) :][..., :height, :width]
        for rows, columns in directions
    ]
    return torch.cat([maps, *copies], 1)


def cut_patches(maps: Tensor, size: int) -> Tensor:
    """Non-overlapping patches of maps (B,C,H,W) as rows (B, HW/size^2, size*size*C): row, column, channel fastest."""
    batch, channels, height, width = maps.shape
    cells = maps.reshape(batch, channels, height // size, size, width // size, size)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, size * size * channels)


def as_maps(tokens: Tensor) -> Tensor:
    """Tokens (B, side^2, D) as maps (B, D, side, side)."""
    side = round(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (side, side))


class PatchEmbedding(nn.Module):
    """Maps (B,C,H,W) to tokens (B, HW/size^2, width): cut and projected; with SPT shifted copies and a norm first."""

    def __init__(self, channels: int, width: int, size: int, locality: Locality) -> None:
        super().__init__()
        self.size, self.locality = size, locality
        inputs = locality.copies() * channels * size**2
        self.norm = nn.LayerNorm(inputs) if locality.shifted else nn.Identity()
        self.projection = nn.Linear(inputs, width)

    def forward(self, maps: Tensor) -> Tensor:
        if self.locality.shifted:
            maps = with_shifted_copies(maps, self.locality.pixels(self.size), DIRECTIONS[self.locality.shifts])
        return self.projection(self.norm(cut_patches(maps, self.size)))


class AttentionMap(nn.Module):
    """Products of queries and keys (..., heads, N, M) to weights of the same shape whose rows sum to 1.

    LSA, section 3.2: the factor of the logits is a parameter for every head, and the diagonal is left out.

    Args:
        scale: the factor, or where it starts: the inverse of the temperature.
        masked: the diagonal gets no weight, where the locality asks for that.
    """

    def __init__(self, heads: int, scale: float, locality: Locality, *, masked: bool = True) -> None:
        super().__init__()
        self.masked = masked and locality.diagonal_mask
        self.start = scale
        factors = torch.full((heads,), scale)
        if locality.learnable_temperature:
            self.scale = nn.Parameter(factors)
        else:
            self.register_buffer("scale", factors, persistent=False)

    def forward(self, products: Tensor, bias: Tensor | None = None) -> Tensor:
        logits = products * self.scale[:, None, None]
        return self.normalised(logits if bias is None else logits + bias)

    def normalised(self, logits: Tensor) -> Tensor:
        """Softmax of the logits, without their diagonal where it is masked."""
        return without_diagonal(logits).softmax(-1) if self.masked else logits.softmax(-1)


def without_diagonal(logits: Tensor, value: float = -torch.inf) -> Tensor:
    """The logits (..., N, N) with ``value`` on the diagonal."""
    itself = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
    return logits.masked_fill(itself, value)


class Attention(nn.Module):
    """Multi-head self-attention of tokens (B,N,width), with queries, keys and values of ``inner`` numbers.

    ``scale``: of the logits, by default the square root of a head's width, inverted.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        locality: Locality,
        *,
        inner: int | None = None,
        outputs: int | None = None,
        scale: float | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        inner = inner or width
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * inner, bias=bias)
        self.map = AttentionMap(heads, (inner // heads) ** -0.5 if scale is None else scale, locality)
        self.projection = nn.Linear(inner, outputs or width)

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.projection(self.mixed(tokens, bias)[0])

    def mixed(self, tokens: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weighted values and the values themselves, each (B, N, inner). ``bias``: added to the logits."""
        queries, keys, values = (
            split_heads(part, self.heads) for part in self.queries_keys_values(tokens).chunk(3, -1)
        )
        weights = self.map(queries @ keys.transpose(-2, -1), bias)
        return merge_heads(weights @ values), merge_heads(values)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(B, N, heads * D) -> (B, heads, N, D)"""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(tokens: Tensor) -> Tensor:
    """(B, heads, N, D) -> (B, N, heads * D)"""
    return tokens.transpose(1, 2).flatten(2)


class Perceptron(nn.Sequential):
    """Linear, GELU, linear: what follows every attention."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Block(nn.Module):
    """Attention and perceptron, each behind a norm and beside a residual.

    ``drop_path``: probability that a branch is left out for an image.
    """

    def __init__(self, width: int, attention: nn.Module, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), attention
        self.norm2, self.perceptron = nn.LayerNorm(width), Perceptron(width, hidden)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.drop_path(self.attention(self.norm1(tokens)))
        return tokens + self.drop_path(self.perceptron(self.norm2(tokens)))


def rising(last: float, count: int) -> list[float]:
    """Probabilities from 0 to ``last`` in equal steps."""
    return [last * number / max(1, count - 1) for number in range(count)]


def with_class_token(tokens: Tensor, class_token: Tensor) -> Tensor:
    """The class token (1,1,D) before the tokens (B,N,D) of every image."""
    return torch.cat([class_token.expand(tokens.shape[0], -1, -1), tokens], 1)


def xavier_normal(network: nn.Module) -> None:
    """Xavier-normal weights and zero biases of all linear layers and convolutions."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def patches_a_side(name: str, image_size: int, patch_size: int | None, cells: int) -> tuple[int, int]:
    """(side of a patch in pixels, patches a side); without ``patch_size`` that many ``cells`` a side.

    Raises UserError where patches do not fill the images.
    """
    size = patch_size or max(1, image_size // cells)
    if image_size % size:
        raise UserError(
            f"model={name}: images of {image_size} pixels are no whole number of patches of {size}; "
            "set model.arguments.patch_size or dataset.image_size"
        )
    return size, image_size // size


def halved(name: str, side: int) -> int:
    """Half of a side in tokens. Raises UserError where it is odd."""
    if side % 2:
        raise UserError(
            f"model={name}: its pooling halves maps, and one has {side} tokens a side; "
            "set dataset.image_size or model.arguments.patch_size"
        )
    return side // 2


def check_tokens(name: str, tokens: int, locality: Locality) -> None:
    """Raises UserError: a token that sees nothing but itself has no attention without its diagonal."""
    if tokens < 2 and locality.diagonal_mask:
        raise UserError(
            f"model={name}: attention among a single token has nothing beside its diagonal (method.diagonal_mask); "
            "use larger images (dataset.image_size) or smaller patches (model.arguments.patch_size)"
        )
