"""FedWeIT: federated continual learning with a shared base, sparse task-adaptive parts, and those of other clients.

Yoon, Jeong, Lee, Yang and Hwang, "Federated Continual Learning with Weighted Inter-client Transfer", ICML 2021,
arXiv:2003.03196. Official code: wyjeong/FedWeIT. Deviations: see the class. For every layer of a client in task t

    theta_t = B * sigmoid(m_t) + A_t + sum_j alpha_{t,j} A_j        (1)

with the base B, of which the most masked units travel in every round, a mask of its units, a sparse adaptive part, and
the adaptive parts A_j of all clients from the tasks before, weighted by an attention. All else (biases, normalisation,
the head) is the task's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from runner.methods.federated.clients import VALUE_BYTES, sparse_bytes
from runner.methods.federated.decomposition import (
    drift,
    half_square,
    hard_threshold,
    kept_units,
    merge,
    received,
    restored,
    transferred,
)
from runner.methods.federated.task_streams import TaskStream, learn_streams, with_task_head
from runner.models.federated import scaled_normal
from runner.optimizers import build_optimizer
from runner.randomness import stream_seed

if TYPE_CHECKING:
    from runner.context import Context
    from runner.datasets.images import Images

Kernels = dict[str, Tensor]
Weight = Annotated[float, Field(ge=0)]
SAVED = ("base", "start", "frozen", "masks", "adaptives", "transfers", "attention", "rest")  # of a client


@dataclass(kw_only=True)
class FedWeIT:
    """Federated weighted inter-client transfer; without transfer and communication it is APD on every client alone."""

    transfer: bool = True  # of other clients' adaptive parts
    communicate: bool = True  # the base; false: every client keeps its own
    adaptive: bool = True  # false: no A_t, and so no transfer
    mask: bool = True  # false: the base is used as it is, and sent whole
    retroactive: bool = False  # A_i and m_i of earlier tasks are trained too
    client_sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.3  # share of a layer's units that is not sent; 0: all are
    weight_decay: Weight = 1e-4  # of 1/2 ||A_t||^2, 1/2 ||m_t||^2, and in the first task 1/2 ||B||^2
    adaptive_l1: Weight = 1e-3  # lambda_1, and the size below which entries of A count as 0
    mask_l1: Weight = 0.0  # lambda_mask
    drift_weight: Weight = 100.0  # lambda_2
    stream: TaskStream = field(default_factory=TaskStream)

    paper: ClassVar[str] = "arXiv:2003.03196"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "Splitting weights into a shared base and sparse task-adaptive parts, and attending over other clients' parts, "
        "forgets less and sends less than averaging whole networks."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Yoon, Jeong, Lee, Yang, Hwang. Federated Continual Learning with Weighted Inter-client Transfer. ICML 2021."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "tasks are groups of neighbouring classes of one data set, whose own test images are used; the code cuts eight "
        "sets, 70% train, 20% test, 10% validation",
        "clients that share a task's classes share out their training images, and are tested on all test images",
        "batches are drawn in a new order every epoch; the code keeps one order",
        "all clients take part in every round, and the knowledge is stacked by client, not by arrival",
        "biases and heads begin every task with the network's initial values; the code draws them anew",
        "masks learn from the cross-entropy, as in the paper; the code takes their sigmoid outside of the gradient's "
        "tape, so that only weight decay moves them",
        "Adam keeps its moments from round to round of a task; the code stores a client's optimizer without them",
        "penalties without a gradient (earlier A_i that stay as they are) are left out of the loss",
        "the stop at a learning rate of 1e-10, which the rounds of a task do not reach, is left out",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns what ``learn_streams`` returns, uplink_share (bytes of the base that a client sends in a round, over
        those of the whole base), capacity (non-zero entries of base and adaptive parts over those of one network) and
        adaptive_density (share of the adaptive parts' entries above their threshold)."""
        network, head = with_task_head(ctx, self.stream.classes)
        server = Server(network, head, self)
        clients = min(self.stream.clients, ctx.scale.max_steps or self.stream.clients)
        learners = [Client(ctx, self, server, network, number) for number in range(clients)]
        metrics = learn_streams(ctx, self.stream, server, learners)
        metrics["uplink_share"] = server.base_bytes / max(server.whole_bytes, 1)
        used = [item.adaptives if self.adaptive else [] for item in learners]
        metrics |= capacity([item.base for item in learners], used, self.adaptive_l1)
        ctx.log(**metrics)
        return metrics


class Server:
    """The base, the knowledge of the task before, and the account of the base's way up."""

    def __init__(self, network: nn.Module, head: str, settings: FedWeIT) -> None:
        kinds = (nn.Conv2d, nn.Linear)
        layers = [name for name, module in network.named_modules() if isinstance(module, kinds) and name != head]
        kernels = {f"{name}.weight": network.get_submodule(name).weight for name in layers}
        self.settings = settings
        self.base: Kernels = {name: item.detach().clone() for name, item in kernels.items()}
        self.knowledge: Kernels | None = None  # (clients, units, ...)
        self.bases: list[Kernels] = []  # that came in this round
        self.kept: list[Kernels] = []
        self.adaptives: list[Kernels] = []  # that came in the last round of a task
        self.base_bytes = self.whole_bytes = 0

    def end_round(self) -> None:
        if self.bases:
            gathered = {name: [item[name] for item in self.bases] for name in self.base}
            kept = {name: [item[name] for item in self.kept] for name in self.base}
            self.base = {name: merge(gathered[name], kept[name]) for name in self.base}
        if self.adaptives:
            self.knowledge = {name: torch.stack([item[name] for item in self.adaptives]) for name in self.base}
        self.bases, self.kept, self.adaptives = [], [], []

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "settings"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Client:
    """A ``Learner`` whose kernels are decomposed; ``rest`` holds what of a network is a task's own."""

    def __init__(self, ctx: Context, settings: FedWeIT, server: Server, template: nn.Module, number: int) -> None:
        self.ctx, self.settings, self.server, self.template, self.number = ctx, settings, server, template, number
        self.base = {name: item.clone() for name, item in server.base.items()}
        self.initial = dict(server.base)
        self.initial_rest = {
            name: item.detach().clone() for name, item in template.state_dict().items() if name not in self.base
        }
        self.trained_rest = [name for name, _ in template.named_parameters() if name not in self.base]
        self.start: Kernels = {}  # the base when the task began
        self.frozen: list[Kernels] = []  # Theta* of earlier tasks, where they are trained
        self.masks: list[Kernels] = []
        self.adaptives: list[Kernels] = []
        self.transfers: list[Kernels] = []  # of finished tasks: constants
        self.attention: Kernels = {}
        self.rest: list[Kernels] = []
        self.optimizer: torch.optim.Optimizer | None = None

    # ---- a task ----------------------------------------------------------------------------------------------------

    def begin(self, rate: float) -> int:
        task, settings = len(self.masks), self.settings
        self.start = {name: item.detach().clone() for name, item in self.base.items()}
        if settings.retroactive:
            self.frozen = [
                {name: restored(self.base[name], *self._parts(name, k)).detach() for name in self.base}
                for k in range(task)
            ]
        draws = torch.Generator().manual_seed(
            stream_seed(self.ctx.durable.seeds.initialisation, "task", task, "client", self.number)
        )
        device = self.ctx.device
        self.masks.append({name: scaled_normal(len(item), draws).to(device) for name, item in self.base.items()})
        self.adaptives.append({name: item / 3 for name, item in self.initial.items()})
        self.rest.append({name: item.clone() for name, item in self.initial_rest.items()})
        known = self.server.knowledge
        size = 0 if known is None else len(next(iter(known.values())))
        self.attention = {name: scaled_normal(size, draws).to(device) for name in self.base} if size else {}
        self._make_optimizer()
        return 0 if known is None else sparse_bytes(known)

    def receive(self) -> int:
        if not self.settings.communicate:
            return 0
        with torch.no_grad():
            for name, item in self.base.items():
                item.copy_(received(self.server.base[name], item))
        return sum(
            int(item.count_nonzero()) * VALUE_BYTES + units_bytes(len(item)) for item in self.server.base.values()
        )

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Equation 2, with the cross-entropy's mean over a batch."""
        task, settings = len(self.masks) - 1, self.settings
        value = cross_entropy(functional_call(self.template, self._weights(task, test=False), (images,)), labels)
        for name, base in self.base.items():
            mask, adaptive = self.masks[task][name], self.adaptives[task][name]
            if settings.adaptive:
                value = value + settings.weight_decay * half_square(adaptive)
                value = value + settings.adaptive_l1 * adaptive.abs().sum()
            if settings.mask:
                value = value + settings.weight_decay * half_square(mask) + settings.mask_l1 * mask.abs().sum()
            if task == 0:
                value = value + settings.weight_decay * half_square(base)
            elif settings.retroactive:
                value = value + self._retroactive(name)
            else:
                masks = [self._parts(name, k)[0] for k in range(task)]
                value = value + settings.drift_weight * drift(base, self.start[name], masks)
        return value

    def finish(self, examples: Images) -> None:
        with torch.no_grad():
            known = self.server.knowledge if self.attention else None
            self.transfers.append(
                {} if known is None else {name: transferred(self.attention[name], known[name]) for name in self.base}
            )

    def send(self, last: bool) -> int:
        settings, server, size = self.settings, self.server, 0
        if settings.communicate:
            masks, share = self.masks[-1], settings.client_sparsity if settings.mask else 0.0
            kept = {name: kept_units(masks[name].detach(), share) for name in self.base}
            server.kept.append(kept)
            server.bases.append({name: item.detach().clone() for name, item in self.base.items()})
            for name, item in self.base.items():
                unit = item[0].numel() * VALUE_BYTES
                size += int(kept[name].sum()) * unit
                server.whole_bytes += len(item) * unit
            server.base_bytes += size
            size += sum(units_bytes(len(item)) for item in kept.values())
        if last and settings.transfer and settings.adaptive:
            parts = {name: item.detach() for name, item in self.adaptives[-1].items()}
            sent = {name: hard_threshold(item, settings.adaptive_l1) for name, item in parts.items()}
            server.adaptives.append(sent)
            size += sparse_bytes(sent)
        return size

    def network(self, task: int) -> nn.Module:
        with torch.no_grad():
            self.template.load_state_dict(self._weights(task, test=True))
        return self.template

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _parts(self, name: str, task: int) -> tuple[Tensor, Tensor]:
        """Mask logits and adaptive part of a layer, as the settings use them."""
        mask, adaptive = self.masks[task][name], self.adaptives[task][name]
        if not self.settings.mask:
            mask = torch.full_like(mask, float("inf"))
        return mask, adaptive if self.settings.adaptive else torch.zeros_like(adaptive)

    def _weights(self, task: int, *, test: bool) -> dict[str, Tensor]:
        """Equation 1 for every kernel, and the rest; in a test small entries of masks and adaptive parts are 0."""
        weights = dict(self.rest[task])
        known = self.server.knowledge
        for name, base in self.base.items():
            mask, adaptive = self._parts(name, task)
            if test:
                adaptive = hard_threshold(adaptive, self.settings.adaptive_l1)
                mask = mask.masked_fill(mask.sigmoid() <= self.settings.mask_l1, float("-inf"))
            weights[name] = restored(base, mask, adaptive)
            if task < len(self.transfers):
                if self.transfers[task]:
                    weights[name] = weights[name] + self.transfers[task][name]
            elif self.attention:
                weights[name] = weights[name] + transferred(self.attention[name], known[name])
        return weights

    def _retroactive(self, name: str) -> Tensor:
        """What equation 2 says of the earlier tasks where they are trained too."""
        value = self.base[name].new_zeros(())
        for k, anchor in enumerate(self.frozen):
            mask, adaptive = self._parts(name, k)
            moved = restored(self.base[name], mask, adaptive) - anchor[name]
            value = value + self.settings.drift_weight * half_square(moved)
            value = value + self.settings.adaptive_l1 * adaptive.abs().sum()
        return value

    def _make_optimizer(self) -> None:
        """Over the base and what belongs to the present task, and to earlier ones where they are trained."""
        first = 0 if self.settings.retroactive else len(self.masks) - 1
        trained = [*self.base.values(), *self.attention.values()]
        for k in range(first, len(self.masks)):
            trained += self.masks[k].values() if self.settings.mask else []
            trained += self.adaptives[k].values() if self.settings.adaptive else []
        trained += [self.rest[-1][name] for name in self.trained_rest]
        for parts in (*self.masks, *self.adaptives, *self.rest):
            for item in parts.values():
                item.requires_grad_(False)
                item.grad = None
        for item in trained:
            item.requires_grad_(True)
        self.optimizer = build_optimizer(trained, self.ctx.recipe.optimizer)

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in SAVED}
        return {**state, "optimizer": None if self.optimizer is None else self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in SAVED:
            setattr(self, name, state[name])
        if state["optimizer"] is not None:
            self._make_optimizer()
            self.optimizer.load_state_dict(state["optimizer"])


def units_bytes(units: int) -> int:
    """Of one bit a unit: which of them are sent."""
    return -(-units // 8)


def capacity(bases: list[Kernels], adaptives: list[list[Kernels]], limit: float) -> dict[str, float]:
    """capacity and adaptive_density, means over clients: see ``FedWeIT.run``."""
    dense = sum(item.numel() for item in bases[0].values())
    tasks = max(len(own) for own in adaptives)
    above = [sum(int((item.abs() > limit).sum()) for part in own for item in part.values()) for own in adaptives]
    nonzero = [sum(int(item.count_nonzero()) for item in base.values()) for base in bases]
    clients = len(bases)
    return {
        "capacity": (sum(above) + sum(nonzero)) / clients / dense,
        "adaptive_density": sum(above) / clients / (dense * tasks) if tasks else 0.0,
    }
