"""Sequences of tasks over clients, the loop that learns them, and what is measured: federated continual learning.

A task is a few classes of an image set; every client has a sequence of its own, and knows which task it is asked about
(one head a task). Yoon et al. 2021, arXiv:2003.03196.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import numpy
import torch
from pydantic import Field
from torch import Tensor, nn

from runner.errors import UserError
from runner.evaluation import accuracy_and_loss, classify
from runner.methods.federated.rounds import check_recipe, train_epochs
from runner.randomness import stream_seed

if TYPE_CHECKING:
    from runner.context import Context
    from runner.datasets.images import Images

Positive = Annotated[int, Field(gt=0)]


@dataclass(kw_only=True)
class TaskStream:
    """The clients, their tasks, and the learning rate within a task. The recipe's epochs are those of one round."""

    clients: Positive = 5
    tasks: Positive = 10  # of a client, one after the other
    classes: Positive = 5  # of a task
    rounds: Positive = 20  # of a task
    patience: Positive = 3  # rounds without a lower validation loss before the learning rate falls
    rate_factor: Annotated[float, Field(ge=1)] = 3.0  # that divides it then


@dataclass
class Task:
    """One client's task: rows of the splits, and the classes in the order of their labels in the task."""

    classes: list[int]
    train: Tensor
    validation: Tensor
    test: Tensor

    def take(self, images: Images, split: str) -> Images:
        """The task's images of a split, with labels 0 .. classes - 1."""
        taken = images.take(getattr(self, split).to(images.labels.device))
        wanted = torch.tensor(self.classes, device=taken.labels.device)
        taken.labels = (taken.labels[:, None] == wanted).int().argmax(1)
        return taken


def draw_sequences(families: int, clients: int, tasks: int, generator: numpy.random.Generator) -> list[list[int]]:
    """Which family of classes each client learns when: (clients, tasks).

    No client has a family twice, families are used equally often (to one), and those that share one learn it at
    different times as far as possible: each client's order is an assignment with the fewest coincidences.
    """
    from scipy.optimize import linear_sum_assignment

    order = generator.permutation(families)
    seen = numpy.zeros((families, tasks))
    sequences = []
    for client in range(clients):
        own = order[(client * tasks + numpy.arange(tasks)) % families]
        cost = seen[own] + generator.uniform(0, 0.5 / tasks, (tasks, tasks))  # ties are broken at random
        rows, times = linear_sum_assignment(cost)
        seen[own[rows], times] += 1
        sequences.append(own[numpy.argsort(times)].tolist())
    return sequences


def draw_tasks(
    splits: dict[str, Tensor], classes: int, settings: TaskStream, generator: numpy.random.Generator
) -> list[list[Task]]:
    """Every client's tasks. ``splits``: labels of train, validation and test; ``classes`` of the set, grouped in order.

    The training and validation images of a family are dealt out, class by class, to the clients that share it; each is
    tested on all its test images.

    Raises:
        UserError: too few classes, or a task without images of a split.
    """
    families = classes // settings.classes
    if families < settings.tasks:
        raise UserError(
            f"method.stream.tasks={settings.tasks}: {classes} classes make {families} tasks of {settings.classes}; "
            "set fewer tasks or fewer method.stream.classes"
        )
    sequences = draw_sequences(families, settings.clients, settings.tasks, generator)
    sharers = [[client for client, own in enumerate(sequences) if family in own] for family in range(families)]
    dealt: dict[tuple[int, str], list[list[int]]] = {}
    for family, owners in enumerate(sharers):
        for split, labels in splits.items():
            hands: list[list[int]] = [[] for _ in owners]
            for label in range(family * settings.classes, (family + 1) * settings.classes):
                rows = generator.permutation(torch.nonzero(labels == label).flatten().cpu().numpy()).tolist()
                for place, hand in enumerate(hands):
                    hand += rows if split == "test" else rows[place :: len(owners)]
            dealt[family, split] = hands

    def task(client: int, family: int) -> Task:
        place = sharers[family].index(client)
        rows = {split: torch.tensor(dealt[family, split][place], dtype=torch.int64) for split in splits}
        for split, found in rows.items():
            if not len(found):
                raise UserError(
                    f"method.stream: a task has no {split} images; take a larger dataset.train_size or "
                    "dataset.validation_fraction, or fewer clients"
                )
        return Task(list(range(family * settings.classes, (family + 1) * settings.classes)), **rows)

    return [[task(client, family) for family in own] for client, own in enumerate(sequences)]


class Learner(Protocol):
    """A client. Its state is saved between its turns, its optimizer's included."""

    template: nn.Module  # in whose training mode the loss is computed
    optimizer: torch.optim.Optimizer

    def begin(self, rate: float) -> int:
        """A task begins: new weights of its own and an optimizer. Returns the bytes that this asked of the server."""

    def receive(self) -> int:
        """A round begins. Returns the bytes that came from the server."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Of a batch of the task."""

    def finish(self, examples: Images) -> None:
        """The last round's training is done; ``examples`` are the task's training images."""

    def send(self, last: bool) -> int:
        """A round ends, the ``last`` one of a task or not. Returns the bytes that went to the server."""

    def network(self, task: int) -> nn.Module:
        """For a task that it has learnt, ready to classify; serves until the next call."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Server(Protocol):
    """Gathers what clients send in their turns."""

    def end_round(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def learn_streams(ctx: Context, settings: TaskStream, server: Server, learners: Sequence[Learner]) -> dict[str, float]:
    """All clients learn their tasks, round by round; a step of a task's loop is one client's turn in one round.

    As in wyjeong/FedWeIT a client is measured after its own training, before the server answers.

    Returns:
        accuracy (0..1, mean over clients and tasks after the last task), forgetting (see there), bytes_up and
        bytes_down of all clients and rounds.
    """
    check_recipe(ctx.recipe)
    data = ctx.data
    splits = {name: getattr(data, name) for name in ("train", "validation", "test")}
    generator = numpy.random.default_rng(stream_seed(ctx.durable.seeds.episodes, "tasks"))
    tasks = draw_tasks({name: item.labels for name, item in splits.items()}, data.num_classes, settings, generator)
    state: dict[str, Any] = {
        "accuracies": [[] for _ in learners],  # client, after task, task
        "total": {"bytes_up": 0, "bytes_down": 0},
        "rates": [{} for _ in learners],
    }
    ctx.track(server=server, state=state, **{f"client {n}": item for n, item in enumerate(learners)})
    base = ctx.recipe.optimizer.learning_rate
    for number in range(settings.tasks):
        loop = ctx.loop(f"task {number + 1}", len(learners), epochs=settings.rounds)
        for place in loop:
            client, task, rate = learners[place], tasks[place][number], state["rates"][place]
            last = loop.epoch + 1 == loop.epochs
            if loop.epoch == 0:
                rate.clear()
                rate.update(rate=base, lowest=float("inf"), patience=settings.patience)
                state["total"]["bytes_down"] += client.begin(base)
            state["total"]["bytes_down"] += client.receive()
            for group in client.optimizer.param_groups:
                group["lr"] = rate["rate"]
            images = task.take(splits["train"], "train")
            found = train_epochs(
                ctx,
                client.template,
                client.optimizer,
                ctx.batches(images, ctx.recipe.batch_size, drop_last=ctx.recipe.drop_last),
                client.loss,
                epochs=min(ctx.recipe.epochs, ctx.scale.max_epochs or ctx.recipe.epochs),
                stream=("task", number, "round", loop.epoch, "client", place),
            )
            if last:
                client.finish(images)
                own = [
                    measure(ctx, client.network(k), tasks[place][k].take(splits["test"], "test"))["accuracy"]
                    for k in range(number + 1)
                ]
                state["accuracies"][place].append(own)
            else:
                validation = measure(ctx, client.network(number), task.take(splits["validation"], "validation"))
                fall_on_plateau(rate, validation["loss"], settings.patience, settings.rate_factor)
            state["total"]["bytes_up"] += client.send(last)
            ctx.log(loss=found)
            if loop.epoch_ends:
                server.end_round()
                ctx.log(**state["total"])
                if last:
                    ctx.log(accuracy=average_accuracy(state["accuracies"]), forgetting=forgetting(state["accuracies"]))
    return {
        "accuracy": average_accuracy(state["accuracies"]),
        "forgetting": forgetting(state["accuracies"]),
        **{name: float(value) for name, value in state["total"].items()},
    }


def measure(ctx: Context, network: nn.Module, images: Images) -> dict[str, float]:
    """accuracy (0..1) and loss (nats) on images as they are."""
    batches = ctx.batches(images, ctx.recipe.evaluation_batch_size, shuffle=False, augment=False)
    return accuracy_and_loss(classify(network, batches.iterate(0), ctx.autocast()))


def fall_on_plateau(rate: dict[str, float], loss: float, patience: int, factor: float) -> None:
    """The rule of wyjeong/FedWeIT: after ``patience`` rounds without a lower validation loss the rate falls.

    Args:
        rate: rate, lowest (loss so far) and patience (rounds left), changed in place. Rounds count together until the
            rate falls; a lower loss between them begins the count anew.
    """
    if loss < rate["lowest"]:
        rate.update(lowest=loss, patience=patience)
        return
    rate["patience"] -= 1
    if rate["patience"] <= 0:
        rate.update(rate=rate["rate"] / factor, patience=patience)


def average_accuracy(accuracies: Sequence[Sequence[Sequence[float]]]) -> float:
    """The mean over clients, and over the tasks learnt so far; accuracies[client][after task][task]."""
    return float(numpy.mean([numpy.mean(own[-1]) for own in accuracies if own]))


def forgetting(accuracies: Sequence[Sequence[Sequence[float]]]) -> float:
    """How far the last accuracy lies below the best one before it; the mean over clients and all tasks but the last.

    Negative where a task got better by what came later; 0 after a single task.
    """
    drops = [
        max(after[task] for after in own[task:-1]) - own[-1][task] for own in accuracies for task in range(len(own) - 1)
    ]
    return float(numpy.mean(drops)) if drops else 0.0


def with_task_head(ctx: Context, classes: int) -> tuple[nn.Module, str]:
    """The config's network with ``classes`` outputs, and the name of its last linear layer, the head.

    Raises:
        UserError: it has no linear layer.
    """
    network = ctx.model()
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise UserError(f"model={ctx.settings.model.name}: the network has no linear layer that could be a task's head")
    inputs = network.get_submodule(names[-1]).in_features
    parent, _, last = names[-1].rpartition(".")
    setattr(network.get_submodule(parent), last, ctx.initialised("head", lambda: nn.Linear(inputs, classes)))
    return network, names[-1]
