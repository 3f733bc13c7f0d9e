"""A small transformer encoder that classifies sequences of tokens; its attention is given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

PADDING = 0  # the token that is none


class SequenceEncoder(nn.Module):
    """Tokens (B, n) int64, 0 where a sequence has ended, to logits (B, num_classes).

    Learned positions, normalisation before attention and perceptron, mean over the tokens, a head of one hidden layer:
    the Long Range Arena model of Zeng et al., ICML 2021.

    Args:
        vocabulary: tokens are 0..vocabulary - 1.
        length: of the longest sequence.
        attention: of a number of heads, a module of (queries, keys, values (B, heads, n, head_width), mask (B, n)).
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int,
        num_classes: int,
        attention: Callable[[int], nn.Module],
        width: int,
        layers: int,
        heads: int,
        head_width: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(width, heads, head_width, hidden, dropout, attention(heads)) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))

    def forward(self, tokens: Tensor) -> Tensor:
        mask = tokens != PADDING
        places = torch.arange(tokens.shape[1], device=tokens.device)
        states = self.dropout(self.tokens(tokens) + self.positions(places))
        for block in self.blocks:
            states = block(states, mask)
        states = self.norm(states) * mask[:, :, None]
        return self.head(states.sum(1) / mask.sum(1, keepdim=True).clamp_min(1))


class Block(nn.Module):
    """Attention and a perceptron, each behind a layer normalisation and around a shortcut."""

    def __init__(
        self, width: int, heads: int, head_width: int, hidden: int, dropout: float, attention: nn.Module
    ) -> None:
        super().__init__()
        self.heads = heads
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, heads * head_width) for _ in range(3))
        self.attention = attention
        self.out = nn.Linear(heads * head_width, width)
        self.dropout = nn.Dropout(dropout)
        self.perceptron = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """(B, n, width) to the same; mask (B, n) is False at padding."""
        inputs = self.first_norm(states)
        parts = (
            part(inputs).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        attended = self.attention(*parts, mask).transpose(1, 2).flatten(2)
        states = states + self.dropout(self.out(attended))
        return states + self.perceptron(self.second_norm(states))
