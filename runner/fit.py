"""Training as "a loss of a batch": the helper for the many methods that need no control flow of their own."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from runner.optimizers import build_optimizer, learning_rate
from runner.schema import Recipe

if TYPE_CHECKING:
    from runner.context import Context


@dataclass
class Fitted:
    """``best``: the network with the weights of the epoch of highest validation accuracy; None without validation."""

    best: nn.Module | None


def fit(
    ctx: Context,
    model: nn.Module,
    loss: Callable[..., torch.Tensor],
    recipe: Recipe | None = None,
    *,
    name: str = "train",
    batches: Any = None,
    parameters: Any = None,
) -> Fitted:
    """Trains ``model`` in place for the recipe's epochs.

    Args:
        loss: called with the first of (images, labels, index) that it takes; returns a scalar tensor to minimise.
        recipe: default ``ctx.recipe``.
        name: of the loop; metrics are logged under it.
        batches: default the augmented training split in the recipe's batch size.
        parameters: what is trained, default all of ``model``.
    """
    recipe = recipe or ctx.recipe
    if batches is None:
        batches = ctx.batches("train", recipe.batch_size, drop_last=recipe.drop_last)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    parameters = list(model.parameters() if parameters is None else parameters)
    optimizer = build_optimizer(parameters, recipe.optimizer)
    best: dict[str, Any] = {"accuracy": -1.0, "weights": None}
    validate = len(ctx.data.validation) > 0
    ctx.track(model=model, optimizer=optimizer, best=best)

    arguments = len(inspect.signature(loss).parameters)
    model.train()
    loop = ctx.loop(name, batches, epochs=recipe.epochs)
    for batch in loop:
        rate = learning_rate(
            recipe.optimizer.learning_rate,
            recipe.schedule,
            step=loop.step,
            steps_per_epoch=loop.epoch_length,
            epochs=recipe.epochs,
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, *rest = batch
        if recipe.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        with ctx.autocast():
            value = loss(*(images, *rest)[:arguments])
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        if recipe.gradient_clip is not None:
            nn.utils.clip_grad_norm_(parameters, recipe.gradient_clip)
        optimizer.step()
        ctx.log(loss=value.detach(), learning_rate=rate)
        if loop.epoch_ends and validate:
            accuracy = ctx.evaluate(model, "validation")["accuracy"]
            ctx.log(accuracy_validation=accuracy)
            if accuracy > best["accuracy"]:
                best["accuracy"] = accuracy
                best["weights"] = {key: value.clone() for key, value in model.state_dict().items()}
    if best["weights"] is None:
        return Fitted(None)
    chosen = copy.deepcopy(model)
    chosen.load_state_dict(best["weights"])
    return Fitted(chosen)


def test_metrics(ctx: Context, model: nn.Module, fitted: Fitted) -> dict[str, float]:
    """Test metrics of the last epoch, and beside them the accuracy of the epoch that validation chose."""
    metrics = ctx.evaluate(model, "test")
    if fitted.best is not None:
        metrics["accuracy_best_validation"] = ctx.evaluate(fitted.best, "test", record=False)["accuracy"]
    return metrics
