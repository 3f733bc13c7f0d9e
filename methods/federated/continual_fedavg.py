"""Federated averaging on sequences of tasks: the baselines of federated continual learning.

The clients, tasks and measures are those of FedWeIT (Yoon et al. 2021, arXiv:2003.03196, section 5). By its settings it
is FedAvg (McMahan et al. 2017), FedProx (Li et al. 2020), each with elastic weight consolidation (Kirkpatrick et al.
2017, arXiv:1612.00796, equation 3), the same on every client alone, and one network a task.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from runner.methods.federated.clients import RunningMean, dense_bytes
from runner.methods.federated.fedprox import half_squared_distance
from runner.methods.federated.task_streams import TaskStream, learn_streams, with_task_head
from runner.optimizers import build_optimizer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runner.context import Context
    from runner.datasets.images import Images

Tensors = dict[str, Tensor]
Weight = Annotated[float, Field(ge=0)]
SAVED = ("body", "heads", "bodies", "fisher", "anchor")  # of a client


@dataclass(kw_only=True)
class ContinualFedAvg:
    """Clients learn tasks one after the other; the body of their networks is averaged, every task has a head."""

    communicate: bool = True  # false: every client learns alone
    restart: bool = False  # a task begins from the initial weights, on clients that learn alone: one network a task
    elastic_weight: Weight = 0.0  # lambda of elastic weight consolidation; 0: none
    proximal_weight: Weight = 0.0  # mu of FedProx; 0: none
    weight_decay: Weight = 1e-4  # of 1/2 ||kernels||^2
    stream: TaskStream = field(default_factory=TaskStream)

    paper: ClassVar[str] = "arXiv:2003.03196"
    fidelity: ClassVar[str] = "reconstruction"
    claim: ClassVar[str] = "The baseline of federated continual learning: averaging alone forgets earlier tasks."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Yoon, Jeong, Lee, Yang, Hwang. Federated Continual Learning with Weighted Inter-client Transfer. ICML 2021."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "the released code has none of these baselines: the loop is FedWeIT's, means weigh all clients alike",
        "Fisher information of the training labels, over all training examples of a task; penalties of several tasks "
        "are kept as one quadratic form",
        "for one network a task, forgetting is 0 by definition",
    )

    def __post_init__(self) -> None:
        if self.restart and self.communicate:
            raise ValueError("restart=true is for clients that learn alone; set communicate=false")

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns what ``learn_streams`` returns, and uplink_share: 1 where clients communicate, else 0."""
        network, head = with_task_head(ctx, self.stream.classes)
        server = Server(network, head)
        clients = min(self.stream.clients, ctx.scale.max_steps or self.stream.clients)
        learners = [Client(ctx, self, server, network) for _ in range(clients)]
        metrics = learn_streams(ctx, self.stream, server, learners)
        metrics["uplink_share"] = float(self.communicate)
        ctx.log(**metrics)
        return metrics


class Server:
    """The body of the network: all but the head."""

    def __init__(self, network: nn.Module, head: str) -> None:
        state = {name: item.detach().clone() for name, item in network.state_dict().items()}
        self.body = {name: item for name, item in state.items() if not name.startswith(f"{head}.")}
        self.mean = RunningMean()

    def end_round(self) -> None:
        if self.mean.weight:
            self.body = self.mean.take()

    def state_dict(self) -> dict[str, Any]:
        return {"body": self.body, "mean": self.mean.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.body = state["body"]
        self.mean.load_state_dict(state["mean"])


class Client:
    """A ``Learner`` with one body and a head for every task."""

    def __init__(self, ctx: Context, settings: ContinualFedAvg, server: Server, template: nn.Module) -> None:
        self.ctx, self.settings, self.server, self.template = ctx, settings, server, template
        self.initial = {name: item.detach().clone() for name, item in template.state_dict().items()}
        self.trained = [name for name, _ in template.named_parameters()]
        self.body = {name: item.clone() for name, item in server.body.items()}
        self.heads: list[Tensors] = []
        self.bodies: list[Tensors] = []  # of finished tasks, where each has a network of its own
        self.fisher: Tensors = {}
        self.anchor: Tensors = {}
        self.optimizer: torch.optim.Optimizer | None = None

    def begin(self, rate: float) -> int:
        if self.settings.restart:
            self.body = {name: self.initial[name].clone() for name in self.body}
        self.heads.append({name: item.clone() for name, item in self.initial.items() if name not in self.body})
        self._make_optimizer()
        return 0

    def receive(self) -> int:
        if not self.settings.communicate:
            return 0
        with torch.no_grad():
            for name, item in self.body.items():
                item.copy_(self.server.body[name])
        return dense_bytes(self.server.body)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        settings, body = self.settings, self._trained_body()
        value = cross_entropy(functional_call(self.template, {**self.body, **self.heads[-1]}, (images,)), labels)
        kernels = [item for item in body.values() if item.ndim > 1]
        value = value + settings.weight_decay * sum(item.square().sum() for item in kernels) / 2
        if settings.proximal_weight:
            value = value + settings.proximal_weight * half_squared_distance(body, self.server.body)
        if settings.elastic_weight and self.fisher:
            value = value + settings.elastic_weight * elastic_penalty(body, self.fisher, self.anchor)
        return value

    def finish(self, examples: Images) -> None:
        settings = self.settings
        if settings.restart:
            self.bodies.append({name: item.detach().clone() for name, item in self.body.items()})
        if settings.elastic_weight:
            network = self.network(len(self.heads) - 1).eval()
            found = fisher_information(
                network,
                {name: network.get_parameter(name) for name in self._trained_body()},
                self.ctx.batches(examples, 1, shuffle=False, augment=False).iterate(0),
            )
            body = {name: item.detach() for name, item in self._trained_body().items()}
            self.fisher, self.anchor = merge_anchors(self.fisher, self.anchor, found, body)

    def send(self, last: bool) -> int:
        if not self.settings.communicate:
            return 0
        self.server.mean.add({name: item.detach() for name, item in self.body.items()}, 1.0)
        return dense_bytes(self.body)

    def network(self, task: int) -> nn.Module:
        body = self.bodies[task] if task < len(self.bodies) else self.body
        with torch.no_grad():
            self.template.load_state_dict({**body, **self.heads[task]})
        return self.template

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in SAVED}
        return {**state, "optimizer": None if self.optimizer is None else self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in SAVED:
            setattr(self, name, state[name])
        if state["optimizer"] is not None:
            self._make_optimizer()
            self.optimizer.load_state_dict(state["optimizer"])

    def _trained_body(self) -> Tensors:
        return {name: self.body[name] for name in self.trained if name in self.body}

    def _make_optimizer(self) -> None:
        head = [self.heads[-1][name] for name in self.trained if name not in self.body]
        trained = [*self._trained_body().values(), *head]
        for item in trained:
            item.requires_grad_(True)
        self.optimizer = build_optimizer(trained, self.ctx.recipe.optimizer)


def elastic_penalty(weights: Tensors, fisher: Tensors, anchor: Tensors) -> Tensor:
    """1/2 sum_k F_k (w_k - a_k)^2; times lambda it is the penalty of Kirkpatrick et al. 2017, equation 3."""
    return sum((fisher[name] * (item - anchor[name]).square()).sum() for name, item in weights.items()) / 2


def merge_anchors(fisher: Tensors, anchor: Tensors, new_fisher: Tensors, new: Tensors) -> tuple[Tensors, Tensors]:
    """Two quadratic penalties as one, up to a constant: F + F', and the mean of a and a' weighted by F and F'.

    Empty ``fisher`` and ``anchor``: no penalty before.
    """
    if not fisher:
        return new_fisher, new
    total = {name: fisher[name] + item for name, item in new_fisher.items()}
    merged = {
        name: torch.where(item > 0, (fisher[name] * anchor[name] + new_fisher[name] * new[name]) / item, new[name])
        for name, item in total.items()
    }
    return total, merged


def fisher_information(network: nn.Module, weights: Tensors, examples: Iterable[Any]) -> Tensors:
    """The diagonal of the empirical Fisher information: mean squared gradients of log p(label | image).

    Args:
        network: in evaluation mode.
        weights: of it, by name.
        examples: batches of one (images (1,C,H,W), labels (1,), index).
    """
    total = {name: torch.zeros_like(item) for name, item in weights.items()}
    count = 0
    for image, label, _ in examples:
        gradients = torch.autograd.grad(cross_entropy(network(image), label), list(weights.values()))
        for name, gradient in zip(weights, gradients, strict=True):
            total[name] += gradient.square()
        count += 1
    return {name: item / count for name, item in total.items()}
