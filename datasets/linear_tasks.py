"""Linear tasks with ill-conditioned inputs: a linear model suffices for each, and gradient descent learns it slowly.

x = A z, z ~ N(0, I_10), A = Q diag(1.5 logspace(-1.5, 0, 10)) with one fixed rotation Q; a task draws w ~ N(0, I_10),
and the class of x is whether w.z > 0. Made for two CPU cores, after Arnold et al. 2021 (arXiv:1910.13603), whose point
it shows. ``dataset.episodes``: shots and queries are a class's mean share of a task's points; classes are as drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from runner.datasets.episodes import Tasks
    from runner.datasets.images import Limits
    from runner.schema import DatasetSettings, EpisodeSettings

KIND = "episodes"
SIZE = 10  # of an input
LARGEST, DECADES = 1.5, 1.5  # of the inputs' standard deviations along Q's columns: 0.047 to 1.5
ROTATION_SEED = 123


def check(settings: DatasetSettings, data_root: Path, offline: bool) -> None:
    if settings.path is not None:
        raise UserError(f"dataset.path={settings.path}: linear tasks are generated")
    if settings.episodes is not None and settings.episodes.test_sets:
        raise UserError("dataset.episodes.test_sets: only for tasks of images; leave it out with dataset=linear_tasks")


def load(settings: DatasetSettings, limits: Limits, data_root: Path) -> LinearTasks:
    from runner.datasets.episodes import generated_settings

    episodes = generated_settings(settings)
    if episodes.ways != 2:
        raise UserError("dataset.episodes: linear tasks have ways=2")
    return LinearTasks(episodes)


@dataclass
class LinearTasks:
    """Tasks as ``EpisodeData`` draws them, of vectors (SIZE,) instead of images."""

    settings: EpisodeSettings
    name: str = "linear_tasks"
    display_name: str = "linear tasks"
    kind: str = KIND
    num_classes: int = 2
    channels: int = SIZE
    image_size: int = 1
    balanced: bool = True
    device: torch.device | str = "cpu"

    def to(self, device: torch.device) -> LinearTasks:
        self.device = device
        return self

    def describe(self) -> str:
        settings = self.settings
        return (
            f"data {self.display_name}: {SIZE} inputs, {2 * settings.shots} support points, "
            f"{2 * (settings.test_queries or settings.queries)} query points"
        )

    @cached_property
    def mixing(self) -> torch.Tensor:
        """A (SIZE, SIZE), the same for all tasks."""
        import torch

        draws = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(ROTATION_SEED), dtype=torch.float64)
        rotation, upper = torch.linalg.qr(draws)
        rotation = rotation * upper.diagonal().sign()  # uniform over rotations and reflections
        return (rotation * LARGEST * torch.logspace(-DECADES, 0, SIZE, dtype=torch.float64)).float()

    def task(self, split: str, number: int, seed: int | None = None) -> Tasks:
        """See ``EpisodeData.task``."""
        import torch

        from runner.datasets.episodes import Tasks
        from runner.randomness import stream_seed

        settings, training = self.settings, split == "train"
        seed = seed if training and seed is not None else settings.seed
        generator = torch.Generator().manual_seed(stream_seed(seed, "episode", split, number))
        queries = settings.queries if training else (settings.test_queries or settings.queries)
        sizes = [2 * settings.shots, 2 * queries]
        normal = torch.randn(SIZE, generator=generator)
        hidden = torch.randn(sum(sizes), SIZE, generator=generator)
        inputs, targets = hidden @ self.mixing.T, (hidden @ normal > 0).long()
        support, query = inputs.to(self.device).split(sizes)
        support_targets, query_targets = targets.to(self.device).split(sizes)
        return Tasks(support, support_targets, query, query_targets)

    def tasks(self, split: str, numbers: Iterable[int], seed: int | None = None) -> Tasks:
        """See ``EpisodeData.tasks``."""
        from runner.datasets.episodes import stack

        return stack(self.task(split, number, seed) for number in numbers)
