"""Meta-training over tasks, and its test: what the methods of this folder share beside the inner loop.

A method gives a module (its meta-parameters) and two functions of one task:

    outer(support, support_targets, query, query_targets, epoch) -> {"loss": scalar, more values to log}
    predict(support, support_targets, query) -> outputs (Q, classes), with the number of steps and draws of the test

The outer optimizer, its schedule, and the tasks of a meta-batch (``batch_size``) are the recipe's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from runner.errors import UserError
from runner.methods.fewshot.inner_loop import over_tasks
from runner.optimizers import build_optimizer, learning_rate
from runner.storage import replace_atomic, write_tensors

if TYPE_CHECKING:
    from runner.context import Context
    from runner.datasets.episodes import Tasks

Z = 1.96  # of the 95% intervals, as few-shot papers have it


@dataclass(kw_only=True)
class MetaTraining:
    """How long, and how it is measured."""

    iterations: Annotated[int, Field(gt=0)] = 500  # meta-batches of an epoch
    gradient_limit: Annotated[float, Field(gt=0)] | None = None  # cuts every element of the meta-gradient
    validation_tasks: Annotated[int, Field(ge=0)] = 600  # after every epoch, always the same; 0: none
    test_tasks: Annotated[int, Field(ge=2)] = 600
    ensemble: Annotated[int, Field(ge=0)] = 0  # best epochs whose mean logits are measured beside the last; 0: none
    batched: bool = True  # tasks of equal sizes at once, by vmap; false: one after the other, with less memory

    def __post_init__(self) -> None:
        if self.ensemble and not self.validation_tasks:
            raise ValueError("ensemble chooses epochs by validation: set training.validation_tasks")


@dataclass
class Group:
    """Meta-parameters with a learning rate of their own."""

    parameters: Sequence[nn.Parameter]
    learning_rate: float  # in place of the recipe's; the schedule moves it alike


def meta_learn(
    ctx: Context,
    learner: nn.Module,
    training: MetaTraining,
    *,
    outer: Callable[..., dict[str, Tensor]],
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    groups: Sequence[Group] = (),
) -> dict[str, float]:
    """Trains the learner and tests it.

    Returns of classification accuracy (0..1, the last epoch's), accuracy_interval (95% half-width over tasks),
    accuracy_binomial_interval (over query predictions, as some papers print it), loss (nats); of regression mse and
    mse_interval. With validation accuracy_best_validation or mse_best_validation; with an ensemble accuracy_ensemble
    and its interval. Each of them again with _NAME for every other set NAME that is tested on
    (``dataset.episodes.test_sets``). Writes artifacts/learner.safetensors and artifacts/test_scores.npz (a row a task).
    """
    best = meta_train(ctx, learner, training, outer=outer, predict=predict, groups=groups)
    save_learner(ctx, learner)
    found = tested(ctx, "test", learner, predict, training.test_tasks, training.batched)
    write_task_scores(ctx, found[""])
    metrics = summaries(found)
    if best:
        score, last = ("mse" if "mse" in metrics else "accuracy"), copy.deepcopy(learner.state_dict())
        members = []
        for kept in best[: max(1, training.ensemble)]:
            learner.load_state_dict(kept["weights"])
            name = f"test of epoch {kept['epoch'] + 1}"
            members.append(tested(ctx, name, learner, predict, training.test_tasks, training.batched))
        learner.load_state_dict(last)
        for end, rows in found.items():
            metrics[f"{score}_best_validation{end}"] = summary(members[0][end])[score]
            if training.ensemble:
                outputs = torch.stack([member[end]["outputs"] for member in members]).mean(0)
                mean = summary({**rows, "outputs": outputs})
                metrics |= {f"{score}_ensemble{part}{end}": mean[f"{score}{part}"] for part in ("", "_interval")}
    ctx.log(**metrics)
    return metrics


def meta_train(
    ctx: Context,
    learner: nn.Module,
    training: MetaTraining,
    *,
    outer: Callable[..., dict[str, Tensor]],
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    groups: Sequence[Group] = (),
) -> list[dict[str, Any]]:
    """Trains the learner in place; the epochs of best validation as {"score", "epoch", "weights"}, the best first."""
    recipe, data = ctx.recipe, ctx.data
    check_ways(ctx, getattr(learner, "train_ways", data.num_classes))
    learner.to(ctx.device)
    apart = {id(parameter) for group in groups for parameter in group.parameters}
    rest = [parameter for parameter in learner.parameters() if id(parameter) not in apart]
    optimizer = build_optimizer(rest, recipe.optimizer)
    bases = [recipe.optimizer.learning_rate]
    for group in groups:
        optimizer.add_param_group({"params": list(group.parameters), "lr": group.learning_rate})
        bases.append(group.learning_rate)
    best: list[dict[str, Any]] = []
    ctx.track(learner=learner, optimizer=optimizer, best=best)
    parameters = list(learner.parameters())
    learner.train()
    loop = ctx.loop("meta_train", training.iterations, epochs=recipe.epochs)
    for _ in loop:
        numbers = range(loop.step * recipe.batch_size, (loop.step + 1) * recipe.batch_size)
        tasks = tasks_of(data, "train", numbers, ctx.durable.seeds.episodes)
        rates = [
            learning_rate(
                base, recipe.schedule, step=loop.step, steps_per_epoch=loop.epoch_length, epochs=recipe.epochs
            )
            for base in bases
        ]
        with ctx.autocast():
            values = over_tasks(outer, tasks, loop.epoch, batched=training.batched)
        means = {name: value.mean() for name, value in values.items()}
        optimizer.zero_grad(set_to_none=True)
        means["loss"].backward()
        if training.gradient_limit is not None:
            nn.utils.clip_grad_value_(parameters, training.gradient_limit)
        if recipe.gradient_clip is not None:
            nn.utils.clip_grad_norm_(parameters, recipe.gradient_clip)
        for options, rate in zip(optimizer.param_groups, rates, strict=True):
            options["lr"] = rate
        optimizer.step()
        ctx.log(**{name: value.detach() for name, value in means.items()}, learning_rate=rates[0])
        if loop.epoch_ends and training.validation_tasks:
            rows = measure(
                ctx, "validation", learner, predict, "validation", training.validation_tasks, training.batched
            )
            found = summary(rows)
            ctx.log(**{f"{name}_validation": value for name, value in found.items() if "interval" not in name})
            score = found["accuracy"] if "accuracy" in found else -found["mse"]
            weights = {name: value.clone() for name, value in learner.state_dict().items()}
            best.append({"score": score, "epoch": loop.epoch, "weights": weights})
            best.sort(key=lambda kept: -kept["score"])  # stable: of equal ones the earlier epoch
            del best[max(1, training.ensemble) :]
            learner.train()
    ctx.track(learner=None, optimizer=None, best=None)
    return best


def check_ways(ctx: Context, most: int) -> None:
    """Raises UserError: the training tasks have more classes than the ``most`` that the learner tells apart."""
    ways = ctx.data.settings.train_ways
    if ways is not None and ways > most:
        raise UserError(
            f"dataset.episodes.train_ways={ways}: the network of this method has {most} outputs, one for each class "
            "of a test task; set it to null"
        )


def tested(
    ctx: Context,
    name: str,
    learner: nn.Module,
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    count: int,
    batched: bool = True,
) -> dict[str, dict[str, Tensor]]:
    """``measure`` on the test tasks of the data set, "", and of every other set that is tested on, "_NAME"."""
    sets = {"": ctx.data} | {f"_{name}": data for name, data in getattr(ctx.data, "elsewhere", {}).items()}
    return {
        end: measure(ctx, f"{name}{end}", learner, predict, "test", count, batched, data) for end, data in sets.items()
    }


def measure(
    ctx: Context,
    name: str,
    learner: nn.Module,
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    split: str,
    count: int,
    batched: bool = True,
    data: Any = None,
) -> dict[str, Tensor]:
    """What ``predict`` says on the first ``count`` tasks of a split: outputs (tasks, Q, classes), and targets.

    Tasks are computed ``recipe.evaluation_batch_size`` at a time. At smoke scale there are few.
    """
    size = ctx.recipe.evaluation_batch_size
    found: dict[str, list[Tensor]] = {"outputs": [], "targets": []}
    ctx.track(measured=found)
    learner.eval()
    for batch in ctx.loop(name, math.ceil(count / size)):
        tasks = tasks_of(data or ctx.data, split, range(batch * size, min((batch + 1) * size, count)))
        with torch.no_grad(), ctx.autocast():
            outputs = over_tasks(_without_query_targets(predict), tasks, batched=batched)
        targets = (
            tasks.query_targets if not isinstance(tasks, list) else torch.stack([one.query_targets for one in tasks])
        )
        found["outputs"].append(outputs.float().cpu())
        found["targets"].append(targets.cpu())
    ctx.track(measured=None)
    return {name: torch.cat(parts) for name, parts in found.items()}


def summary(rows: dict[str, Tensor]) -> dict[str, float]:
    """The metrics of ``measure``'s rows: means and 95% intervals (half-widths) over tasks; see ``meta_learn``."""
    scores, losses = of_tasks(rows)
    half = Z * float(scores.std()) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0
    mean = float(scores.mean())
    if rows["targets"].is_floating_point():
        return {"mse": -mean, "mse_interval": half}
    predictions = rows["targets"].numel()
    return {
        "accuracy": mean,
        "accuracy_interval": half,
        "accuracy_binomial_interval": Z * math.sqrt(mean * (1 - mean) / predictions),
        "loss": float(losses.mean()),
    }


def summaries(found: dict[str, dict[str, Tensor]]) -> dict[str, float]:
    """``summary`` of each of ``tested``'s sets; a metric of another set ends with its "_NAME"."""
    return {f"{name}{end}": value for end, rows in found.items() for name, value in summary(rows).items()}


def of_tasks(rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Score and loss of each task (tasks,): accuracy and cross-entropy, or minus and plus the mean squared error."""
    outputs, targets = rows["outputs"].double(), rows["targets"]
    if targets.is_floating_point():
        losses = (outputs - targets).square().flatten(1).mean(1)
        return -losses, losses
    right = (outputs.argmax(2) == targets).double().mean(1)
    losses = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
    return right, losses.view(targets.shape).mean(1)


def tasks_of(data: Any, split: str, numbers: range, seed: int | None = None) -> Tasks | list[Tasks]:
    """A stack, or a list where tasks differ in size."""
    if data.balanced:
        return data.tasks(split, numbers, seed)
    return [data.task(split, number, seed) for number in numbers]


def _without_query_targets(predict: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda support, support_targets, query, query_targets: predict(support, support_targets, query)


def save_learner(ctx: Context, learner: nn.Module) -> None:
    """Writes artifacts/learner.safetensors: all meta-parameters by name."""
    write_tensors(ctx.artifact("learner.safetensors"), learner.state_dict())


def write_task_scores(ctx: Context, rows: dict[str, Tensor]) -> None:
    """Writes artifacts/test_scores.npz, a row for each test task; ``label`` is 0."""
    scores, losses = (values.numpy().astype("float32") for values in of_tasks(rows))
    arrays = {
        "index": numpy.arange(len(scores)),
        "label": numpy.zeros(len(scores), dtype="int64"),
        "score": scores,
        "log_likelihood": -losses,
    }

    def write(path: Path) -> None:
        with path.open("wb") as file:
            numpy.savez(file, **arrays)

    replace_atomic(ctx.artifact("test_scores.npz"), write)
