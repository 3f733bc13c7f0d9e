"""Regression tasks: y = A sin(x - phase), A in U[0.1, 5], phase in U[0, pi], x in U[-5, 5]. Finn et al. 2017, 5.1.

``dataset.episodes``: shots and queries are points of a task (``test_queries`` in validation and test); ways is the one
output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from runner.datasets.episodes import Tasks
    from runner.datasets.images import Limits
    from runner.schema import DatasetSettings, EpisodeSettings

KIND = "regression episodes"
AMPLITUDE, PHASE, INPUTS = (0.1, 5.0), (0.0, math.pi), (-5.0, 5.0)


def check(settings: DatasetSettings, data_root: Path, offline: bool) -> None:
    if settings.path is not None:
        raise UserError(f"dataset.path={settings.path}: sinusoids are generated")


def load(settings: DatasetSettings, limits: Limits, data_root: Path) -> SinusoidData:
    from runner.datasets.episodes import generated_settings

    episodes = generated_settings(settings)
    if episodes.ways != 1:
        raise UserError("dataset.episodes: sinusoids have ways=1; shots and queries are points")
    return SinusoidData(episodes)


@dataclass
class SinusoidData:
    """Tasks as ``EpisodeData`` draws them, of numbers instead of images."""

    settings: EpisodeSettings
    name: str = "sinusoid"
    display_name: str = "sinusoids"
    kind: str = KIND
    num_classes: int = 1  # outputs
    channels: int = 1  # inputs
    image_size: int = 1
    balanced: bool = True
    device: torch.device | str = "cpu"

    def to(self, device: torch.device) -> SinusoidData:
        self.device = device
        return self

    def describe(self) -> str:
        return (
            f"data {self.display_name}: {self.settings.shots} support points, {self.settings.queries} query points "
            f"({self.settings.test_queries or self.settings.queries} in the test)"
        )

    def task(self, split: str, number: int, seed: int | None = None) -> Tasks:
        """See ``EpisodeData.task``."""
        import torch

        from runner.datasets.episodes import Tasks
        from runner.randomness import stream_seed

        settings, training = self.settings, split == "train"
        seed = seed if training and seed is not None else settings.seed
        generator = torch.Generator().manual_seed(stream_seed(seed, "episode", split, number))
        queries = settings.queries if training else (settings.test_queries or settings.queries)

        def uniform(bounds: tuple[float, float], *shape: int) -> torch.Tensor:
            return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(shape, generator=generator)

        amplitude, phase = uniform(AMPLITUDE), uniform(PHASE)
        inputs = uniform(INPUTS, settings.shots + queries, 1)
        targets = amplitude * torch.sin(inputs - phase)
        parts = (*inputs.split([settings.shots, queries]), *targets.split([settings.shots, queries]))
        support, query, support_targets, query_targets = (part.to(self.device) for part in parts)
        return Tasks(support, support_targets, query, query_targets)

    def tasks(self, split: str, numbers: Iterable[int], seed: int | None = None) -> Tasks:
        """See ``EpisodeData.tasks``."""
        from runner.datasets.episodes import stack

        return stack(self.task(split, number, seed) for number in numbers)
