"""Teacher and student of a distillation: the student from the config, the teacher from its section ``teacher``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from runner.errors import UserError
from runner.evaluation import evaluating
from runner.fit import fit, test_metrics
from runner.methods.distillation.features import Features, Point, Reader, align

if TYPE_CHECKING:
    from runner.context import Context

CODE_BASES = ("sib", "tf2", "rep")  # see conf/recipe
CACHE_LIMIT = 2**30  # bytes of stored teacher outputs
CACHE_BATCH = 256  # images a forward pass when they are computed


class Pair:
    """A student, and a frozen teacher in evaluation mode.

    Made in three steps, so that networks that do not fit are refused before anything is trained: ``Pair(ctx, ...)``
    builds the student and knows all shapes; the method makes its adapters; ``load_teacher`` trains the teacher, or
    takes it from its cell. Called with a batch, it returns the ``Features`` of both, maps aligned from the last stage.

    Args:
        at: the point where maps are read, see ``features``; None: logits and embedding alone.
        stem: the maps begin with the stem's.

    Attributes: ``student``; ``teacher`` (after ``load_teacher``); ``student_shapes``, ``teacher_shapes``: Features of
    one image, for their shapes.
    """

    def __init__(self, ctx: Context, at: Point | None = None, *, stem: bool = False) -> None:
        self.ctx, self.at, self.stem = ctx, at, stem
        self._announce()
        self.student = ctx.model()
        self.teacher: nn.Module | None = None
        self._read_student = Reader(self.student, at, stem=stem)
        self._stored: Features | None = None
        self._ready = False
        if ctx.role_model("teacher").weights is not None:  # widths may be a pruned network's
            self._take(ctx.trained_model("teacher"))
        image = torch.zeros(1, ctx.data.channels, ctx.data.image_size, ctx.data.image_size)
        network = ctx.blank_model("teacher") if self.teacher is None else self.teacher
        device = "meta" if self.teacher is None else ctx.device
        with evaluating(network):
            teacher = Reader(network, at, stem=stem)(image.to(device))
        with evaluating(self.student):
            student = self._read_student(image.to(ctx.device))
        self.student_shapes, self.teacher_shapes = _aligned(student, teacher)

    def load_teacher(self) -> nn.Module:
        """The trained teacher: a run of ``supervised`` that all runs with the same section ``teacher`` share, or
        ``teacher.model.weights``. Its outputs are stored where the images never change."""
        if self.teacher is None:
            self._take(self.ctx.trained_model("teacher"))
        if not self._ready:
            self._ready, self._stored = True, self._teacher_outputs()
        return self.teacher

    def __call__(self, images: Tensor, index: Tensor) -> tuple[Features, Features]:
        """(student, teacher) for images (B, C, H, W) at rows ``index`` (B,) of the training split; the teacher's carry
        no gradient."""
        return _aligned(self._read_student(images), self.teacher_features(images, index))

    def task_loss(self, student: Features, labels: Tensor) -> Tensor:
        """Cross-entropy of the student's logits, mean over the batch; label smoothing is the recipe's."""
        return cross_entropy(student.logits, labels, label_smoothing=self.ctx.recipe.label_smoothing)

    def teacher_features(self, images: Tensor, index: Tensor) -> Features:
        """The teacher's features alone, from the store where there is one."""
        if self._stored is None:
            with torch.no_grad():
                return self._read_teacher(images)
        rows = index.to(self._stored.logits.device)
        logits, embedding, maps = self._stored
        fetched = [item[rows].to(images.device) for item in (logits, embedding, *maps)]
        return Features(fetched[0], fetched[1], fetched[2:])

    def student_features(self, images: Tensor) -> Features:
        """The student's features alone."""
        return self._read_student(images)

    def distil(
        self,
        loss: Callable[..., Tensor],
        adapters: Mapping[str, nn.Module] | None = None,
        *,
        batches: Any = None,
        **tracked: Any,
    ) -> dict[str, float]:
        """Trains the student and the adapters by ``loss`` (see ``runner.fit``), then measures and saves the student.

        ``tracked`` is further state that the loss changes. Returns accuracy and loss on the test split,
        accuracy_best_validation where there is a validation split, and accuracy_teacher.
        """
        ctx, teacher = self.ctx, self.load_teacher()
        modules = dict(adapters or {})
        ctx.track(**modules, **tracked)
        parameters = [*self.student.parameters(), *(p for module in modules.values() for p in module.parameters())]
        fitted = fit(ctx, self.student, loss, batches=batches, parameters=parameters)
        ctx.track(**dict.fromkeys([*modules, *tracked]))
        ctx.profile(self.student, "final")
        ctx.save_model(self.student)
        metrics = test_metrics(ctx, self.student, fitted)
        if self._same_task():
            metrics["accuracy_teacher"] = ctx.evaluate(teacher, "test", record=False)["accuracy"]
        return metrics

    def initialise(
        self,
        loss: Callable[..., Tensor],
        epochs: int,
        modules: Mapping[str, nn.Module] | None = None,
        *,
        student: bool = True,
        learning_rate: float | None = None,
        name: str = "initialise",
    ) -> None:
        """A stage before the student's training: ``loss`` trains ``modules``, and the student if it is to.

        The recipe's optimizer at its first, constant learning rate (or ``learning_rate``); no validation.
        """
        ctx, modules = self.ctx, dict(modules or {})
        self.load_teacher()
        ctx.track(**modules)
        optimizer = replace(ctx.recipe.optimizer, learning_rate=learning_rate or ctx.recipe.optimizer.learning_rate)
        schedule = replace(ctx.recipe.schedule, name="constant", warmup_epochs=0.0)
        recipe = replace(ctx.recipe, epochs=epochs, optimizer=optimizer, schedule=schedule, ema_decay=None)
        trained = [*([self.student] if student else []), *modules.values()]
        parameters = [item for module in trained for item in module.parameters()]
        main = self.student if student else next(iter(modules.values()))
        fit(ctx, main, loss, recipe, name=name, parameters=parameters, validate=False)
        ctx.track(**dict.fromkeys(modules))

    def _announce(self) -> None:
        source, recipe = self.ctx.config["method"].get("code_base"), self.ctx.recipe.name
        if source and recipe in CODE_BASES and source != recipe:
            self.ctx.say(f"the loss and its constants are those of {source}, under the protocol of recipe={recipe}")

    def _take(self, teacher: nn.Module) -> None:
        self.teacher = frozen(self.ctx, teacher)
        self._read_teacher = Reader(teacher, self.at, stem=self.stem)

    def _same_task(self) -> bool:
        return self.teacher_logits_width() == self.ctx.data.num_classes

    def teacher_logits_width(self) -> int:
        """The teacher's number of classes; it may be trained on another data set (``teacher.dataset``)."""
        return self._read_teacher.head.out_features

    def require_same_classes(self) -> None:
        """Raises UserError where the teacher's logits are of other classes than the student's."""
        self.load_teacher()
        if not self._same_task():
            raise UserError(
                f"teacher: it tells {self.teacher_logits_width()} classes apart, and the data set has "
                f"{self.ctx.data.num_classes}; this method compares logits, so train it on the same data set"
            )

    def _teacher_outputs(self) -> Features | None:
        """The teacher's features of all training images, as one stored phase, where no image ever changes."""
        ctx, augmentation = self.ctx, self.ctx.data.augmentation
        views = (augmentation.horizontal_flip, augmentation.crop_padding, augmentation.policy, augmentation.erasing)
        fixed = not (any(views) or ctx.recipe.mixup or ctx.recipe.cutmix)
        epochs = min(ctx.recipe.epochs, ctx.scale.max_epochs or ctx.recipe.epochs)
        shapes = self.teacher_shapes
        numbers = sum(item[0].numel() for item in (shapes.logits, shapes.embedding, *shapes.maps))
        size = 4 * numbers * len(ctx.data.train)
        if not fixed or epochs < 2 or size > CACHE_LIMIT:
            return None
        ctx.say(
            f"teacher: its outputs are stored ({size / 2**20:.0f} MiB), since the training images are not augmented"
        )

        def compute() -> dict[str, Any]:
            parts = []
            with torch.no_grad(), ctx.autocast():
                for images, *_ in ctx.batches("train", CACHE_BATCH, shuffle=False, augment=False).iterate(0):
                    logits, embedding, maps = self._read_teacher(images)
                    parts.append([item.float().cpu().contiguous() for item in (logits, embedding, *maps)])
            return {"features": [torch.cat(items) for items in zip(*parts, strict=True)]}

        logits, embedding, *maps = ctx.once("teacher outputs", compute)["features"]
        return Features(logits, embedding, maps)


def frozen(ctx: Context, teacher: nn.Module) -> nn.Module:
    """The teacher in evaluation mode without gradients; it sees images normalised as it was trained."""
    teacher.eval().requires_grad_(False)
    channels = (getattr(teacher, "architecture", None) or {}).get("channels", ctx.data.channels)
    if channels != ctx.data.channels:
        raise UserError(
            f"teacher: it was trained on images with {channels} channel{'s' * (channels > 1)}, and the data set has "
            f"{ctx.data.channels}; choose another teacher.dataset"
        )
    own = getattr(teacher, "normalisation", None)
    if own is not None:
        mean, std = (torch.tensor(own[name], device=ctx.device).view(1, -1, 1, 1) for name in ("mean", "std"))
        here = ctx.data.normalisation
        scale = here.std.to(ctx.device).view(1, -1, 1, 1) / std
        shift = (here.mean.to(ctx.device).view(1, -1, 1, 1) - mean) / std
        if (scale - 1).abs().max() > 1e-6 or shift.abs().max() > 1e-6:
            teacher.register_forward_pre_hook(lambda _, inputs: (inputs[0] * scale + shift,))
    return teacher


def _aligned(student: Features, teacher: Features) -> tuple[Features, Features]:
    first, second = align(student.maps, teacher.maps)
    return student._replace(maps=first), teacher._replace(maps=second)
