"""DIVERSIFY: split a series into latent domains that its classes do not explain, then learn features that hide them.

Lu, Wang, Sun, Chen, Xie, "Out-of-distribution Representation Learning for Time Series Classification", ICLR 2023,
arXiv:2209.07027. Official code: microsoft/robustlearn, folder diversify. Deviations: see the class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, one_hot

from runner.evaluation import evaluating
from runner.methods.timeseries.adversary import (
    Adam,
    BatchSize,
    Branch,
    Positive,
    Weight,
    build_branch,
    discriminator,
    reverse_gradient,
    training_batches,
)
from runner.selection import BestEpoch

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.context import Context

EmptyClusters = Literal["stay_empty", "released"]


@dataclass(kw_only=True)
class Diversify:
    """Latent domains of series, and features that do not reveal them; no domain labels are used."""

    rounds: Positive = 50
    local_epochs: Positive = 3  # passes of each of a round's three stages
    latent_domains: Positive = 10
    class_reversal: Weight = 1.0  # stage 2: what the class adversary's gradient is multiplied by; 0: no adversary
    domain_reversal: Weight = 1.0  # stage 3: that of the domain adversary
    entropy_weight: Weight = 0.0  # stage 2: of the latent domain's entropy, in nats
    fine_grained: bool = True  # stage 1 tells latent domain and class, not the class alone
    domains: Literal["learned", "random"] = "learned"  # random: drawn once, and stage 2 is left out
    empty_clusters: EmptyClusters = "stay_empty"  # released: one empty cluster takes all windows, as in the code
    batch_size: BatchSize | None = None  # null: 32 windows a latent domain, 16 from six of them on
    width: Positive = 256  # of the bottlenecks
    hidden: Positive = 256  # of the discriminators
    optimizer: Adam = field(default_factory=Adam)  # of each stage, kept over the rounds

    paper: ClassVar[str] = "arXiv:2209.07027"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "Latent domains found inside a series carry features further to unseen people than risk minimisation does."
    )
    data: ClassVar[tuple[str, ...]] = ("series",)
    model: ClassVar[tuple[str, ...]] = ("series featurizer",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Lu, Wang, Sun, Chen, Xie. Out-of-distribution Representation Learning for Time Series Classification. "
        "ICLR 2023."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "an empty cluster stays empty; in the released code it takes all windows (empty_clusters=released)",
        "a last batch of a single window is left out; the released code stops there",
        "the rows of the paper's table other than ERM, DANN and DIVERSIFY are shown as reported",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy (0..1), loss (nats) on unseen domains after the last round, accuracy_best_validation, and
        how much the latent domains tell (normalised mutual information, 0..1) of the class (nmi_class), the true
        domain (nmi_domain) and further groups of the data set (nmi_style)."""
        classes, train = ctx.data.num_classes, ctx.data.train
        network = build_branch(ctx, self.width)  # of stage 3; its featurizer is learned in stage 1
        heads = ctx.initialised("stages", lambda: Heads(network.featurizer, self, classes))
        latent = torch.zeros(len(train), dtype=torch.int64, device=ctx.device)  # by the window's row
        if self.domains == "random":
            drawn = ctx.once("random domains", lambda: torch.randint(self.latent_domains, (len(train),)))
            latent.copy_(drawn)
        stage = {
            "features": self.optimizer.over(network.featurizer, heads.fine.bottleneck, heads.fine.classifier),
            "domains": self.optimizer.over(heads.latent.bottleneck, heads.latent.classifier, heads.tells_class),
            "invariance": self.optimizer.over(network.bottleneck, network.classifier, heads.tells_domain),
        }
        best = BestEpoch()
        ctx.track(network=network, heads=heads, latent=latent, best=best, **stage)
        size = self.batch_size or self.latent_domains * (32 if self.latent_domains < 6 else 16)
        batches = training_batches(ctx, size)

        def passes(name: str, loss: Callable[[Tensor, Tensor, Tensor], Tensor], validate: bool = False) -> None:
            loop = ctx.loop(name, batches, epochs=self.local_epochs)
            for windows, labels, index in loop:
                value = loss(windows, labels, latent[index])
                stage[name].zero_grad(set_to_none=True)
                value.backward()
                stage[name].step()
                ctx.log(loss=value.detach())
                if validate and loop.epoch_ends:
                    best.offer(ctx, network)

        def tell_fine(windows: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
            return cross_entropy(heads.fine(windows), joint_label(domains, labels, classes, self.fine_grained))

        def characterise(windows: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
            embedded = heads.latent.bottleneck(fixed(network.featurizer, windows))
            logits = heads.latent.classifier(embedded)
            told = heads.tells_class(reverse_gradient(embedded, self.class_reversal))
            loss = cross_entropy(logits, domains) + cross_entropy(told, labels)
            return loss + self.entropy_weight * mean_entropy(logits) if self.entropy_weight else loss

        def hide(windows: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
            embedded = network.bottleneck(fixed(network.featurizer, windows))
            told = heads.tells_domain(reverse_gradient(embedded, self.domain_reversal))
            return cross_entropy(network.classifier(embedded), labels) + cross_entropy(told, domains)

        network.train()
        heads.train()
        for _ in ctx.loop("rounds", self.rounds):
            passes("features", tell_fine)
            if self.domains == "learned":
                passes("domains", characterise)
                latent.copy_(self._relabelled(ctx, heads.latent))
            passes("invariance", hide, validate=True)
            ctx.log(latent_domains=len(latent.unique()))
        metrics = best.test_metrics(ctx, network)
        for name, values in {"class": train.labels, **train.groups}.items():
            metrics[f"nmi_{name}"] = mutual_information(latent, values)
        ctx.log(**metrics)
        return metrics

    def _relabelled(self, ctx: Context, branch: Branch) -> Tensor:
        rows = ctx.batches("train", ctx.recipe.evaluation_batch_size, shuffle=False)
        with evaluating(branch):
            embedded = torch.cat([branch.embed(windows) for windows, _, _ in rows.iterate(0)])
            return pseudo_domains(embedded, branch.classifier(embedded).softmax(1), self.empty_clusters)


class Heads(nn.Module):
    """What stages 1 and 2 learn beside the featurizer, and the adversary of stage 3."""

    def __init__(self, featurizer: nn.Module, settings: Diversify, classes: int) -> None:
        super().__init__()
        width, hidden, domains = settings.width, settings.hidden, settings.latent_domains
        self.fine = Branch(featurizer, width, classes * domains if settings.fine_grained else classes)
        self.latent = Branch(featurizer, width, domains)
        self.tells_class = discriminator(width, hidden, classes)
        self.tells_domain = discriminator(width, hidden, domains)


def fixed(featurizer: nn.Module, windows: Tensor) -> Tensor:
    """Features that no gradient reaches; in training mode batch normalisation's moving averages go on."""
    with torch.no_grad():
        return featurizer(windows)


def joint_label(domains: Tensor, labels: Tensor, classes: int, fine_grained: bool = True) -> Tensor:
    """(B,): domain * classes + label, one number for each pair; the label where it is not ``fine_grained``."""
    return domains * classes + labels if fine_grained else labels


def mean_entropy(logits: Tensor) -> Tensor:
    """Mean over a batch of the entropy (nats) of softmax(logits (B, K)); the logarithm is of p + 1e-5."""
    probabilities = logits.softmax(1)
    return -(probabilities * (probabilities + 1e-5).log()).sum(1).mean()


def pseudo_domains(embedded: Tensor, probabilities: Tensor, empty_clusters: EmptyClusters = "stay_empty") -> Tensor:
    """The nearest centroid of each window, by the cosine: twice, with soft and then with hard memberships.

    Liang et al. 2020 (arXiv:2002.08546), section 3.2, as DIVERSIFY uses it.

    Args:
        embedded: (N, width); a 1 is appended and the whole normalised.
        probabilities: (N, K), of the latent domains.
        empty_clusters: stay_empty, or as released: all windows fall to the first empty one, whose distance is no
            number.

    Returns:
        (N,) int64 in 0..K-1.
    """
    points = normalize(torch.cat((embedded, embedded.new_ones(len(embedded), 1)), 1), dim=1)
    members = probabilities
    for _ in range(2):
        counts = members.sum(0)
        centroids = members.T @ points / (1e-8 + counts)[:, None]
        distance = 1 - points @ normalize(centroids, dim=1).T
        empty = counts == 0
        if empty_clusters == "released" and bool(empty.any()):
            nearest = empty.long().argmax().expand(len(points))
        else:
            nearest = distance.masked_fill(empty, torch.inf).argmin(1)
        members = one_hot(nearest, probabilities.shape[1]).to(points.dtype)
    return nearest


def mutual_information(one: Tensor, other: Tensor) -> float:
    """Normalised mutual information (arithmetic mean of the entropies) of two labellings (N,), 0..1."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(one.cpu().numpy(), other.cpu().numpy()))
