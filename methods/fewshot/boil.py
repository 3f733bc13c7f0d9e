"""Body-only update in the inner loop: the head stays, the body adapts.

Oh, Yoo, Kim and Yun, "BOIL: Towards Representation Change for Few-shot Learning", ICLR 2021, arXiv:2008.08882.
Official code: HJ-Yoo/BOIL.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from runner.methods.fewshot.gradient_learner import GradientLearner
from runner.methods.fewshot.meta_training import MetaTraining, meta_learn

if TYPE_CHECKING:
    from runner.context import Context


@dataclass(kw_only=True)
class BOIL:
    """MAML whose inner steps change all but the last linear layer."""

    rate: Annotated[float, Field(gt=0)] = 0.5  # of the inner steps
    steps: Annotated[int, Field(gt=0)] = 1
    test_steps: Annotated[int, Field(gt=0)] | None = None  # null: steps
    first_order: bool = False
    training: MetaTraining = field(default_factory=lambda: MetaTraining(test_tasks=1000))

    paper: ClassVar[str] = "arXiv:2008.08882"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "Changing the representation, not the head, is what fast adaptation needs across domains."
    data: ClassVar[tuple[str, ...]] = ("episodes", "regression episodes")
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = "Oh, Yoo, Kim, Yun. BOIL: Towards Representation Change for Few-shot Learning. ICLR 2021."
    deviations: ClassVar[tuple[str, ...]] = (
        "the last epoch's network is measured on 1000 tasks of one run; the paper averages five runs: use seeds",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns what ``meta_learn`` returns."""
        learner = GradientLearner(
            ctx.model(),
            rate=self.rate,
            steps=self.steps,
            test_steps=self.test_steps,
            part="body",
            first_order=self.first_order,
        )
        return meta_learn(ctx, learner, self.training, outer=learner.outer, predict=learner.predict)
