"""Labelled sequences of tokens: int64, 0 is padding behind the last token. What every source of them shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.schema import AnyDataset, Fraction, Positive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.datasets.examples import ExampleData, Examples
    from runner.datasets.images import Limits

KIND = "sequences"


@dataclass(kw_only=True)
class SequenceSettings(AnyDataset):
    """Settings that sequences of every origin have."""

    train_size: Positive | None = None  # sequences drawn from the training split, validation included; null: all
    test_size: Positive | None = None
    validation_fraction: Fraction = 0.0  # drawn from the training split


def examples(sequences: Sequence[Sequence[int]], labels: Sequence[int], length: int) -> Examples:
    """Sequences of at most ``length`` tokens, filled up with 0."""
    import torch

    from runner.datasets.examples import Examples

    tokens = torch.zeros(len(sequences), length, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.tensor(sequence)
    return Examples(tokens, torch.tensor(labels, dtype=torch.int64), torch.arange(len(sequences)))


def split(
    settings: SequenceSettings,
    limits: Limits,
    display_name: str,
    train: Examples,
    test: Examples,
    class_names: list[str],
    vocabulary: int,
    validation: Examples | None = None,
) -> ExampleData:
    """The finished splits; a validation part is drawn from torch's global generator where none is given."""
    from runner.datasets.examples import ExampleData, drawn, hold_out

    train, test = drawn(train, limits.train), drawn(test, limits.test)
    if validation is None:
        train, validation = hold_out(train, settings.validation_fraction)
    else:
        validation = drawn(validation, limits.test)
    length = train.inputs.shape[1]
    return ExampleData(
        settings.name,
        display_name,
        KIND,
        train,
        validation,
        test,
        class_names,
        f"{length} tokens of a vocabulary of {vocabulary}",
        vocabulary,
    )
