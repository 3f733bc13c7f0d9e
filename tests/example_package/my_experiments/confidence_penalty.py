from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch.nn.functional import cross_entropy

from runner.fit import fit, test_metrics


@dataclass(kw_only=True)
class ConfidencePenalty:
    """Cross-entropy minus a share of the entropy of the prediction. Pereyra et al. 2017, section 3."""

    paper: ClassVar[str] = "arXiv:1701.06548"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "Penalising confident predictions regularises as label smoothing does."
    weight: Annotated[float, Field(ge=0)] = 0.1  # of the entropy in nats

    def run(self, ctx):
        network = ctx.model()

        def loss(images, labels):
            logits = network(images)
            log_probabilities = logits.log_softmax(1)
            entropy = -(log_probabilities.exp() * log_probabilities).sum(1).mean()
            return cross_entropy(logits, labels) - self.weight * entropy

        fitted = fit(ctx, network, loss)
        ctx.profile(network)
        ctx.save_model(network)
        return test_metrics(ctx, network, fitted)
