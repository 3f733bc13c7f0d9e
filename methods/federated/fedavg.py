"""Federated averaging: clients train on their own examples for a while, the server averages their weights.

McMahan, Moore, Ramage, Hampson and Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, arXiv:1602.05629 (algorithm 1). The authors published no code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from runner.methods.federated.rounds import Federation, federate

if TYPE_CHECKING:
    from runner.context import Context


@dataclass(kw_only=True)
class FedAvg:
    """Federated averaging; one local epoch on one batch of all examples is FedSGD."""

    federation: Federation = field(default_factory=Federation)

    paper: ClassVar[str] = "arXiv:1602.05629"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = (
        "Averaging weights after several local epochs needs far fewer rounds of communication than averaging gradients."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "McMahan, Moore, Ramage, Hampson, Agüera y Arcas. Communication-Efficient Learning of Deep Networks from "
        "Decentralized Data. AISTATS 2017."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "one learning rate for all settings; the paper picks the best of a grid for each cell",
        "images alone: not the language models",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns what ``federate`` returns."""
        return federate(ctx, ctx.model(), self.federation)
