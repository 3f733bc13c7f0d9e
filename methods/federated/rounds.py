"""The round loop of federated averaging over the clients of one data set: what fedavg, fedprox and others share.

A step of the loop is one client's turn in one round, so a kill costs at most the local training of one client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from runner.errors import UserError
from runner.methods.federated import clients
from runner.optimizers import build_optimizer, learning_rate
from runner.randomness import stream_seed

if TYPE_CHECKING:
    from runner.context import Context
    from runner.datasets.images import Batches
    from runner.schema import Recipe

Positive = Annotated[int, Field(gt=0)]
State = Mapping[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]  # of images (B,C,H,W) and labels (B,), to be minimised


@dataclass(kw_only=True)
class Federation:
    """Who holds what, and how often a server talks to whom. The recipe is that of a client: its epochs are those of one
    round, its schedule moves by rounds."""

    clients: Positive = 100
    participation: Annotated[float, Field(gt=0, le=1)] = 0.1  # share of the clients in a round; at least one
    rounds: Positive = 1000
    partition: Literal["iid", "shards", "dirichlet"] = "iid"
    shards: Positive = 2  # of a client: equal pieces of the examples sorted by label
    concentration: Annotated[float, Field(gt=0)] = 1.0  # of the Dirichlet distribution of a client's classes
    stragglers: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of a round's clients that do not end in time
    rate_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # factor on the learning rate after every round
    evaluate_every: Positive = 1  # rounds, on the test split
    target_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None  # test; rounds until it is reached are reported

    def parts(self, labels: Tensor, generator: numpy.random.Generator) -> list[Tensor]:
        """The rows (n_k,) of every client; ``labels`` (N,).

        Raises:
            UserError: more clients, or shards, than examples.
        """
        pieces = self.clients * (self.shards if self.partition == "shards" else 1)
        if pieces > len(labels):
            raise UserError(
                f"method.federation.clients={self.clients}: {pieces} parts cannot be made of {len(labels)} training "
                "images; take fewer clients or a larger dataset.train_size"
            )
        if self.partition == "iid":
            return clients.iid_parts(labels, self.clients, generator)
        if self.partition == "shards":
            return clients.shard_parts(labels, self.clients, self.shards, generator)
        return clients.dirichlet_parts(labels, self.clients, self.concentration, generator)

    def draw_round(self, epochs: int, generator: numpy.random.Generator) -> list[Turn]:
        """Who takes part in a round of ``epochs`` local epochs; stragglers last, who manage 1 to ``epochs`` - 1."""
        chosen = clients.participants(self.clients, self.participation, generator)
        in_time = max(len(chosen) - round(self.stragglers * len(chosen)), 1)
        managed = generator.integers(1, max(epochs, 2), len(chosen)).tolist()
        return [
            Turn(client, epochs if place < in_time else managed[place], place >= in_time)
            for place, client in enumerate(chosen)
        ]


@dataclass(frozen=True)
class Turn:
    """A client in a round: how many local epochs it manages, and whether that is too little."""

    client: int
    epochs: int
    straggler: bool


def whole(local: State, server: State) -> tuple[State, int]:
    """What a client of FedAvg sends: all its weights, and their bytes."""
    return local, clients.dense_bytes(local)


def federate(
    ctx: Context,
    network: nn.Module,
    settings: Federation,
    *,
    penalty: Callable[[nn.Module, State], Tensor] | None = None,
    keep_stragglers: bool = False,
    upload: Callable[[State, State], tuple[State, int]] = whole,
) -> dict[str, float]:
    """Trains ``network`` in place by federated averaging (McMahan et al. 2017, algorithm 1) and measures it.

    Every round the participants start from the server's weights, train on their own examples and send the result, whose
    mean, weighted by their numbers of examples, are the server's new weights.

    Args:
        penalty: of a client's network and the server's weights, added to the cross-entropy of every batch.
        keep_stragglers: what they have computed counts too; else they are dropped.
        upload: of a client's new weights and the server's: the weights that the server reads from what was sent (those
            of a difference added to its own), and the bytes that it took.

    Returns:
        accuracy (0..1) and loss (nats) of the test split, bytes_up and bytes_down of all clients and rounds, and
        rounds_to_target where a target is set and reached.
    """
    recipe = ctx.recipe
    check_recipe(recipe)
    train = ctx.data.train
    parts = ctx.once("partition", lambda: settings.parts(train.labels, _generator(ctx, "partition")))
    epochs = min(recipe.epochs, ctx.scale.max_epochs or recipe.epochs)
    local = deepcopy(network)
    mean, total = clients.RunningMean(), {"bytes_up": 0, "bytes_down": 0}
    history: list[list[float]] = []  # of [rounds, test accuracy]
    ctx.track(network=network, mean=mean, total=total, history=history)
    loop = ctx.loop("rounds", len(settings.draw_round(epochs, _generator(ctx, "size"))), epochs=settings.rounds)
    for place in loop:
        turn = settings.draw_round(epochs, _generator(ctx, "round", loop.epoch))[place]
        server = network.state_dict()
        total["bytes_down"] += clients.dense_bytes(server)
        if keep_stragglers or not turn.straggler:
            local.load_state_dict(server)
            rows = parts[turn.client].to(train.labels.device)

            def loss(images: Tensor, labels: Tensor, server: State = server) -> Tensor:
                value = cross_entropy(local(images), labels, label_smoothing=recipe.label_smoothing)
                return value if penalty is None else value + penalty(local, server)

            found = train_client(
                ctx,
                local,
                ctx.batches(train.take(rows), recipe.batch_size, drop_last=recipe.drop_last),
                loss,
                epochs=turn.epochs,
                rate=round_rate(recipe, settings, loop.epoch),
                stream=("round", loop.epoch, "client", turn.client),
            )
            state, size = upload(local.state_dict(), server)
            mean.add(state, len(rows))
            total["bytes_up"] += size
            ctx.log(loss=found)
        if loop.epoch_ends:
            network.load_state_dict(mean.take())
            done = loop.epoch + 1
            if done % settings.evaluate_every == 0 or done == settings.rounds:
                history.append([done, ctx.evaluate(network, "test", record=False)["accuracy"]])
                ctx.log(accuracy_test=history[-1][1])
            ctx.log(**total)
    ctx.track(network=None, mean=None, total=None, history=None)
    ctx.profile(network)
    ctx.save_model(network)
    metrics = {**ctx.evaluate(network, "test"), **{name: float(value) for name, value in total.items()}}
    reached = None if settings.target_accuracy is None else rounds_to_target(history, settings.target_accuracy)
    return metrics if reached is None else {**metrics, "rounds_to_target": reached}


def train_client(
    ctx: Context,
    network: nn.Module,
    batches: Batches,
    loss: Loss,
    *,
    epochs: int,
    rate: float,
    stream: tuple[str | int, ...],
) -> float:
    """A client's turn: ``epochs`` epochs by the recipe's optimizer, made anew, at the learning rate ``rate``.

    Args:
        stream: names of the random stream that orders the examples.

    Returns:
        the mean loss over the batches.
    """
    recipe = ctx.recipe
    optimizer = build_optimizer(network.parameters(), recipe.optimizer)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return train_epochs(ctx, network, optimizer, batches, loss, epochs=epochs, stream=stream)


def train_epochs(
    ctx: Context,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    loss: Loss,
    *,
    epochs: int,
    stream: tuple[str | int, ...],
) -> float:
    """The same with an optimizer that may have come from earlier rounds."""
    recipe = ctx.recipe
    losses: list[Tensor] = []
    network.train()
    for epoch in range(epochs):
        order = stream_seed(ctx.durable.seeds.order, *stream, "epoch", epoch)
        for number, (images, labels, _) in enumerate(batches.iterate(order)):
            if ctx.scale.max_steps is not None and number >= ctx.scale.max_steps:
                break
            if recipe.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with ctx.autocast():
                value = loss(images, labels)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            if recipe.gradient_clip is not None:
                trained = [item for group in optimizer.param_groups for item in group["params"]]
                nn.utils.clip_grad_norm_(trained, recipe.gradient_clip)
            optimizer.step()
            losses.append(value.detach())
    return torch.stack(losses).mean().item()


def round_rate(recipe: Recipe, settings: Federation, number: int) -> float:
    """The learning rate of the 0-based round ``number``."""
    base = recipe.optimizer.learning_rate * settings.rate_decay**number
    return learning_rate(base, recipe.schedule, step=number, steps_per_epoch=1, epochs=settings.rounds)


def rounds_to_target(history: list[list[float]], target: float) -> float | None:
    """Rounds until the best accuracy so far reaches ``target``, between measured rounds along a line; None: never.

    McMahan et al. 2017, section 3. ``history``: [rounds, accuracy] by rising rounds.
    """
    before, best = float(history[0][0]) if history else 0.0, 0.0
    for rounds, accuracy in history:
        if accuracy >= target:
            return before + (rounds - before) * (target - best) / (accuracy - best)
        before, best = rounds, max(best, accuracy)
    return None


def check_recipe(recipe: Recipe) -> None:
    """Refuses what a client's short training has no place for. Raises UserError."""
    for name, neutral in (("accumulation", 1), ("ema_decay", None)):
        value = getattr(recipe, name)
        if value != neutral:
            raise UserError(f"recipe.{name}={value}: clients train without it; leave it at {neutral or 'null'}")


def _generator(ctx: Context, *names: str | int) -> numpy.random.Generator:
    """Of what is drawn about clients, a stream of its own for every purpose and round."""
    return numpy.random.default_rng(stream_seed(ctx.durable.seeds.episodes, "federation", *names))
