"""I-VNE+: self-supervised learning from views that agree, with the von Neumann entropy against collapse.

Kim, Kang, Hwang, Shin and Rhee, CVPR 2023, arXiv:2304.01434, section on I-VNE+. Official code: jaeill/CVPR23-VNE,
whose script for ImageNet-100 gives the settings. No negatives, queue, momentum encoder or stopped gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from runner.fit import Fitted, fit, test_metrics
from runner.methods.vision.multi_crop import MultiCrop, original_pixels, probe_crops, renormalised
from runner.methods.vision.spectrum import Embedding, eigenvalues, entropy, von_neumann_entropy
from runner.methods.vision.vne import representations
from runner.optimizers import build_optimizer, learning_rate

if TYPE_CHECKING:
    from runner.context import Context
    from runner.schema import Recipe

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]


@dataclass(kw_only=True)
class Views:
    kind: Literal["crops", "plain"] = "crops"  # plain: the data set's own augmentation, and noise
    large: Annotated[int, Field(ge=2)] = 2
    small: NotNegative = 4
    large_size: Positive | None = None  # pixels; null: the data set's
    small_size: Positive | None = 96  # null: the data set's
    noise: Weight = 0.0  # standard deviation, in those of the normalised images; of plain views


@dataclass(kw_only=True)
class Probe:
    """A linear classifier on the frozen representation."""

    epochs: Positive = 10
    batch_size: Positive = 256
    learning_rate: Annotated[float, Field(gt=0)] = 0.3  # falls along a cosine
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.995
    weight_decay: Weight = 1e-6
    crops: bool = True  # random crops and flips; false: the data set's own augmentation


@dataclass(kw_only=True)
class IVNE:
    """Cosine similarity of all pairs of views, and the entropy of the projections of each view."""

    similarity_weight: Weight = 4.16  # log of the batch size
    entropy_weight: Weight = 1.0
    projector_width: Positive = 2048
    projection: Positive = 256  # numbers
    views: Views = field(default_factory=Views)
    probe: Probe = field(default_factory=Probe)
    neighbours: Positive = 20  # of the nearest-neighbour classifier, by cosine

    paper: ClassVar[str] = "arXiv:2304.01434"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "The von Neumann entropy of projections alone keeps views that attract each other from collapsing."
    )
    citation: ClassVar[str] = (
        "Kim, Kang, Hwang, Shin and Rhee. VNE: An Effective Method for Improving Deep Representation by Manipulating "
        "Eigenvalue Distribution. CVPR 2023."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False  # the spectrum is that of the whole batch
    deviations: ClassVar[tuple[str, ...]] = (
        "crops are cut from the un-augmented image as it is tested (ImageNet: its centre), in the code from the whole",
        "the warm-up multiplies the cosine of all epochs; in the code the cosine begins behind it",
        "accuracy is that of the probe's last epoch; the paper's is of its best epoch on the images that it reports",
        "the nearest-neighbour accuracy stands beside it as a check of collapse; the paper has none",
        "semi-supervised training and detection are left out",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy (0..1) and loss (nats) of the linear probe, accuracy_knn and accuracy_knn_untrained (0..1),
        and of the projections of all test images entropy (nats) and entropy_share, of its largest possible value."""
        network = ctx.model()
        embedding = Embedding(network)
        sizes = (embedding.head.in_features, self.projector_width, self.projector_width, self.projection)
        projector = ctx.initialised("projector", lambda: build_projector(*sizes))
        untrained = ctx.once("untrained neighbours", lambda: self._neighbours(ctx, network))
        self._pretrain(ctx, embedding, projector)
        trained = ctx.once("neighbours", lambda: self._neighbours(ctx, network))
        spectrum = ctx.once("spectrum", lambda: self._entropy(ctx, network, projector))
        fitted = self._probe(ctx, embedding)
        ctx.profile(network, "final")
        ctx.save_model(network)
        checks = {"accuracy_knn": trained, "accuracy_knn_untrained": untrained}
        return test_metrics(ctx, network, fitted) | checks | spectrum

    def loss(self, projections: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, mean cosine of pairs, mean entropy in nats) of the views' projections (B, d), the large ones first."""
        similarity = mean_cosine(projections, self.views.large)
        spread = torch.stack([von_neumann_entropy(view) for view in projections]).mean()
        return -(self.similarity_weight * similarity + self.entropy_weight * spread), similarity, spread

    def _pretrain(self, ctx: Context, embedding: Embedding, projector: nn.Module) -> None:
        recipe, network = ctx.recipe, embedding.network
        optimizer = spared_optimizer(recipe, network, projector)
        ctx.track(network=network, projector=projector, optimizer=optimizer)
        plain = self.views.kind == "plain"
        count = self.views.large + self.views.small if plain else 1
        batches = ctx.batches("train", recipe.batch_size, augment=plain, views=count, drop_last=recipe.drop_last)
        cut = self._noisy if plain else self._crops(ctx)
        network.train()
        projector.train()
        loop = ctx.loop("pretrain", batches, epochs=recipe.epochs)
        for images, _, _ in loop:
            views = cut(images)
            groups = [group for group in (views[: self.views.large], views[self.views.large :]) if group]
            with ctx.autocast():  # large and small views have batch statistics of their own
                projected = [projector(embedding(torch.cat(group))[1]).chunk(len(group)) for group in groups]
            loss, similarity, spread = self.loss([view for group in projected for view in group])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            rate = learning_rate(
                recipe.optimizer.learning_rate,
                recipe.schedule,
                step=loop.step,
                steps_per_epoch=loop.epoch_length,
                epochs=recipe.epochs,
            )
            for options in optimizer.param_groups:
                options["lr"] = rate
            optimizer.step()
            ctx.log(loss=loss.detach(), similarity=similarity.detach(), entropy=spread.detach(), learning_rate=rate)
        ctx.track(network=None, projector=None, optimizer=None)

    def _crops(self, ctx: Context) -> MultiCrop:
        size = ctx.data.image_size
        sizes = (self.views.large_size or size, self.views.small_size or size)
        return MultiCrop(ctx.data.normalisation, *sizes, self.views.large, self.views.small)

    def _noisy(self, images: Tensor) -> list[Tensor]:
        """Plain views (B, V, C, H, W), each (B, C, H, W) with noise."""
        noise = self.views.noise * torch.randn_like(images) if self.views.noise else 0.0
        return list((images + noise).unbind(1))

    @torch.no_grad()
    def _neighbours(self, ctx: Context, network: nn.Module) -> float:
        (train, labels), (test, expected) = (representations(ctx, network, split) for split in ("train", "test"))
        predicted = nearest_neighbours(train, labels, test, self.neighbours, ctx.data.num_classes)
        return float((predicted == expected).double().mean())

    @torch.no_grad()
    def _entropy(self, ctx: Context, network: nn.Module, projector: nn.Module) -> dict[str, float]:
        projector.eval()
        rows = projector(representations(ctx, network, "test")[0])
        projector.train()
        amount = float(entropy(eigenvalues(rows)))
        return {"entropy": amount, "entropy_share": amount / math.log(min(rows.shape))}

    def _probe(self, ctx: Context, embedding: Embedding) -> Fitted:
        """Trains the last linear layer alone, the rest in evaluation mode."""
        network, head, settings = embedding.network, embedding.head, self.probe
        head.load_state_dict(ctx.initialised("probe", lambda: fresh_head(head)).state_dict())
        network.eval().requires_grad_(False)
        head.requires_grad_(True)
        recipe = replace(
            ctx.recipe,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            drop_last=False,
            label_smoothing=0.0,
            gradient_clip=None,
            accumulation=1,
            ema_decay=None,
            mixup=0.0,
            cutmix=0.0,
            optimizer=replace(
                ctx.recipe.optimizer,
                name="sgd",
                learning_rate=settings.learning_rate,
                momentum=settings.momentum,
                nesterov=False,
                weight_decay=settings.weight_decay,
            ),
            schedule=replace(ctx.recipe.schedule, name="cosine", warmup_epochs=0.0),
        )
        crops = probe_crops(self.views.large_size or ctx.data.image_size) if settings.crops else None
        normalisation = ctx.data.normalisation

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            if crops is not None:
                pixels = original_pixels(images, normalisation)
                images = renormalised(torch.stack([crops(image) for image in pixels]), normalisation)
            with torch.no_grad():
                found = embedding(images)[1]
            return cross_entropy(head(found.float()), labels)

        batches = ctx.batches("train", settings.batch_size, augment=crops is None)
        fitted = fit(ctx, head, loss, recipe, name="probe", batches=batches, validate=False)
        network.requires_grad_(True)
        return fitted


def build_projector(inputs: int, *widths: int) -> nn.Sequential:
    """Linear layers with batch normalisation, and ReLU between them: (B, inputs) to (B, widths[-1])."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers[:-1])


def mean_cosine(projections: list[Tensor], large: int) -> Tensor:
    """The cosine similarity of projections (B, d), averaged over the batch and over all pairs with a large view; both
    sides get gradients."""
    pairs = [(i, j) for i, j in combinations(range(len(projections)), 2) if i < large]
    return torch.stack([cosine_similarity(projections[i], projections[j]).mean() for i, j in pairs]).mean()


def spared_optimizer(recipe: Recipe, *modules: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer; biases and what is called ``bn`` do not decay. As in the released code the scales of
    normalisations by another name do: those of the projector and of a ResNet's shortcuts."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for module in modules:
        for name, weight in module.named_parameters():
            if weight.requires_grad:
                (spared if "bn" in name or "bias" in name else decayed).append(weight)
    optimizer = build_optimizer(decayed, recipe.optimizer)
    optimizer.add_param_group({"params": spared, "weight_decay": 0.0})
    return optimizer


def fresh_head(head: nn.Linear) -> nn.Linear:
    """A linear layer of the same sizes: weights N(0, 0.01), biases 0."""
    fresh = nn.Linear(head.in_features, head.out_features)
    nn.init.normal_(fresh.weight, std=0.01)
    nn.init.zeros_(fresh.bias)
    return fresh


def nearest_neighbours(train: Tensor, labels: Tensor, test: Tensor, count: int, classes: int) -> Tensor:
    """The class (M,) that most of the ``count`` training rows (N, d) of highest cosine to a test row (M, d) have; of a
    tie the smallest number."""
    similarity = normalize(test, dim=1) @ normalize(train, dim=1).T
    nearest = labels[similarity.topk(min(count, len(train)), dim=1).indices]
    votes = torch.zeros(len(test), classes, device=test.device).scatter_add_(
        1, nearest, torch.ones_like(nearest).float()
    )
    return votes.argmax(1)
