"""FedProx: a client's objective holds it near the server's weights, and what stragglers have done by then counts.

Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020,
arXiv:1812.06127 (algorithm 2, equation 2). Official code: litian96/FedProx. Deviations: see the class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from runner.methods.federated.rounds import Federation, State, federate

if TYPE_CHECKING:
    from runner.context import Context


@dataclass(kw_only=True)
class FedProx:
    """Federated averaging with a proximal term and with the partial work of stragglers."""

    proximal_weight: Annotated[float, Field(ge=0)] = 1.0  # mu
    federation: Federation = field(
        default_factory=lambda: Federation(
            clients=1000, participation=0.01, rounds=200, partition="shards", stragglers=0.9
        )
    )

    paper: ClassVar[str] = "arXiv:1812.06127"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = (
        "With stragglers and different data, partial work and a proximal term converge more stably than FedAvg."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith. Federated Optimization in Heterogeneous Networks. MLSys 2020."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "clients hold equally many examples; the paper's hold numbers that follow a power law",
        "the weight of the proximal term stays as it is set; the paper's adaptive heuristic is left out",
        "images alone: neither the synthetic data nor the language models",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns what ``federate`` returns."""

        def penalty(local: nn.Module, server: State) -> Tensor:
            return self.proximal_weight * half_squared_distance(dict(local.named_parameters()), server)

        active = penalty if self.proximal_weight else None
        return federate(ctx, ctx.model(), self.federation, penalty=active, keep_stragglers=True)


def half_squared_distance(weights: State, anchor: State) -> Tensor:
    """1/2 ||w - a||^2 over the tensors of ``weights``; equation 2 times mu is the proximal term."""
    return sum((item - anchor[name]).square().sum() for name, item in weights.items()) / 2
