"""Tasks (episodes) over a labelled image set whose classes are divided into training, validation and test classes.

A task is a pure function of (seed, split, number): N classes without replacement, labels 0..N-1 in the order in which
they were drawn, and of each class K support and q query images without replacement. Validation and test tasks take
``dataset.episodes.seed``, so they are the same for every method and every seed of a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from runner import randomness
from runner.datasets.augment import augment
from runner.datasets.images import Images, Normalisation, check_padding, normalisation_of, rank_in_class
from runner.errors import UserError
from runner.schema import AugmentationSettings, DatasetSettings, EpisodeSettings

KIND = "episodes"
SPLITS = ("train", "validation", "test")


class Tasks(NamedTuple):
    """One task, or several of equal sizes stacked along a first dimension T.

    support, query: float32 (T,S,C,H,W) and (T,Q,C,H,W), normalised, class by class; of regression (T,S,1), (T,Q,1).
    support_targets, query_targets: (T,S), (T,Q), class numbers int64; of regression (T,S,1), (T,Q,1) float32.
    """

    support: Tensor
    support_targets: Tensor
    query: Tensor
    query_targets: Tensor

    @property
    def count(self) -> int:
        """T"""
        return len(self.support)


def stack(tasks: Iterable[Tasks]) -> Tasks:
    """Single tasks of equal sizes as one stack."""
    return Tasks(*(torch.stack(parts) for parts in zip(*tasks, strict=True)))


@dataclass
class EpisodeData:
    """The images of each split's classes, and the tasks drawn from them."""

    name: str
    display_name: str
    train: Images
    validation: Images
    test: Images
    class_names: list[str]  # of all splits
    normalisation: Normalisation
    augmentation: AugmentationSettings
    settings: EpisodeSettings
    elsewhere: dict[str, EpisodeData] = field(default_factory=dict)  # test tasks of other sets, by name
    kind: str = KIND
    _members: dict[str, list[Tensor]] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_classes(self) -> int:
        """Of a task."""
        return self.settings.ways

    @property
    def channels(self) -> int:
        return self.train.shape[0]

    @property
    def image_size(self) -> int:
        """Side in pixels."""
        return self.train.shape[2]

    @property
    def balanced(self) -> bool:
        """Whether all tasks of a split have equal sizes, so that they can be stacked."""
        return self.settings.max_shots is None

    def to(self, device: torch.device) -> EpisodeData:
        """Moves the images."""
        for split in SPLITS:
            setattr(self, split, getattr(self, split).to(device))
        for other in self.elsewhere.values():
            other.test = other.test.to(device)
            other.train = self.train  # whose device the normalisation takes
            other.normalisation = self.normalisation  # that of given weights comes after reading
        return self

    def describe(self) -> str:
        """One line for the screen."""
        parts = [f"{len(self._classes(split))} {split}" for split in SPLITS]
        others = "".join(
            f"; tested on {other.display_name} too ({len(other._classes('test'))} classes)"
            for other in self.elsewhere.values()
        )
        return (
            f"data {self.display_name}: {', '.join(parts)} classes, {self.image_size}x{self.image_size}; "
            f"{describe(self.settings)}{others}"
        )

    def task(self, split: str, number: int, seed: int | None = None) -> Tasks:
        """Task ``number`` of a split, without the dimension T.

        Args:
            seed: of training tasks, which are other ones for every seed; the other splits have the settings' own.
        """
        settings = self.settings
        training = split == "train"
        seed = seed if training and seed is not None else settings.seed
        ways = (settings.train_ways or settings.ways) if training else settings.ways
        queries = settings.queries if training else (settings.test_queries or settings.queries)
        stream = randomness.stream_seed(seed, "episode", split, number)
        generator = torch.Generator().manual_seed(stream)
        support, query = draw(self._classes(split), ways, settings.shots, queries, generator, settings.max_shots)
        images: Images = getattr(self, split)
        rows = [torch.cat(parts) for parts in (support, query)]
        pixels = images.images[torch.cat(rows).to(images.labels.device)]
        moved = self.augmentation.horizontal_flip or self.augmentation.crop_padding
        if training and moved:
            with randomness.stream(stream, "views"):
                pixels = augment(pixels, self.augmentation, False)
        pixels = (pixels.float() - self._mean) / self._std
        device = pixels.device
        targets = [
            torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(part) for part in parts])).to(device)
            for parts in (support, query)
        ]
        first, second = pixels.split([len(part) for part in rows])
        return Tasks(first, targets[0], second, targets[1])

    def tasks(self, split: str, numbers: Iterable[int], seed: int | None = None) -> Tasks:
        """Several tasks stacked; they must have equal sizes (``balanced``)."""
        return stack(self.task(split, number, seed) for number in numbers)

    @property
    def _mean(self) -> Tensor:
        return self.normalisation.mean.to(self.train.images.device).view(1, -1, 1, 1)

    @property
    def _std(self) -> Tensor:
        return self.normalisation.std.to(self.train.images.device).view(1, -1, 1, 1)

    def _classes(self, split: str) -> list[Tensor]:
        """The rows of every class."""
        if split not in self._members:
            labels = getattr(self, split).labels.cpu()
            order = torch.argsort(labels, stable=True)
            self._members[split] = list(order.split(torch.bincount(labels).tolist())) if len(labels) else []
        return self._members[split]


def draw(
    classes: Sequence[Tensor],
    ways: int,
    shots: int,
    queries: int,
    generator: torch.Generator,
    max_shots: int | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The support rows and the query rows of each class of a task, in the order in which the classes were drawn.

    With ``max_shots`` (Lee et al. 2020, arXiv:1905.12917): in half of the tasks every class has a number of shots of
    its own, in the other half all have the same, each uniform in shots..max_shots; a class with too few images has
    fewer.
    """
    chosen = torch.randperm(len(classes), generator=generator)[:ways].tolist()
    counts = [shots] * ways
    if max_shots is not None:
        drawn = torch.randint(shots, max_shots + 1, (ways,), generator=generator).tolist()
        alike = bool(torch.rand((), generator=generator) < 0.5)
        counts = [drawn[0]] * ways if alike else drawn
    support, query = [], []
    for number, count in zip(chosen, counts, strict=True):
        rows = classes[number]
        count = min(count, len(rows) - queries)
        taken = rows[torch.randperm(len(rows), generator=generator)[: count + queries]]
        support.append(taken[:count])
        query.append(taken[count:])
    return support, query


def describe(settings: EpisodeSettings) -> str:
    """Such as '5-way 1-shot tasks, 15 queries a class'."""
    shots = f"{settings.shots}" if settings.max_shots is None else f"{settings.shots}..{settings.max_shots}"
    return f"{settings.ways}-way {shots}-shot tasks, {settings.queries} queries a class"


def episode_settings(settings: DatasetSettings) -> EpisodeSettings:
    """``settings.episodes``. Raises UserError where it is null, or a field of image sets is set."""
    if settings.episodes is None:
        raise UserError(f"dataset.episodes=null: dataset={settings.name} needs ways, shots and queries")
    for name in ("train_size", "test_size"):
        if getattr(settings, name, None) is not None:
            raise UserError(f"dataset.{name}: tasks are not drawn from a number of images; set dataset.episodes")
    return settings.episodes


def generated_settings(settings: DatasetSettings) -> EpisodeSettings:
    """The same of tasks that are generated. Raises UserError: what is a matter of stored classes alone is set."""
    episodes = episode_settings(settings)
    for name in ("train_ways", "train_classes", "max_shots", "rotations"):
        value = getattr(episodes, name)
        if value not in (None, False):
            raise UserError(
                f"dataset.episodes.{name}={value}: only for tasks of images; leave it out with dataset={settings.name}"
            )
    return episodes


def smoke_sizes(settings: EpisodeSettings, limit: int | None) -> tuple[int | None, int | None]:
    """How many classes of a split and images of a class a set need read: (None, None) without a limit."""
    if limit is None:
        return None, None
    most = max(settings.queries, settings.test_queries or 0) + (settings.max_shots or settings.shots)
    return max(settings.ways, settings.train_ways or 0), most


def assemble(
    settings: DatasetSettings,
    display_name: str,
    splits: dict[str, Images],
    class_names: list[str],
) -> EpisodeData:
    """The data set of images whose labels count from 0 in each split.

    Raises:
        UserError: a split has too few classes, a class too few images.
    """
    episodes = episode_settings(settings)
    if episodes.train_classes is not None:
        splits["train"] = splits["train"].take(torch.nonzero(splits["train"].labels < episodes.train_classes).flatten())
    if episodes.rotations:
        splits = {name: with_rotations(images) for name, images in splits.items()}
        class_names = [f"{name}, {turn} degrees" for turn in (0, 90, 180, 270) for name in class_names]
    for split, images in splits.items():
        check_sizes(episodes, split, images, display_name)
    check_padding(settings.augmentation, splits["train"].shape[2])
    return EpisodeData(
        name=settings.name,
        display_name=display_name,
        **splits,
        class_names=class_names,
        normalisation=normalisation_of(settings.normalisation, splits["train"]),
        augmentation=settings.augmentation,
        settings=episodes,
    )


def check_sizes(episodes: EpisodeSettings, split: str, images: Images, display_name: str) -> None:
    """Raises UserError: the split has too few classes for its tasks, or a class too few images."""
    training = split == "train"
    ways = (episodes.train_ways or episodes.ways) if training else episodes.ways
    queries = episodes.queries if training else (episodes.test_queries or episodes.queries)
    sizes = torch.bincount(images.labels)
    if len(sizes) < ways:
        raise UserError(
            f"dataset.episodes: {ways}-way tasks, but {display_name} has {len(sizes)} {split} classes; set a "
            f"smaller dataset.episodes.{'train_ways' if training and episodes.train_ways else 'ways'}"
        )
    needed = episodes.shots + queries
    if int(sizes.min()) < needed:
        raise UserError(
            f"dataset.episodes: {episodes.shots} shots and {queries} queries need {needed} images, but a {split} "
            f"class of {display_name} has {int(sizes.min())}; set fewer queries or shots"
        )


def with_rotations(images: Images) -> Images:
    """The images, and turned by 90, 180 and 270 degrees as classes of their own."""
    classes = int(images.labels.max()) + 1
    return Images(
        torch.cat([torch.rot90(images.images, turn, (2, 3)) for turn in range(4)]),
        torch.cat([images.labels + turn * classes for turn in range(4)]),
        torch.arange(4 * len(images)),
    )


def divided(images: Images, parts: dict[str, Tensor]) -> dict[str, Images]:
    """The images of the classes of each split (numbers (n,) int64), with labels that count from 0 in their order."""
    found = {}
    for split, classes in parts.items():
        renamed = torch.full((int(images.labels.max()) + 1,), -1)
        renamed[classes] = torch.arange(len(classes))
        rows = torch.nonzero(renamed[images.labels] >= 0).flatten()
        taken = images.take(rows)
        found[split] = Images(taken.images, renamed[taken.labels], taken.index)
    return found


def first_of_each(labels: Tensor, count: int | None) -> Tensor:
    """Rows of the first ``count`` images of every class, in their order; None: all rows."""
    if count is None:
        return torch.arange(len(labels))
    return torch.nonzero(rank_in_class(labels) < count).flatten()
