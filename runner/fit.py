"""Training as "a loss of a batch": the helper for the many methods that need no control flow of their own."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from runner.optimizers import build_optimizer, learning_rate
from runner.schema import Recipe

if TYPE_CHECKING:
    from runner.context import Context


@dataclass
class Fitted:
    """``best``: the network with the weights of the epoch of highest validation accuracy; None without validation.

    ``averaged``: the network with the moving average of the weights; None where the recipe has no ``ema_decay``.
    """

    best: nn.Module | None
    averaged: nn.Module | None = None


def fit(
    ctx: Context,
    model: nn.Module,
    loss: Callable[..., torch.Tensor],
    recipe: Recipe | None = None,
    *,
    name: str = "train",
    batches: Any = None,
    parameters: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    validate: bool = True,
) -> Fitted:
    """Trains ``model`` in place for the recipe's epochs.

    With ``accumulation`` k, each group of k batches (fewer at the end of an epoch) makes one optimizer step along the
    gradient of its mean loss; the schedule counts optimizer steps. Batch normalisation sees the single batches.

    Among several ranks each computes on its part of every batch, and the gradient is that of the mean over the whole
    batch; batch normalisation sees the parts (moving averages are rank 0's), and mixing pairs images of a part.

    Args:
        loss: called with the first of (images, labels, index) that it takes; returns a scalar tensor to minimise.
            labels are class numbers (B,) int64, or with ``mixup`` or ``cutmix`` probabilities (B, classes); the
            attribute ``soft_labels`` of a method says that its loss takes both. A parameter named ``epoch`` gets the
            number of the epoch, from 0; one with a default keeps it.
        recipe: default ``ctx.recipe``.
        name: of the loop; metrics are logged under it.
        batches: default the augmented training split in the recipe's batch size.
        parameters: what is trained, default all of ``model``. What of it lies outside of ``model`` is the caller's to
            ``ctx.track``, so that it is saved too.
        optimizer: over these parameters, with one learning rate; default the recipe's.
        validate: measure on the validation split after every epoch; off for a stage that trains no classifier.
    """
    recipe = recipe or ctx.recipe
    if batches is None:
        batches = ctx.batches("train", recipe.batch_size, drop_last=recipe.drop_last)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    parameters = list(model.parameters() if parameters is None else parameters)
    optimizer = optimizer or build_optimizer(parameters, recipe.optimizer)
    best: dict[str, Any] = {"accuracy": -1.0, "weights": None}
    validate = validate and len(ctx.data.validation) > 0
    mix = mixing(recipe, ctx.data.num_classes)
    averaged = None
    if recipe.ema_decay is not None:
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
    gradients = Gradients(parameters) if recipe.accumulation > 1 else None
    ctx.track(model=model, optimizer=optimizer, best=best, averaged=averaged, gradients=gradients)

    given = inspect.signature(loss).parameters.values()
    names = [item.name for item in given if item.default is item.empty]
    arguments = len([item for item in names if item != "epoch"])
    if ctx.ranks is not None:
        loss = ctx.ranks.parallel(loss, model, parameters)
    model.train()
    optimizer.zero_grad(set_to_none=True)  # of what came before; after a kill the loop puts a group's own back
    loop = ctx.loop(name, batches, epochs=recipe.epochs)
    for batch in loop:
        group, place = divmod(loop.offset, recipe.accumulation)
        size = min(recipe.accumulation, loop.epoch_length - group * recipe.accumulation)
        groups = math.ceil(loop.epoch_length / recipe.accumulation)
        rate = learning_rate(
            recipe.optimizer.learning_rate,
            recipe.schedule,
            step=loop.epoch * groups + group,
            steps_per_epoch=groups,
            epochs=recipe.epochs,
        )
        images, *rest = batch
        if mix is not None:
            images, rest[0] = mix(images, rest[0])
        if recipe.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        with ctx.autocast():
            value = loss(*(images, *rest)[:arguments], **({"epoch": loop.epoch} if "epoch" in names else {}))
        part = value if loop.share == 1 else value * loop.share
        (part if size == 1 else part / size).backward()
        if place + 1 == size:
            if recipe.gradient_clip is not None:
                nn.utils.clip_grad_norm_(parameters, recipe.gradient_clip)
            for options in optimizer.param_groups:
                options["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if averaged is not None:
                averaged.update_parameters(model)
        ctx.log(loss=value.detach(), learning_rate=rate)
        if loop.epoch_ends and validate:
            accuracy = ctx.evaluate(model, "validation")["accuracy"]
            ctx.log(accuracy_validation=accuracy)
            if averaged is not None:
                ctx.log(accuracy_ema_validation=ctx.evaluate(averaged.module, "validation")["accuracy"])
            if accuracy > best["accuracy"]:
                best["accuracy"] = accuracy
                best["weights"] = {key: value.clone() for key, value in model.state_dict().items()}
    fitted = Fitted(None, None if averaged is None else averaged.module)
    if best["weights"] is not None:
        fitted.best = copy.deepcopy(model)
        fitted.best.load_state_dict(best["weights"])
    return fitted


def mixing(recipe: Recipe, classes: int) -> Callable[[torch.Tensor, torch.Tensor], Any] | None:
    """The recipe's mixing of a batch of images (B,C,H,W) and labels (B,) into images and probabilities (B, classes).

    Mixup (Zhang et al., arXiv:1710.09412) and CutMix (Yun et al., arXiv:1905.04899) of torchvision: one share drawn for
    a batch, each image mixed with the one before it. A batch that ``mixing_probability`` leaves alone keeps its class
    numbers. None: no mixing.
    """
    if not (recipe.mixup or recipe.cutmix):
        return None
    from torchvision.transforms import v2

    chosen = [
        kind(alpha=alpha, num_classes=classes)
        for kind, alpha in ((v2.MixUp, recipe.mixup), (v2.CutMix, recipe.cutmix))
        if alpha
    ]
    mix = chosen[0] if len(chosen) == 1 else v2.RandomChoice(chosen)
    return mix if recipe.mixing_probability == 1 else v2.RandomApply([mix], recipe.mixing_probability)


class Gradients:
    """The gradients of a group of batches that has not yet made its optimizer step, as state to save."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {str(n): item.grad for n, item in enumerate(self.parameters) if item.grad is not None}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for number, item in enumerate(self.parameters):
            gradient = state.get(str(number))
            # in the layout of the weight, as backward makes it: sums over it keep their order
            item.grad = None if gradient is None else torch.empty_like(item).copy_(gradient)


def test_metrics(ctx: Context, model: nn.Module, fitted: Fitted) -> dict[str, float]:
    """Test metrics of the last epoch, and beside them the accuracy of the epoch that validation chose and of the
    moving average of the weights."""
    metrics = ctx.evaluate(model, "test")
    if fitted.best is not None:
        metrics["accuracy_best_validation"] = ctx.evaluate(fitted.best, "test", record=False)["accuracy"]
    if fitted.averaged is not None:
        metrics["accuracy_ema"] = ctx.evaluate(fitted.averaged, "test", record=False)["accuracy"]
    return metrics
