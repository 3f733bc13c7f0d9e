"""Typed sections of a composed config: plain dataclasses, checked by pydantic in runner.compose, light to import.

A method's own section (``method``) is checked against the method's class instead. Every field of every section stands
in the YAML files under conf/, so that ``--cfg job`` shows all there is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1)]  # empty is a forgotten or unset variable, as in model.weights=$RUN


@dataclass(kw_only=True)
class ModelSettings:
    """A network of the zoo (``name``) or of the user (``target=package:function``)."""

    name: str
    target: Name | None = None  # package:function(num_classes=..., in_channels=..., **arguments) -> torch.nn.Module
    arguments: dict[str, Any] = field(default_factory=dict)  # passed to the function
    weights: Name | None = None  # imagenet (torchvision's), a .safetensors file, or a run folder
    head: Literal["keep", "reinit"] = "keep"  # reinit: the classifier of the weights is replaced by a fresh one
    stem: Literal["auto", "imagenet", "cifar"] = "auto"  # auto: by image size, printed (runner.models.choose_stem)
    padding: Literal["auto", "symmetric", "tensorflow"] = "auto"  # tensorflow: stride-2 3x3 pads right and bottom only


@dataclass(kw_only=True)
class AugmentationSettings:
    """The plain training view of a data set; a method may add to it."""

    horizontal_flip: bool = False
    crop_padding: NotNegative = 0  # pixels added on each side before a random crop back to the image size
    padding_mode: Literal["reflect", "constant"] = "reflect"
    policy: Literal["cifar10", "svhn", "imagenet"] | None = None  # of AutoAugment, behind the crop; null: off
    erasing: Annotated[float, Field(ge=0, le=1)] = 0.0  # probability that a rectangle of a normalised image is erased


@dataclass(kw_only=True)
class EpisodeSettings:
    """Tasks drawn from the classes of a split: support examples to adapt to, and queries that measure (or train)."""

    ways: Positive = 5  # classes of a task; of regression, numbers to predict
    shots: Positive = 1  # support examples of a class
    queries: Positive = 15  # of a class
    test_queries: Positive | None = None  # in validation and test; null: queries
    train_ways: Positive | None = None  # in training; null: ways
    train_classes: Positive | None = None  # the first so many training classes; null: all
    max_shots: Positive | None = None  # shots..max_shots are drawn, in half of the tasks for every class
    rotations: bool = False  # turned by 90, 180 and 270 degrees they are classes of their own (Omniglot)
    test_sets: list[str] = field(default_factory=list)  # other sets on whose classes the network is tested as well
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # of validation and test tasks: the same whatever the run's seed is

    def __post_init__(self) -> None:
        if self.max_shots is not None and self.max_shots < self.shots:
            raise ValueError("max_shots must not be below shots")


@dataclass(kw_only=True)
class AnyDataset:
    """What every data set has; a kind of its own adds fields in a class ``Settings`` of its module."""

    name: str
    path: Name | None = None  # folder or archive of the user; enters the key as the fingerprint of its content


@dataclass(kw_only=True)
class DatasetSettings(AnyDataset):
    """A labelled image set, or tasks (episodes)."""

    target: Name | None = None  # package:function(split, **arguments) -> torch Dataset; with dataset=torch_dataset
    arguments: dict[str, Any] = field(default_factory=dict)  # passed to the function
    image_size: Positive | None = None  # side in pixels after resizing; null: as stored (the first image's)
    train_size: Positive | None = None  # class-balanced subset of the training images; null: all
    test_size: Positive | None = None
    validation_fraction: Fraction = 0.0  # taken class-balanced from the end of the training split
    normalisation: dict[str, list[float]] | None = None  # {mean: [...], std: [...]} on the 0-255 scale
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    episodes: EpisodeSettings | None = None  # of a set of tasks


@dataclass(kw_only=True)
class OptimizerSettings:
    name: Literal["sgd", "sgd_tensorflow", "adam", "adamw"]  # sgd_tensorflow: learning rate inside the velocity
    learning_rate: Annotated[float, Field(gt=0)]
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 0.0  # coupled L2, on every trainable tensor


@dataclass(kw_only=True)
class ScheduleSettings:
    """How the learning rate moves; formulas and sources stand at ``runner.optimizers.learning_rate``."""

    name: Literal["constant", "step", "cosine", "linear", "polynomial", "one_cycle", "cosine_after_warmup"]
    milestones: list[Share] = field(default_factory=list)  # fractions of all epochs, rounded down to whole epochs
    factor: Annotated[float, Field(gt=0)] = 0.1  # learning rate multiplier at each milestone
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    power: Annotated[float, Field(gt=0)] = 1.0  # of the polynomial schedule

    def __post_init__(self) -> None:
        if self.name == "one_cycle" and self.warmup_epochs:
            raise ValueError("the one_cycle schedule has its own rise: set warmup_epochs=0")


@dataclass(kw_only=True)
class Recipe:
    """How a network is trained; one override fixes the protocol of all compared methods.

    ``mixup`` and ``cutmix`` make soft labels of two images' labels; methods whose loss takes class numbers refuse
    them. With both set, each batch takes one of them, with probability 1/2, after ``mixing_probability`` let it.
    """

    name: str
    epochs: Positive
    batch_size: Positive
    drop_last: bool
    evaluation_batch_size: Positive
    channels_last: bool
    gradient_clip: Annotated[float, Field(gt=0)] | None  # maximum norm over all parameters; null: off
    label_smoothing: Fraction
    zero_init_residual: bool = (
        True  # ResNet: blocks begin as their shortcuts, the classifier with N(0, 0.01); always at smoke
    )
    accumulation: Positive = (
        1  # batches per optimizer step, their losses averaged; an epoch's last group may be smaller
    )
    ema_decay: Fraction | None = None  # moving average of the weights, kept each optimizer step; null: off
    mixup: Annotated[float, Field(ge=0)] = (
        0.0  # alpha of Beta(alpha, alpha), from which each batch's share comes; 0: off
    )
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    mixing_probability: Annotated[float, Field(gt=0, le=1)] = 1.0  # of a batch to be mixed, where mixing is on
    optimizer: OptimizerSettings
    schedule: ScheduleSettings


Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy and scikit-learn take


@dataclass(kw_only=True)
class Seeds:
    """Seeds of the random streams that can be varied one by one; null: the run's ``seed``, which all the rest uses."""

    initialisation: Seed | None = None  # of networks
    order: Seed | None = None  # of the examples in loops over batches
    augmentation: Seed | None = None  # all else drawn in loops over batches: views, mixing, dropout
    episodes: Seed | None = None  # all that is drawn in loops over numbers: episodes, rounds, steps of a search

    def filled(self, seed: int) -> Seeds:
        """With ``seed`` in place of null."""
        return Seeds(**{name: seed if value is None else value for name, value in vars(self).items()})


@dataclass(kw_only=True)
class Scale:
    """How much of everything; null means no limit."""

    name: Literal["smoke", "desk", "paper"]
    max_train_examples: Positive | None
    max_test_examples: Positive | None
    max_epochs: Positive | None
    max_steps: Positive | None  # steps of a loop without epochs, and of each epoch of a loop with epochs
    small_image_stem: Literal["imagenet", "cifar"]  # what stem=auto means below 64 pixels, for nets that have both
    export_program: bool  # write the torch.export program of a product


@dataclass(kw_only=True)
class Hardware:
    """Never part of a run's key."""

    name: str
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: Positive | None  # null: torch's choice at the first start; a resume reuses the stored count
    workers: NotNegative | None = None  # processes that read image files; null: by the number of cores; 0: none
    processes: Positive | None = 1  # that share each batch, a device each; null: all GPUs; a resume needs the same
    backend: Literal["auto", "nccl", "gloo"] = "auto"  # of what the processes exchange; auto: nccl on GPUs, else gloo
    slots: Positive | list[NotNegative] | None = None  # of a sweep: cells at once on the CPU, or GPU indices


@dataclass(kw_only=True)
class Tracking:
    """Where metrics go beside metrics.jsonl; never part of a run's key."""

    mode: Literal["online", "offline", "none"]
    project: str
    entity: str | None
    group: str | None
    name: str | None
    tags: list[str]
    notes: str | None
    every_steps: Positive  # of a loop's logged values, one in so many is written


@dataclass(kw_only=True)
class Paths:
    runs: Name  # run folders
    data: Name  # downloaded data sets


@dataclass(kw_only=True)
class Checkpoint:
    every_seconds: Annotated[float, Field(ge=0)]  # 0: after every step


SECTIONS: dict[str, type] = {
    "model": ModelSettings,
    "dataset": AnyDataset,  # of its kind: runner.datasets.settings_class
    "recipe": Recipe,
    "seeds": Seeds,
    "scale": Scale,
    "hardware": Hardware,
    "tracking": Tracking,
    "paths": Paths,
    "checkpoint": Checkpoint,
}
