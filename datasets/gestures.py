"""Generated gestures of several people: the class is a motif's shape, a nuisance tone betrays it in training alone.

Three channels hold a motif (sine burst, chirp, square, saw) under white noise. A person has gains, a drift and a time
warp. The style, a posture that exchanges the channels' shares and turns the drift, changes half-way through a person's
windows: latent domains that no label tells. A tone has the frequency of the window's class with probability
``agreement`` in training people (else that of another class), and any frequency in test people.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from runner.datasets.series import KIND as KIND
from runner.datasets.series import SeriesSettings, split_by_domain
from runner.errors import UserError
from runner.schema import Positive, Seed

if TYPE_CHECKING:
    import torch

    from runner.datasets.examples import ExampleData
    from runner.datasets.images import Limits

CLASSES = ("burst", "chirp", "square", "saw")
SHARES = ((1.0, 0.6, 0.2), (0.2, -0.6, 1.0))  # of the motif in the three channels, by style
CYCLES = 5.0  # of a motif in a window
TONES = (9.0, 13.0, 17.0, 21.0)  # cycles of the tone in a window, by class


@dataclass(kw_only=True)
class Settings(SeriesSettings):
    """Of the generator."""

    test_domains: list[int | str] = field(default_factory=lambda: [6, 7])
    people: Annotated[int, Field(ge=2)] = 8
    windows: Positive = 250  # of a person
    length: Annotated[int, Field(ge=32)] = 100
    agreement: Annotated[float, Field(ge=0, le=1)] = 0.8  # of tone and class in training people
    noise: Annotated[float, Field(ge=0)] = 0.5  # its standard deviation; the motif's amplitude is about 1
    tone: Annotated[float, Field(ge=0)] = 1.0  # its amplitude
    seed: Seed | None = None  # of people and windows; null: they change with the run's seed


def check(settings: Settings, data_root: Path, offline: bool) -> None:
    if settings.path is not None:
        raise UserError(f"dataset.path={settings.path}: gestures are generated; windows of your own: series_file")


def load(settings: Settings, limits: Limits, data_root: Path) -> ExampleData:
    import torch

    from runner.randomness import stream_seed

    seed = int(torch.randint(2**62, ())) if settings.seed is None else stream_seed(settings.seed, "gestures")
    tested = {int(name) for name in settings.test_domains if str(name).isdigit()}
    parts = draw(settings, tested, torch.Generator().manual_seed(seed))
    names = [str(person) for person in range(settings.people)]
    windows, labels, domains, styles = parts
    return split_by_domain(
        settings, limits, "gestures", windows, labels, domains, names, list(CLASSES), {"style": styles}
    )


def draw(settings: Settings, tested: set[int], generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Windows (people * windows, 3, length) float32; class, person and style (0 or 1) of each, int64."""
    import torch

    count, total = settings.windows, settings.people * settings.windows

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    people = torch.arange(settings.people).repeat_interleave(count)
    labels = torch.cat([torch.randperm(count, generator=generator) % len(CLASSES) for _ in range(settings.people)])
    styles = (torch.arange(count) >= count / 2).long().repeat(settings.people)

    time = torch.linspace(0, 1, settings.length)
    warp = uniform(-0.5, 0.5, settings.people)[people][:, None]
    warped = time + warp * torch.sin(2 * math.pi * time) / (2 * math.pi)
    motif = motifs(
        warped,
        labels,
        cycles=CYCLES * uniform(0.85, 1.15, total, 1),
        phase=uniform(0, 1, total, 1),
        centre=uniform(0.3, 0.7, total, 1),
    )
    gain = torch.exp(uniform(-0.5, 0.5, settings.people, 3))[people]
    share = torch.tensor(SHARES)[styles]
    drift = torch.randn(settings.people, 3, generator=generator)[people] * (1 - 2 * styles[:, None])
    agrees = torch.rand(total, generator=generator) < settings.agreement
    other = (labels + torch.randint(1, len(CLASSES), (total,), generator=generator)) % len(CLASSES)
    free = torch.randint(0, len(CLASSES), (total,), generator=generator)
    is_tested = torch.isin(people, torch.tensor(sorted(tested), dtype=torch.int64))
    kind = torch.where(is_tested, free, torch.where(agrees, labels, other))
    cycles = torch.tensor(TONES)[kind][:, None]
    tone = settings.tone * torch.sin(2 * math.pi * (cycles * time + uniform(0, 1, total, 1)))
    windows = (gain * share)[:, :, None] * motif[:, None] + drift[:, :, None] * (time - 0.5) + tone[:, None]
    windows += settings.noise * torch.randn(windows.shape, generator=generator)
    return windows, labels, people, styles


def motifs(
    time: torch.Tensor, labels: torch.Tensor, cycles: torch.Tensor, phase: torch.Tensor, centre: torch.Tensor
) -> torch.Tensor:
    """The shapes (N, length), within -1..1, at times (N, length) in 0..1 of windows of classes (N,).

    Args:
        cycles: (N, 1), of the motif in a window; a chirp runs from half to one and a half of them.
        phase: (N, 1), in cycles.
        centre: (N, 1), of a burst, in time.
    """
    import torch

    turns = cycles * time + phase
    chirp = cycles * (time + time.square()) / 2 + phase
    shapes = torch.stack(
        (
            torch.sin(2 * math.pi * turns) * torch.exp(-0.5 * ((time - centre) / 0.15).square()),
            torch.sin(2 * math.pi * chirp),
            1 - 2 * (turns % 1 >= 0.5).float(),
            2 * (turns % 1) - 1,
        ),
        dim=1,
    )
    return shapes[torch.arange(len(labels)), labels]
