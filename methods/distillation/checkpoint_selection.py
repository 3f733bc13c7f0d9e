"""Which checkpoint of the teacher teaches best: the one whose features tell most about image and label together.

Wang et al., NeurIPS 2022, arXiv:2210.06458, the optimal intermediate teacher; not in the released code. I(X; F) and
I(Y; F) are bounded from below by probes on the frozen features, as in InfoPro (Wang et al. 2021, arXiv:2101.10832)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from runner.methods.distillation.features import Reader
from runner.methods.distillation.modality_focusing import min_max
from runner.methods.distillation.pair import frozen
from runner.methods.distillation.teacher_checkpoints import stored_checkpoints

if TYPE_CHECKING:
    from runner.context import Context

WIDTH = 32  # channels of the decoder


@dataclass(kw_only=True)
class CheckpointSelection:
    """Chooses among the checkpoints of a teacher's run by the information in its last feature map."""

    checkpoints: Annotated[int, Field(gt=0)] = 10
    balance: Literal["minmax", "raw"] = "minmax"  # minmax: both curves scaled to 0..1 over the checkpoints, then added
    probe_epochs: Annotated[int, Field(gt=0)] = 10
    probe_learning_rate: Annotated[float, Field(gt=0)] = 1e-3  # Adam

    paper: ClassVar[str] = "arXiv:2210.06458"
    fidelity: ClassVar[str] = "reconstruction"
    claim: ClassVar[str] = "The best teacher has most information about image and label together, before the end."
    citation: ClassVar[str] = (
        "Wang, Yang, Huang, Song and Huang. Efficient Knowledge Distillation from Model Checkpoints. NeurIPS 2022."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False  # measures its probes in one process
    deviations: ClassVar[tuple[str, ...]] = (
        "probes, their training and the balance of the two terms are not stated: a decoder of two convolutions, a "
        "linear classifier, Adam, and min-max scaling",
        "measured on the validation images; without a validation split on the training images",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns selected (checkpoint number, from 1) and of each checkpoint k reconstruction_k (nats a pixel) and
        classification_k (nats an image)."""
        networks = [frozen(ctx, network) for network in stored_checkpoints(ctx, ctx.config, self.checkpoints)]
        readers = [Reader(network, "output") for network in networks]
        image = torch.zeros(1, ctx.data.channels, ctx.data.image_size, ctx.data.image_size, device=ctx.device)
        with torch.no_grad():
            width = readers[0](image).maps[-1].shape[1]
        probes = nn.ModuleList(  # one name: the same initialisation for every checkpoint
            ctx.initialised("probe", lambda: Probe(width, ctx.data.channels, ctx.data.num_classes)) for _ in networks
        )
        mean, std = (
            getattr(ctx.data.normalisation, name).to(ctx.device).view(1, -1, 1, 1) / 255 for name in ("mean", "std")
        )

        def losses(images: Tensor, labels: Tensor) -> Tensor:
            """(checkpoints, 2): reconstruction and classification."""
            pixels = (images * std + mean).clamp(0, 1)
            found = []
            for reader, probe in zip(readers, probes, strict=True):
                with torch.no_grad():
                    features = reader(images).maps[-1].float()
                picture, logits = probe(features, images.shape[-1])
                pair = binary_cross_entropy_with_logits(picture, pixels), cross_entropy(logits, labels)
                found.append(torch.stack(pair))
            return torch.stack(found)

        optimizer = torch.optim.Adam(probes.parameters(), self.probe_learning_rate)
        ctx.track(probes=probes, optimizer=optimizer)
        probes.train()
        for images, labels, *_ in ctx.loop(  # one loop: the same images in the same order for every checkpoint
            "probes", ctx.batches("train", ctx.recipe.batch_size), epochs=self.probe_epochs
        ):
            value = losses(images, labels).sum()
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            ctx.log(loss=value.detach())

        def measure() -> Tensor:
            split = "validation" if len(ctx.data.validation) else "train"
            total, count = torch.zeros(len(networks), 2), 0
            probes.eval()
            with torch.no_grad():
                batches = ctx.batches(split, ctx.recipe.evaluation_batch_size, shuffle=False, augment=False)
                for images, labels, *_ in batches.iterate(0):
                    total += losses(images, labels).cpu() * len(images)
                    count += len(images)
            return total / count

        reconstruction, classification = ctx.once("measure", measure).unbind(1)
        metrics = {"selected": float(choose(reconstruction, classification, self.balance))}
        for number, (r, c) in enumerate(zip(reconstruction.tolist(), classification.tolist(), strict=True), 1):
            metrics |= {f"reconstruction_{number}": r, f"classification_{number}": c}
        ctx.log(**metrics)
        return metrics


class Probe(nn.Module):
    """A decoder to the image and a linear classifier, on one feature map."""

    def __init__(self, width: int, channels: int, classes: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(width, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.draw = nn.Conv2d(WIDTH, channels, 3, padding=1)
        self.classify = nn.Linear(width, classes)

    def forward(self, features: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Logits of pixels (B, channels, size, size) and of classes (B, classes), from (B, width, H, W)."""
        wide = F.interpolate(self.reduce(features), size, mode="bilinear", align_corners=False)
        return self.draw(wide), self.classify(features.mean((2, 3)))


def choose(reconstruction: Tensor, classification: Tensor, balance: str) -> int:
    """The checkpoint, from 1, of the largest I(X; F) + I(Y; F); losses (checkpoints,), the entropies are constants."""
    terms = [-reconstruction, -classification]
    if balance == "minmax":
        terms = [min_max(term) for term in terms]
    return int((terms[0] + terms[1]).argmax()) + 1
