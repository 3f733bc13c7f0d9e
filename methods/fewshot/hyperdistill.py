"""HyperDistill: hyperparameters updated after every inner step, by one product that stands for the whole past.

Lee, Lee, Shin, Yang, Hospedales and Hwang, "Online Hyperparameter Meta-Learning with Hypergradient Distillation",
ICLR 2022, arXiv:2110.02508 (algorithms 2 to 4). The authors published no code. Deviations: see the class.

Of a network, the task's weights w are the last layers and the hyperparameters lambda all layers before (as in ANIL).
A task trains w by Phi(w, lambda; D) = w - rate * dL_train(w, lambda; D)/dw, and the hypergradient at step t is

    dL_val(w_t, lambda)/dlambda + sum over i <= t of alpha_t A_t ... A_(i+1) B_i        alpha_t = dL_val/dw at w_t
                                                          A_i = dPhi/dw, B_i = dPhi/dlambda at w_(i-1) and its batch D_i

whose sum is replaced by one product, size * length(t) * alpha_t dPhi(w*, lambda; D*)/dlambda, at a weighted average w*
of the past weights and a mixture D* of the past batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import grad, vmap

from runner.errors import UserError
from runner.methods.fewshot.distillation import Distilled, length
from runner.methods.fewshot.inner_loop import Weights, call, task_loss, use_batch_statistics
from runner.methods.fewshot.meta_training import check_ways, save_learner, summaries, tested, write_task_scores
from runner.optimizers import build_optimizer, learning_rate

if TYPE_CHECKING:
    from runner.context import Context
    from runner.datasets.episodes import Tasks

Size = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]


@dataclass(kw_only=True)
class HyperDistill:
    """Online meta-learning of shared layers; the recipe's optimizer moves them, and its batch is the meta-batch."""

    hypergradient: Literal["distilled", "first_order", "one_step", "drmad", "exact"] = "distilled"
    # first_order: without the sum; one_step: its last term; drmad: all terms, at weights between the first and last;
    # exact: all terms, at the weights that were passed. The last two update once a problem, at its end
    decay: Annotated[float, Field(ge=0, le=1)] = 0.9  # gamma of the averages over past steps
    estimate_every: Size = 50  # problems, between estimates of the sum's size
    update_every: Size = 1  # inner steps; 2 is what the paper's counts of products imply
    task_layers: Size = 1  # the last so many layers are the task's weights, the head included
    rate: Rate = 0.01  # of the inner SGD
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of the inner SGD
    steps: Size = 30  # of the inner SGD
    batch: Size | None = None  # examples of an inner step, and of a validation loss; null: all
    start_rate: Annotated[float, Field(gt=0, le=1)] = 1.0  # Reptile's, of the weights that tasks start with
    problems: Size = 30  # meta-batches of an epoch
    test_tasks: Annotated[int, Field(ge=2)] = 1000

    paper: ClassVar[str] = "arXiv:2110.02508"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = (
        "One product at distilled weights, every step, gives better hypergradients than those of first order, of one "
        "step, and of DrMAD."
    )
    data: ClassVar[tuple[str, ...]] = ("episodes", "regression episodes")
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Lee, Lee, Shin, Yang, Hospedales, Hwang. Online Hyperparameter Meta-Learning with Hypergradient Distillation. "
        "ICLR 2022."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "of the paper's three meta-models the one of shared layers; not WarpGrad, not the network that weights losses; "
        "of its baselines not the Neumann series",
        "momentum belongs to the inner SGD's steps, and not to the products (the paper does not say)",
        "one estimate of size serves all tasks of a meta-batch",
        "augmentation changes the images of a training task once, not in every step",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns of regression mse and mse_interval, of classification accuracy and its intervals and loss (see
        ``meta_training.summary``), and size, the last estimate (1 where nothing is estimated)."""
        check_ways(ctx, ctx.data.num_classes)
        if not ctx.data.balanced:
            raise UserError(
                f"dataset.episodes.max_shots={ctx.data.settings.max_shots}: method hyperdistill runs the tasks of a "
                "meta-batch together, which needs equal sizes; set it to null"
            )
        learner = SharedLayers(ctx.model(), self).to(ctx.device)
        optimizer = build_optimizer(learner.shared(), ctx.recipe.optimizer)
        state = {"size": 1.0}
        ctx.track(learner=learner, optimizer=optimizer, state=state)
        recipe = ctx.recipe
        loop = ctx.loop("meta_train", self.problems, epochs=recipe.epochs)
        for _ in loop:
            numbers = range(loop.step * recipe.batch_size, (loop.step + 1) * recipe.batch_size)
            tasks = ctx.data.tasks("train", numbers, ctx.durable.seeds.episodes)
            schedule = {"step": loop.step, "steps_per_epoch": loop.epoch_length, "epochs": recipe.epochs}
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe.optimizer.learning_rate, recipe.schedule, **schedule)
            with torch.no_grad():
                if self.hypergradient == "distilled" and loop.step % self.estimate_every == 0:
                    state["size"] = estimated_size(learner, tasks)
                loss = solve(learner, optimizer, tasks, state["size"])
            ctx.log(loss_validation=loss, size=state["size"], learning_rate=optimizer.param_groups[0]["lr"])
        ctx.track(learner=None, optimizer=None, state=None)
        save_learner(ctx, learner)
        found = tested(ctx, "test", learner, learner.predict, self.test_tasks)
        write_task_scores(ctx, found[""])
        metrics = {**summaries(found), "size": state["size"]}
        ctx.log(**metrics)
        return metrics


class SharedLayers(nn.Module):
    """A network whose last ``task_layers`` layers w tasks train, and whose others lambda are shared.

    The parameters hold lambda and the weights that tasks start with. Functions named ``of_tasks`` take weights and
    examples with a first dimension of tasks.
    """

    def __init__(self, network: nn.Module, settings: HyperDistill) -> None:
        super().__init__()
        self.network, self.settings = use_batch_statistics(network), settings
        layers = [name for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
        if settings.task_layers >= len(layers):
            raise UserError(
                f"method.task_layers={settings.task_layers}: this network has {len(layers)} layers, and one at least "
                "must be shared"
            )
        first = f"{layers[-settings.task_layers]}.weight"
        names = [name for name, _ in network.named_parameters()]
        place = names.index(first)
        self.shared_names, self.task_names = names[:place], names[place:]

    def shared(self) -> list[nn.Parameter]:
        return [self.network.get_parameter(name) for name in self.shared_names]

    def hyperparameters(self) -> Weights:
        """lambda"""
        return {name: self.network.get_parameter(name).detach() for name in self.shared_names}

    def start(self) -> Weights:
        """w_0"""
        return {name: self.network.get_parameter(name).detach() for name in self.task_names}

    def loss(self, weights: Weights, shared: Weights, inputs: Tensor, targets: Tensor) -> Tensor:
        """L(w, lambda; D) of one task."""
        return task_loss(call(self.network, {**shared, **weights}, inputs), targets)

    def product(
        self, weights: Weights, shared: Weights, alpha: Weights, inputs: Tensor, targets: Tensor
    ) -> tuple[Weights, Weights]:
        """(alpha dPhi/dw, alpha dPhi/dlambda) of one task at (w, lambda; D), Phi being a step without momentum."""

        def along(weights: Weights, shared: Weights) -> Tensor:
            return inner(alpha, grad(self.loss)(weights, shared, inputs, targets))

        by_weights, by_shared = grad(along, argnums=(0, 1))(weights, shared)
        rate = self.settings.rate
        return (
            {name: alpha[name] - rate * by_weights[name] for name in alpha},
            {name: -rate * value for name, value in by_shared.items()},
        )

    def step(
        self, weights: Weights, velocity: Weights, shared: Weights, inputs: Tensor, targets: Tensor
    ) -> tuple[Weights, Weights]:
        """One step of the inner SGD of one task: the weights, and the velocity v <- momentum v + gradient."""
        gradients = grad(self.loss)(weights, shared, inputs, targets)
        velocity = {name: self.settings.momentum * velocity[name] + gradients[name] for name in weights}
        return {name: weights[name] - self.settings.rate * velocity[name] for name in weights}, velocity

    def predict(self, support: Tensor, support_targets: Tensor, query: Tensor) -> Tensor:
        """The query outputs of one task after the inner SGD on its support set."""
        shared, weights = self.hyperparameters(), self.start()
        velocity = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        count, size = len(support), self.settings.batch
        for _ in range(self.settings.steps):
            inputs, targets = support, support_targets
            if size is not None and size < count:
                rows = torch.rand(count, device=support.device).argsort()[:size]
                inputs, targets = support[rows], support_targets[rows]
            weights, velocity = self.step(weights, velocity, shared, inputs, targets)
        return call(self.network, {**shared, **weights}, query)

    # ---- of a meta-batch -------------------------------------------------------------------------------------------

    def start_of_tasks(self, count: int) -> tuple[Weights, Weights]:
        """w_0 and the velocity 0 of every task."""
        weights = {name: value.expand(count, *value.shape).clone() for name, value in self.start().items()}
        return weights, {name: torch.zeros_like(value) for name, value in weights.items()}

    def step_of_tasks(self, weights: Weights, velocity: Weights, shared: Weights, batch: Batch) -> tuple:
        return vmap(self.step, in_dims=(0, 0, None, 0, 0))(weights, velocity, shared, *batch)

    def slopes_of_tasks(self, weights: Weights, shared: Weights, batch: Batch) -> tuple[Weights, Weights, Tensor]:
        """(dL/dw = alpha, dL/dlambda, L) of every task."""
        loss = vmap(self.loss, in_dims=(0, None, 0, 0))(weights, shared, *batch)
        slopes = vmap(grad(self.loss, argnums=(0, 1)), in_dims=(0, None, 0, 0))(weights, shared, *batch)
        return *slopes, loss

    def product_of_tasks(self, weights: Weights, shared: Weights, alpha: Weights, batch: Batch) -> tuple:
        return vmap(self.product, in_dims=(0, None, 0, 0, 0))(weights, shared, alpha, *batch)


Batch = tuple[Tensor, Tensor]  # inputs and targets, with a first dimension of tasks


def solve(learner: SharedLayers, optimizer: torch.optim.Optimizer, tasks: Tasks, size: float) -> float:
    """Algorithm 3 for one meta-batch: trains the tasks' weights, updates lambda on the way, moves the start towards
    the weights reached. The mean validation loss at the end."""
    settings = learner.settings
    online = settings.hypergradient in ("distilled", "first_order", "one_step")
    decay = settings.decay if settings.hypergradient == "distilled" else 0.0
    weights, velocity = learner.start_of_tasks(tasks.count)
    path, batches = [weights], []
    distilled = Distilled(decay)
    for step in range(1, settings.steps + 1):
        rows = drawn_rows(tasks.support, settings.batch)
        at, mixed = distilled.add(path[-1], rows)
        batch = chosen_rows(tasks.support, tasks.support_targets, rows)
        shared = learner.hyperparameters()
        weights, velocity = learner.step_of_tasks(path[-1], velocity, shared, batch)
        if online and step % settings.update_every == 0:
            alpha, direct, loss = learner.slopes_of_tasks(weights, shared, validation_batch(learner, tasks))
            gradients = direct
            if settings.hypergradient != "first_order":
                past = chosen_rows(tasks.support, tasks.support_targets, mixed)
                product = learner.product_of_tasks(at, shared, alpha, past)[1]
                scale = size * length(decay, step)
                gradients = {name: direct[name] + scale * product[name] for name in direct}
            update(learner, optimizer, gradients)
        path = [weights] if online else [*path, weights]
        batches.append(batch)
    if not online:
        shared = learner.hyperparameters()
        alpha, direct, loss = learner.slopes_of_tasks(weights, shared, validation_batch(learner, tasks))
        points = path[:-1] if settings.hypergradient == "exact" else between(path[0], path[-1], settings.steps)
        sums = backwards(learner, points, shared, alpha, batches)
        update(learner, optimizer, {name: direct[name] + sums[-1][name] for name in direct})
    for name in learner.task_names:
        parameter = learner.network.get_parameter(name)
        parameter += settings.start_rate * (weights[name].mean(0) - parameter)
    return loss.mean().item()


def estimated_size(learner: SharedLayers, tasks: Tasks) -> float:
    """Algorithm 4: the least-squares factor between the distilled products' lengths and DrMAD's sums along them."""
    settings = learner.settings
    shared = learner.hyperparameters()
    weights, velocity = learner.start_of_tasks(tasks.count)
    path, rows = [weights], []
    for _ in range(settings.steps):
        rows.append(drawn_rows(tasks.support, settings.batch))
        batch = chosen_rows(tasks.support, tasks.support_targets, rows[-1])
        weights, velocity = learner.step_of_tasks(weights, velocity, shared, batch)
        path.append(weights)
    alpha, _, _ = learner.slopes_of_tasks(weights, shared, validation_batch(learner, tasks))
    batches = [chosen_rows(tasks.support, tasks.support_targets, chosen) for chosen in rows]
    sums = backwards(learner, between(path[0], path[-1], settings.steps), shared, alpha, batches)
    distilled = Distilled(settings.decay, newest_first=True)
    products, totals = torch.zeros(()), torch.zeros(())
    for count, total in enumerate(sums, start=1):
        at, mixed = distilled.add(path[settings.steps - count], rows[settings.steps - count])
        past = chosen_rows(tasks.support, tasks.support_targets, mixed)
        product = learner.product_of_tasks(at, shared, alpha, past)[1]
        norm = vmap(inner)(product, product).sqrt()
        along = vmap(inner)(product, total) / norm.clamp(min=1e-20)
        reach = norm * length(settings.decay, count)
        products, totals = products + (reach * along).sum().cpu(), totals + reach.square().sum().cpu()
    return (products / totals.clamp(min=1e-30)).item()


def backwards(
    learner: SharedLayers, points: Sequence[Weights], shared: Weights, alpha: Weights, batches: Sequence[Batch]
) -> list[Weights]:
    """The sums over the last 1, 2, ... T steps of alpha A_T ... A_(i+1) B_i, with A_i and B_i at points[i - 1]
    (algorithm 2)."""
    sums: list[Weights] = []
    for point, batch in zip(reversed(points), reversed(batches), strict=True):
        alpha, term = learner.product_of_tasks(point, shared, alpha, batch)
        sums.append({name: sums[-1][name] + value for name, value in term.items()} if sums else term)
    return sums


def between(first: Weights, last: Weights, steps: int) -> list[Weights]:
    """DrMAD's stand-ins for w_0 .. w_(T-1): points of the line from w_0 to w_T."""
    return [
        {name: value + step / steps * (last[name] - value) for name, value in first.items()} for step in range(steps)
    ]


def update(learner: SharedLayers, optimizer: torch.optim.Optimizer, gradients: Weights) -> None:
    """A step of lambda by the mean over tasks."""
    for name, gradient in gradients.items():
        learner.network.get_parameter(name).grad = gradient.mean(0)
    optimizer.step()


def validation_batch(learner: SharedLayers, tasks: Tasks) -> Batch:
    return chosen_rows(tasks.query, tasks.query_targets, drawn_rows(tasks.query, learner.settings.batch))


def drawn_rows(examples: Tensor, size: int | None) -> Tensor | None:
    """For every task of examples (T, n, ...) ``size`` rows (T, size) without replacement; None: all."""
    count, available = examples.shape[:2]
    if size is None or size >= available:
        return None
    return torch.rand(count, available, device=examples.device).argsort(1)[:, :size]


def chosen_rows(inputs: Tensor, targets: Tensor, rows: Tensor | None) -> Batch:
    """Of every task its rows; None: all."""
    if rows is None:
        return inputs, targets
    tasks = torch.arange(len(rows), device=rows.device)[:, None]
    return inputs[tasks, rows], targets[tasks, rows]


def inner(first: Weights, second: Weights) -> Tensor:
    return torch.stack([(first[name] * second[name]).sum() for name in first]).sum()
