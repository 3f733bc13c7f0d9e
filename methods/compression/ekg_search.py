"""The search of EKG as a run of its own: tune the network for one epoch, then remove filters step by step.

Paper: Lee and Song, "Ensemble Knowledge Guided Sub-network Search and Fine-tuning for Filter Pruning", ECCV 2022,
arXiv:2203.02651, eq. 7-9, Algorithm 1. Official code: sseung0703/EKG (TensorFlow).
Fine-tuning arms (method ekg) share its result. Deviations: see the class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from runner.errors import UserError
from runner.methods.compression.gates import GatedNetwork
from runner.methods.compression.search import Search, SearchSettings, split_history
from runner.storage import write_json, write_tensors

if TYPE_CHECKING:
    from runner.context import Context
    from runner.datasets.images import Images

WEIGHTS, SUMMARY = "search.safetensors", "search.json"
SUBSET_SEED = 1  # of the released code: the composition of batches decides their statistics


@dataclass(kw_only=True)
class EKGSearch:
    """Greedy sub-network search guided by the ensemble of the networks met; the first half of method ekg."""

    target_rate: Annotated[float, Field(gt=0, lt=1)] = 0.45  # FLOPs kept, of the full network's
    search: SearchSettings = field(default_factory=SearchSettings)

    paper: ClassVar[str] = "arXiv:2203.02651"
    fidelity: ClassVar[str] = "official"
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False  # a greedy search: every step depends on the one before
    soft_labels: ClassVar[bool] = True  # nothing here trains with the recipe; the baseline is a run of supervised
    claim: ClassVar[str] = (
        "The ensemble of sub-networks met in a search tells better than the validation loss which filters to remove."
    )
    citation: ClassVar[str] = "Lee and Song. Ensemble Knowledge Guided Sub-network Search and Fine-tuning. ECCV 2022."
    deviations: ClassVar[tuple[str, ...]] = (
        "losses on D_val are means over its images; the code divides by a constant 256 (no decision depends on it)",
        "the fine search rounds rates to 5 decimals; search.rate_decimals=2 is the original",
        "the layer score is the first public version's; search.layer_score=released is the last version's",
        "where trimming leaves fewer than three layer scores, all open gates are candidates (the code fails)",
        "the history starts with the full widths; the last version stores those of the last candidate tried",
        "removed channels rank behind channels whose score is 0 as well",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns flops_rate, params_rate, accuracy_baseline (0..1, test), steps, candidates; writes all it met."""
        network = ctx.trained_model("baseline")
        accuracy_baseline = ctx.evaluate(network)["accuracy"]
        subset, validation = search_sets(ctx.data.train, self.search)
        ctx.say(f"search: D_sub {len(subset)} images, D_val {len(validation)} images, both from the training images")
        tune(ctx, network, subset, self.search)

        images, labels, _ = next(ctx.batches(validation, len(validation), shuffle=False, augment=False).iterate(0))
        gated = gate_network(ctx, network)
        search = Search(gated, images, labels, self.search, self.target_rate)
        ctx.track(search=search, network=None, optimizer=None)  # the search changes no weights
        for _ in ctx.loop("search", until=lambda: search.flops_rate <= self.target_rate):
            chosen = search.step()
            ctx.log(loss=chosen.loss, score=chosen.score, flops_rate=search.flops_rate, gate=chosen.gate)

        write_search(ctx.artifact(WEIGHTS), network, search.history)
        write_json(ctx.artifact(SUMMARY), summary(search))
        return {
            "flops_rate": search.flops_rate,
            "params_rate": gated.parameters(search.counts) / gated.parameters(gated.full_counts()),
            "accuracy_baseline": accuracy_baseline,
            "steps": len(search.history) - 1,
            "candidates": search.candidates_evaluated,
        }


def search_sets(train: Images, settings: SearchSettings) -> tuple[Images, Images]:
    """(D_sub, D_val): the first and the last training images of every class, disjoint, shuffled once.

    Where the smallest class is short, D_val takes at most half of it and D_sub what is left. Raises UserError if a
    class has a single image.
    """
    smallest = min(count for count in torch.bincount(train.labels).tolist() if count)
    if smallest < 2:
        raise UserError(
            "a class has a single training image, and the search needs one to tune on and another to evaluate on: "
            "raise dataset.train_size"
        )
    validation = train.last_per_class(min(settings.validation_per_class, smallest // 2))
    rest = train.take(torch.nonzero(~torch.isin(train.index, validation.index)).flatten())
    return shuffled(rest.first_per_class(settings.subset_per_class)), shuffled(validation)


def shuffled(images: Images) -> Images:
    """The images in the one order that D_sub and D_val have in the released code."""
    return images.take(torch.from_numpy(np.random.RandomState(SUBSET_SEED).permutation(len(images))))


def tune(ctx: Context, network: nn.Module, subset: Images, settings: SearchSettings) -> None:
    """One epoch on D_sub, not augmented: Nesterov momentum 0.9, weight decay 5e-4, twice the mean loss (card 3)."""
    optimizer = torch.optim.SGD(
        network.parameters(), settings.tuning_learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    ctx.track(network=network, optimizer=optimizer)
    network.train()
    batches = ctx.batches(subset, settings.batch_size, shuffle=False, augment=False, drop_last=True)
    for images, labels, _ in ctx.loop("tune", batches, epochs=1):
        loss = 2 * F.cross_entropy(network(images), labels)  # the code divides the sum over 256 images by 128
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ctx.log(loss=loss.detach())


def gate_network(ctx: Context, network: nn.Module) -> GatedNetwork:
    size = ctx.data.image_size
    return GatedNetwork(network, torch.zeros(1, ctx.data.channels, size, size, device=ctx.device))


def write_search(path: Path, network: nn.Module, history: Sequence[Mapping]) -> None:
    """The tuned network and all networks met: orders (H, channels of all gates), rates (H, gates), losses (H,)."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors["history.orders"] = torch.stack([entry["orders"] for entry in history])
    tensors["history.rates"] = torch.tensor([entry["rates"] for entry in history], dtype=torch.float64)
    tensors["history.losses"] = torch.tensor([entry["loss"] for entry in history], dtype=torch.float64)
    write_tensors(path, tensors)


@dataclass(frozen=True)
class FoundNetworks:
    """What a search left: the weights of the tuned full network, and the networks met, the full one first."""

    weights: dict[str, Tensor]
    orders: Tensor
    rates: Tensor
    losses: list[float]

    @classmethod
    def read(cls, path: Path) -> FoundNetworks:
        tensors = load_file(path)
        weights = {name.removeprefix("network."): item for name, item in tensors.items() if name.startswith("network.")}
        return cls(weights, tensors["history.orders"], tensors["history.rates"], tensors["history.losses"].tolist())

    def kept_channels(self, gated: GatedNetwork, index: int) -> list[Tensor]:
        """The kept channels of every gate of the network met at ``index`` (-1: the final one)."""
        device = next(gated.network.parameters()).device
        orders, rates = split_history(
            {"orders": self.orders[index], "rates": self.rates[index].tolist()}, gated, device
        )
        return gated.kept_channels(orders, rates)


def summary(search: Search) -> dict:
    """What the search did, to be read by people."""
    gated, counts = search.gated, search.counts
    return {
        "target_rate": search.target_rate,
        "flops_rate": search.flops_rate,
        "flops": {"full": search.full_flops, "final": gated.flops(counts)},
        "parameters": {"full": gated.parameters(gated.full_counts()), "final": gated.parameters(counts)},
        "losses": [entry["loss"] for entry in search.history],
        "candidates": search.candidates_evaluated,
        "batches_skipped": search.batches_skipped,
        "gates": [
            {"name": gate.name, "channels": gate.channels, "kept": kept, "rate": rate, "calls": gate.calls}
            for gate, kept, rate in zip(gated.gates, counts, search.rates, strict=True)
        ],
    }
