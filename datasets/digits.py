"""scikit-learn's handwritten digits: 1,797 real 8x8 images in 10 classes, shipped with the package, no download.

Values 0..16 become 0..255, resized bilinearly, one channel repeated to three, so that every network of the zoo takes
them. The split is fixed: the last fifth of every class (rounded down) is the test split. The file runs writer by
writer, so these are mostly other writers than those of the training split.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import UserError

if TYPE_CHECKING:
    import torch

    from runner.datasets.images import Limits, Loaded
    from runner.schema import DatasetSettings


def check(settings: DatasetSettings, data_root: Path, offline: bool) -> None:
    if settings.path is not None:
        raise UserError(
            f"dataset.path={settings.path}: the digits come with scikit-learn; your own images: dataset=image_folder"
        )


def load(settings: DatasetSettings, limits: Limits, data_root: Path) -> Loaded:
    import torch
    from sklearn.datasets import load_digits

    from runner.datasets.images import Images, Loaded, resize

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16)
    pixels = resize(pixels, settings.image_size or 8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(bunch.target).long()
    tested = is_test(labels)

    def part(mask: torch.Tensor) -> Images:
        return Images(pixels[mask], labels[mask], torch.arange(int(mask.sum())))

    return Loaded("digits", part(~tested), part(tested), [str(name) for name in bunch.target_names])


def is_test(labels: torch.Tensor) -> torch.Tensor:
    """Which of the digits with these labels (N,), in the package's order, are the test split; (N,) bool."""
    import torch

    from runner.datasets.images import rank_in_class

    return rank_in_class(labels.flip(0)).flip(0) < (torch.bincount(labels) // 5)[labels]
