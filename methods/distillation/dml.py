"""Deep mutual learning: two networks train from scratch, each by the labels and by the other's probabilities.

Zhang et al. 2018, arXiv:1706.00384, eq. 5, in the forms of two code bases. The peer is the network of the section
``teacher``; nothing is trained beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from torch.nn.functional import cross_entropy

from runner.fit import fit, test_metrics
from runner.methods.distillation.losses import kl_divergence

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class DML:
    """Two networks teach each other from scratch."""

    code_base: Literal["sib", "tf2"] = "sib"  # sib: symmetric divergence; tf2: one direction, halves
    temperature: Annotated[float, Field(gt=0)] = 1.0

    paper: ClassVar[str] = "arXiv:1706.00384"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "Two students that teach each other beat each alone, without a strong teacher."
    citation: ClassVar[str] = "Zhang, Xiang, Hospedales and Lu. Deep Mutual Learning. CVPR 2018."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    distributed: ClassVar[bool] = False  # two networks with moving averages
    deviations: ClassVar[tuple[str, ...]] = (
        "both networks take their step from the same outputs; the code bases update the peer first",
        "the peer's normalisation has batch statistics in training; sib's code has it in evaluation mode, and so has "
        "tf2's where the student learns from the peer",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_peer (0..1, test) and loss (nats)."""
        student, peer = ctx.model(), ctx.model("teacher")
        peer.train()

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            s, p = student(images).float(), peer(images).float()
            smoothing = ctx.recipe.label_smoothing
            return self.one_loss(s, p.detach(), labels, smoothing) + self.one_loss(p, s.detach(), labels, smoothing)

        ctx.track(peer=peer)
        fitted = fit(ctx, student, loss, parameters=[*student.parameters(), *peer.parameters()])
        ctx.track(peer=None)
        ctx.profile(student, "final")
        ctx.save_model(student)
        accuracy_peer = ctx.evaluate(peer, "test", record=False)["accuracy"]
        return {**test_metrics(ctx, student, fitted), "accuracy_peer": accuracy_peer}

    def one_loss(self, own: Tensor, other: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """The loss of the network with logits ``own`` (B, classes), the others being constants; mean over the batch."""
        task = cross_entropy(own, labels, label_smoothing=smoothing)
        divergence = kl_divergence(own, other, self.temperature)
        if self.code_base == "tf2":
            return (task + divergence) / 2
        return task + (divergence + kl_divergence(other, own, self.temperature)) / 2
