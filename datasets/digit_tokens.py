"""scikit-learn's handwritten digits as sequences: 64 pixels row by row, 17 grey levels as tokens 1..17, no download.

The split is that of the images (``digits``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runner.datasets.sequences import KIND as KIND
from runner.datasets.sequences import SequenceSettings as Settings
from runner.datasets.sequences import split
from runner.errors import UserError

if TYPE_CHECKING:
    from runner.datasets.examples import ExampleData
    from runner.datasets.images import Limits

LEVELS = 17


def check(settings: Settings, data_root: Path, offline: bool) -> None:
    if settings.path is not None:
        raise UserError(f"dataset.path={settings.path}: these come with scikit-learn; your own: dataset=token_file")


def load(settings: Settings, limits: Limits, data_root: Path) -> ExampleData:
    import torch
    from sklearn.datasets import load_digits

    from runner.datasets.digits import is_test
    from runner.datasets.examples import Examples

    bunch = load_digits()
    tokens, labels = torch.from_numpy(bunch.data).long() + 1, torch.from_numpy(bunch.target).long()
    tested = is_test(labels)
    train, test = (Examples(tokens[rows], labels[rows], torch.arange(int(rows.sum()))) for rows in (~tested, tested))
    return split(settings, limits, "digits as tokens", train, test, [str(name) for name in range(10)], LEVELS + 1)
