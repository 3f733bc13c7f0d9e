"""EKG's landscape study: does the curvature of the loss tell which pruned network fine-tunes well?

Paper: Lee and Song, "Ensemble Knowledge Guided Sub-network Search and Fine-tuning for Filter Pruning", ECCV 2022,
arXiv:2203.02651, the study of 50 sub-networks and the table of filter scores. Surfaces: Li et al., NeurIPS 2018,
arXiv:1712.09913. The networks compared are cells of ekg_search, shared with method ekg. Deviations: see the class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from runner import randomness
from runner.evaluation import batch_statistics
from runner.fit import fit
from runner.methods.compression.ekg_search import WEIGHTS, FoundNetworks, gate_network, search_sets
from runner.methods.compression.gates import GatedNetwork
from runner.methods.compression.hessian import HessianProduct, extreme_eigenvalues
from runner.methods.compression.landscape_figures import prediction_figure, surface_figure
from runner.methods.compression.loss_surface import filter_normalised_direction, losses_along
from runner.methods.compression.search import SearchSettings, split_history
from runner.methods.compression.slimming import cut
from runner.storage import write_json

if TYPE_CHECKING:
    from runner.context import Context

EXTRA = "figures"  # of pyproject.toml: what this module needs beyond the plain installation
NARROWEST = 0.2  # lower end of the uniform draw of a gate's width, before all are scaled to the target


@dataclass(kw_only=True)
class EKGLandscape:
    """Curvature of pruned networks before fine-tuning, against their loss after it; loss surfaces."""

    target_rate: Annotated[float, Field(gt=0, lt=1)] = 0.45  # FLOPs kept, of the full network's
    networks: Annotated[int, Field(ge=3)] = 50  # random sub-networks of the correlation
    compared: list[Literal["ekg", "l1", "fpgm", "taylor"]] = field(
        default_factory=lambda: ["l1", "fpgm", "taylor"]
    )  # filter scores of the searches drawn beside search.filter_score; [] leaves it alone
    lanczos_steps: Annotated[int, Field(ge=2)] = 100  # most Hessian-vector products a network, and vectors in memory
    lanczos_tolerance: Annotated[float, Field(gt=0)] = 1e-3  # residual over the largest |eigenvalue|
    surface_points: Annotated[int, Field(ge=2)] = 51  # a side of the surface
    surface_range: Annotated[float, Field(gt=0)] = 1.0  # reach of the surface, in norms of the filters
    search: SearchSettings = field(default_factory=SearchSettings)

    paper: ClassVar[str] = "arXiv:2203.02651"
    fidelity: ClassVar[str] = "reconstruction"
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = False
    claim: ClassVar[str] = (
        "The condition number of the Hessian of a pruned network predicts its loss after fine-tuning (rho 0.73) better "
        "than its validation loss does (0.32)."
    )
    citation: ClassVar[str] = "Lee and Song. Ensemble Knowledge Guided Sub-network Search and Fine-tuning. ECCV 2022."
    deviations: ClassVar[tuple[str, ...]] = (
        "the paper's text was not found: which sub-networks it samples, on which images it takes the Hessian and which "
        "rho it means are our choices",
        "sub-networks: a width drawn uniformly for every gate, all scaled to the target; filters by EKG's score of the "
        "full network",
        "Hessian of the loss on D_val with batch statistics, over all trainable weights, in float32",
        "rho is Spearman's rank correlation; potential loss is the test loss after fine-tuning on labels alone",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns, of the searched network before fine-tuning, the Hessian's ends and their ratio:

        hessian_eigenvalue_max, hessian_eigenvalue_min (nats per squared unit of weight), condition_number (0 looks
        convex), with condition_number_NAME of the other filter scores; flops_rate (0..1) and potential_loss (nats);
        rank_correlation of the condition number with the potential loss over the random sub-networks and
        rank_correlation_validation_loss (Spearman, -1..1) of ``networks``; lanczos_residual, the largest of all, and
        lanczos_converged, the part (0..1) that reached the tolerance.
        """
        found = self.searched(ctx)
        network = ctx.model()
        network.load_state_dict(found[self.search.filter_score].weights)
        gated = gate_network(ctx, network)
        images = search_sets(ctx.data.train, self.search)[1]
        batches = list(ctx.batches(images, self.search.batch_size, shuffle=False, augment=False).iterate(0))
        ctx.say(f"Hessian and surfaces on {len(images)} training images, batch statistics of {len(batches[0].labels)}")

        rows: dict[str, list[dict]] = {"searched": [], "random": []}
        ctx.track(rows=rows)
        names = list(found)
        for number in ctx.loop("searched networks", len(names)):
            kept = self.enter(gated, found[names[number]])
            rows["searched"].append({"name": names[number], **self.study(ctx, gated, kept, batches)})
        main = found[self.search.filter_score]
        network.load_state_dict(main.weights)
        for number in ctx.loop("random networks", self.networks):
            kept = random_network(ctx, gated, main, self.target_rate, number)
            rows["random"].append({"name": f"random {number + 1}", **self.study(ctx, gated, kept, batches)})

        places = torch.linspace(-self.surface_range, self.surface_range, self.surface_points)
        surfaces = {
            name: self.surface(ctx, name, cut(gated, self.enter(gated, item)), batches, places)
            for name, item in found.items()
        }
        return self.conclude(ctx, rows, surfaces, places)

    def searched(self, ctx: Context) -> dict[str, FoundNetworks]:
        """What the searches found by filter score, the method's own first."""
        found = {}
        for score in dict.fromkeys([self.search.filter_score, *self.compared]):
            settings = asdict(replace(self.search, filter_score=score))
            fields = {"target_rate": self.target_rate, "search": settings}
            cell = ctx.cell("ekg_search", fields, recipe=ctx.config["baseline"]["recipe"], role=f"search {score}")
            found[score] = FoundNetworks.read(cell.artifact(WEIGHTS))
        return found

    @staticmethod
    def enter(gated: GatedNetwork, found: FoundNetworks) -> list[Tensor]:
        """Loads what a search started from into the gated network; returns the channels that it kept."""
        gated.network.load_state_dict(found.weights)
        return found.kept_channels(gated, -1)

    def study(self, ctx: Context, gated: GatedNetwork, kept: list[Tensor], batches: Sequence) -> dict:
        """Measures a network before and after fine-tuning; one step of a loop, each part of it a phase."""
        # second derivatives of convolutions are faster in this layout; fit chooses its own
        slim = cut(gated, kept).to(memory_format=torch.contiguous_format).eval()
        row = {"flops_rate": gated.flops_rate([len(channels) for channels in kept])}

        def before() -> dict:
            with batch_statistics(slim):
                with torch.no_grad():
                    loss = mean_loss(slim, batches)
                parameters = [item for item in slim.parameters() if item.requires_grad]
                product = HessianProduct(
                    [lambda batch=batch: share(slim, batch, batches) for batch in batches], parameters
                )
                start = torch.randn(product.size, device=ctx.device)
                ends = extreme_eigenvalues(product, start, steps=self.lanczos_steps, tolerance=self.lanczos_tolerance)
            return {"validation_loss": loss, "condition_number": ends.condition_number, **asdict(ends)}

        row |= ctx.once("curvature", before)

        def labels_loss(images: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(slim(images), labels, label_smoothing=ctx.recipe.label_smoothing)

        fit(ctx, slim, labels_loss, name="fine_tune")
        ctx.track(model=None, optimizer=None, best=None, averaged=None, gradients=None)
        test = ctx.evaluate(slim, "test", record=False)
        row |= {"potential_loss": test["loss"], "accuracy": test["accuracy"]}
        ctx.log(**{name: float(value) for name, value in row.items()})
        return row

    def surface(self, ctx: Context, name: str, slim: nn.Module, batches: Sequence, places: Tensor) -> Tensor:
        """Loss (P, P) on the plane of two random directions around a network before fine-tuning; a row is a step."""
        slim.eval()
        parameters = {key: item for key, item in slim.named_parameters() if item.requires_grad}
        with randomness.stream(ctx.seed, "surface", name):
            first, second = filter_normalised_direction(parameters), filter_normalised_direction(parameters)
        surface = torch.full((len(places), len(places)), torch.nan, dtype=torch.float64)
        ctx.track(surface=surface)
        for row in ctx.loop(f"surface {name}", len(places)):
            with batch_statistics(slim):
                surface[row] = losses_along(
                    slim, lambda model: mean_loss(model, batches), (first, places[row].item()), second, places
                )
            ctx.log(lowest=surface[row].min(), highest=surface[row].max())
        ctx.track(surface=None)
        return surface

    def conclude(self, ctx: Context, rows: dict, surfaces: dict[str, Tensor], places: Tensor) -> dict[str, float]:
        """The metrics; writes artifacts/landscape.json and the figures."""
        labels = {"condition_number": "condition number", "validation_loss": "loss on D_val before fine-tuning (nats)"}
        columns = {name: [row[name] for row in rows["random"]] for name in labels}
        potential = [row["potential_loss"] for row in rows["random"]]
        rhos = {name: float(spearmanr(values, potential).statistic) for name, values in columns.items()}
        shown = {labels[name]: values for name, values in columns.items()}
        ctx.figure("rank_correlation", prediction_figure(shown, potential, list(rhos.values())))
        ctx.figure("surfaces", surface_figure(surfaces, places))
        drawn = {name: surface.tolist() for name, surface in surfaces.items()}
        write_json(ctx.artifact("landscape.json"), {**rows, "surfaces": drawn, "places": places.tolist()})
        own, *others = rows["searched"]
        everything = [*rows["searched"], *rows["random"]]
        return {
            "hessian_eigenvalue_max": own["largest"],
            "hessian_eigenvalue_min": own["smallest"],
            "condition_number": own["condition_number"],
            **{f"condition_number_{row['name']}": row["condition_number"] for row in others},
            "flops_rate": own["flops_rate"],
            "potential_loss": own["potential_loss"],
            "rank_correlation": rhos["condition_number"],
            "rank_correlation_validation_loss": rhos["validation_loss"],
            "networks": len(rows["random"]),
            "lanczos_residual": max(row["residual"] for row in everything),
            "lanczos_converged": sum(row["converged"] for row in everything) / len(everything),
        }


def share(network: Callable[[Tensor], Tensor], batch: Sequence[Tensor], batches: Sequence) -> Tensor:
    """What a batch (images, labels, ...) adds to the mean cross-entropy over all batches (nats)."""
    images, labels = batch[0], batch[1]
    count = sum(len(other[1]) for other in batches)
    return F.cross_entropy(network(images), labels, reduction="sum") / count


def mean_loss(network: Callable[[Tensor], Tensor], batches: Sequence) -> float:
    return sum(share(network, batch, batches).double().item() for batch in batches)


def random_network(
    ctx: Context, gated: GatedNetwork, found: FoundNetworks, target_rate: float, number: int
) -> list[Tensor]:
    """Kept channels of random sub-network ``number``: its widths are its own, the same in every run of the seed."""
    with randomness.stream(ctx.seed, "widths", number):
        rates = random_rates(gated, target_rate)
    device = next(gated.network.parameters()).device
    # the ranks of the first step: scores of the full network
    orders, _ = split_history({"orders": found.orders[1], "rates": rates}, gated, device)
    return gated.kept_channels(orders, rates)


def random_rates(gated: GatedNetwork, target_rate: float) -> list[float]:
    """Rates of all gates, 0..1: uniform draws, all scaled to the most FLOPs at or under ``target_rate``."""
    drawn = (NARROWEST + (1 - NARROWEST) * torch.rand(len(gated.gates), dtype=torch.float64)).tolist()

    def scaled(factor: float) -> list[float]:
        return [min(rate * factor, 1.0) for rate in drawn]

    low, high = 0.0, 1 / NARROWEST
    for _ in range(40):  # to the last channel: FLOPs rise with the factor
        middle = (low + high) / 2
        fits = gated.flops_rate(gated.kept_counts(scaled(middle))) <= target_rate
        low, high = (middle, high) if fits else (low, middle)
    return scaled(low)
