"""Generated characters: 200 classes of 20 drawings, 28x28, white strokes on black; 120/20/60 classes, no download.

A class is 2 to 4 quadratic Bezier strokes of three control points each, uniform in (0.15, 0.85)^2. A drawing moves its
control points by N(0, 0.05^2), turns the whole by up to 15 degrees, scales it by 0.85 to 1.15 and shifts it by up to
0.05; a pixel is exp(-d^2 / (2 * 0.03^2)) of its distance d to the nearest of 24 points on each stroke.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from runner.datasets.episodes import EpisodeData
    from runner.datasets.images import Limits
    from runner.schema import DatasetSettings

KIND = "episodes"
CLASS_SEED = 123
CLASSES = {"train": range(120), "validation": range(120, 140), "test": range(140, 200)}
DRAWINGS = 20  # of a class
SIDE = 28
STROKES = (2, 4)
POINTS = 24  # on a stroke
WIDTH = 0.03


def check(settings: DatasetSettings, data_root: Path, offline: bool) -> None:
    if settings.path is not None:
        raise UserError(f"dataset.path={settings.path}: glyphs are generated; your own images: dataset=episode_folder")


def load(settings: DatasetSettings, limits: Limits, data_root: Path) -> EpisodeData:
    import torch

    from runner.datasets import episodes
    from runner.datasets.images import Images, resize

    classes, drawings = episodes.smoke_sizes(episodes.episode_settings(settings), limits.train)
    splits, names = {}, []
    for split, numbers in CLASSES.items():
        taken = list(numbers)[:classes]
        images = torch.stack([glyphs(number)[:drawings] for number in taken])
        labels = torch.arange(len(taken)).repeat_interleave(images.shape[1])
        pixels = images.flatten(0, 1)[:, None]
        if settings.image_size not in (None, SIDE):
            pixels = resize(pixels, settings.image_size)
        splits[split] = Images(pixels, labels, torch.arange(len(labels)))
        names += [f"glyph {number}" for number in taken]
    return episodes.assemble(settings, "glyphs", splits, names)


def glyphs(number: int) -> Tensor:
    """All drawings of a class: (20, 28, 28) uint8."""
    import torch

    from runner.randomness import stream_seed

    generator = torch.Generator().manual_seed(stream_seed(CLASS_SEED, "glyph", number))

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    strokes = int(torch.randint(STROKES[0], STROKES[1] + 1, (), generator=generator))
    controls = uniform(0.15, 0.85, strokes, 3, 2)
    moved = controls + 0.05 * torch.randn(DRAWINGS, strokes, 3, 2, generator=generator)
    angle = uniform(-math.pi / 12, math.pi / 12, DRAWINGS)
    scale = uniform(0.85, 1.15, DRAWINGS)
    shift = uniform(-0.05, 0.05, DRAWINGS, 1, 2)
    t = torch.linspace(0, 1, POINTS)[:, None]
    first, second, third = (moved[:, :, [k]] for k in range(3))
    points = ((1 - t) ** 2 * first + 2 * t * (1 - t) * second + t**2 * third).flatten(1, 2) - 0.5
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    points = scale.view(-1, 1, 1) * points @ turn.transpose(1, 2) + 0.5 + shift
    pixels = (torch.arange(SIDE) + 0.5) / SIDE
    across, down = ((pixels[:, None] - points[:, None, :, axis]).square() for axis in (0, 1))  # (20, 28, points)
    nearest = (down[:, :, None] + across[:, None]).amin(3)
    return (255 * (-nearest / (2 * WIDTH**2)).exp()).round().to(torch.uint8)
