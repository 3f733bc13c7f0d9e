"""EKG: search for a narrower network guided by an ensemble, then fine-tune it with the networks met as teachers.

Paper: Lee and Song, "Ensemble Knowledge Guided Sub-network Search and Fine-tuning for Filter Pruning", ECCV 2022,
arXiv:2203.02651, eq. 7-13. Official code: sseung0703/EKG (TensorFlow).
The search is the cell ekg_search, shared by all fine-tuning arms. Deviations: see the class.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from runner.fit import Fitted, fit, test_metrics
from runner.methods.compression.ekg_search import WEIGHTS, FoundNetworks, gate_network
from runner.methods.compression.executor import SlicedExecutor
from runner.methods.compression.gates import GatedNetwork
from runner.methods.compression.knowledge_bank import (
    bank_loss,
    choose_teachers,
    default_temperature,
    guided_loss,
    stack_bank,
    teacher_logits,
)
from runner.methods.compression.search import SearchSettings
from runner.methods.compression.slimming import cut
from runner.models.resize import resized_copy

if TYPE_CHECKING:
    from runner.context import Context

BANK_BATCH_SIZE = 256  # images whose statistics normalise the teachers (card 2.8)
DEVICE_BANK_LIMIT = 2**30  # bytes; a larger bank stays in main memory


@dataclass(kw_only=True)
class FineTuneSettings:
    """How the pruned network is trained again; optimizer and schedule are the recipe's."""

    knowledge: Literal["none", "single", "ensemble"] = "ensemble"  # plain labels, the full network online, the bank
    teachers: Annotated[int, Field(gt=0)] = 5  # K, networks of the search kept in the bank
    temperature: Annotated[float, Field(gt=0)] | None = None  # null: 4 below 1000 classes, else 10
    activity_rule: bool = True  # a teacher counts only while it is nearer to the best one than the student; off: always


@dataclass(kw_only=True)
class EKG:
    """Filter pruning guided by an ensemble of the sub-networks met in the search."""

    target_rate: Annotated[float, Field(gt=0, lt=1)] = 0.45  # FLOPs kept, of the full network's
    search: SearchSettings = field(default_factory=SearchSettings)
    fine_tune: FineTuneSettings = field(default_factory=FineTuneSettings)

    paper: ClassVar[str] = "arXiv:2203.02651"
    fidelity: ClassVar[str] = "official"
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    claim: ClassVar[str] = (
        "About 45% of the FLOPs of ResNet-50 go without loss of accuracy; the sub-networks met in the search are free "
        "teachers."
    )
    citation: ClassVar[str] = "Lee and Song. Ensemble Knowledge Guided Sub-network Search and Fine-tuning. ECCV 2022."
    deviations: ClassVar[tuple[str, ...]] = (
        "in the search: those that `runner show ekg_search` lists",
        "crops and colours are drawn for every image and view; the code draws them once for a batch and view",
        "knowledge single: the full network teaches in evaluation mode (the paper does not say)",
    )

    @property
    def soft_labels(self) -> bool:
        """The teachers' losses compare class numbers and single images."""
        return self.fine_tune.knowledge == "none"

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_baseline, accuracy_pruned (before fine-tuning), flops_rate, params_rate (0..1)."""
        recipe = ctx.config["baseline"]["recipe"]  # not the fine-tuning's: arms that differ in it share the search
        cell = ctx.cell(
            "ekg_search", {"target_rate": self.target_rate, "search": asdict(self.search)}, recipe=recipe, role="search"
        )
        found = FoundNetworks.read(cell.artifact(WEIGHTS))
        network = ctx.model()
        network.load_state_dict(found.weights)
        gated = gate_network(ctx, network)

        weights = ctx.once("slim", lambda: dict(cut(gated, found.kept_channels(gated, -1)).state_dict()))
        slim = resized_copy(network, weights)
        ctx.profile(network, "baseline")
        ctx.profile(slim, "final")
        accuracy_pruned = ctx.evaluate(slim, batch_statistics=True)["accuracy"]
        fitted = self.train_again(ctx, slim, gated, found)
        ctx.save_model(slim)
        return {
            **test_metrics(ctx, slim, fitted),
            "accuracy_baseline": cell.metrics["accuracy_baseline"],
            "accuracy_pruned": accuracy_pruned,
            "flops_rate": cell.metrics["flops_rate"],
            "params_rate": cell.metrics["params_rate"],
        }

    def train_again(self, ctx: Context, slim: nn.Module, gated: GatedNetwork, found: FoundNetworks) -> Fitted:
        """Fine-tune: one plain view and labels alone, or two coloured views and a teacher (card 2.10)."""
        recipe, knowledge = ctx.recipe, self.fine_tune.knowledge
        if knowledge == "none":

            def labels_loss(images: Tensor, labels: Tensor) -> Tensor:
                return F.cross_entropy(slim(images), labels, label_smoothing=recipe.label_smoothing)

            return fit(ctx, slim, labels_loss, name="fine_tune")

        temperature = self.fine_tune.temperature or default_temperature(ctx.data.num_classes)
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        bank = self.memory_bank(ctx, gated, found) if knowledge == "ensemble" else None
        total = None if ctx.ranks is None else ctx.ranks.total

        def guided(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            batch, views = images.shape[:2]
            images = images.flatten(0, 1).contiguous(memory_format=layout)  # all views in one pass: shared statistics
            logits = slim(images).float().unflatten(0, (batch, views))
            if bank is None:
                with torch.no_grad():
                    teacher = gated.network(images).float().unflatten(0, (batch, views))
                return guided_loss(logits, labels, teacher, temperature)
            rows = bank[index.to(bank.device)].to(logits.device, torch.float32)
            return bank_loss(logits, labels, rows, temperature, self.fine_tune.activity_rule, total)

        batches = ctx.batches("train", recipe.batch_size, views=2, colour=True, drop_last=recipe.drop_last)
        return fit(ctx, slim, guided, name="fine_tune", batches=batches)

    def memory_bank(self, ctx: Context, gated: GatedNetwork, found: FoundNetworks) -> Tensor:
        """Logits (N, classes, K) of the teachers on every training image, as it is; one stored phase a teacher."""
        executor = SlicedExecutor(gated)
        batches = ctx.batches("train", BANK_BATCH_SIZE, shuffle=False, augment=False)

        def logits_of(met: int) -> Tensor:
            return teacher_logits(executor, found.kept_channels(gated, met), batches.iterate(0))

        teachers = choose_teachers(found.losses[:-1], self.fine_tune.teachers)
        bank = stack_bank(
            [ctx.once(f"bank teacher {number}", partial(logits_of, met)) for number, met in enumerate(teachers, 1)]
        )
        return bank.to(ctx.device) if bank.nbytes <= DEVICE_BANK_LIMIT else bank
