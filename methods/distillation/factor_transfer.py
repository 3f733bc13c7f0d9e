"""Factor transfer: the student's factors of the last map imitate those of a paraphraser trained on the teacher.

Kim, Park and Kwak 2018, arXiv:1802.04977, eq. 1-4, in the forms of three code bases.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn
from torch.nn.functional import leaky_relu, normalize

from runner.methods.distillation.features import pool_to_smaller
from runner.methods.distillation.losses import attention
from runner.methods.distillation.pair import Pair

if TYPE_CHECKING:
    from torch import Tensor

    from runner.context import Context


@dataclass(kw_only=True)
class FactorTransfer:
    """Factors of the teacher's last map, found by a paraphraser, are translated to by the student."""

    code_base: Literal["sib", "tf2", "rep"] = "rep"  # the shape of paraphraser and translator, what of factors is equal
    weight: Annotated[float, Field(ge=0)] = 200.0
    paraphraser_epochs: Annotated[int, Field(gt=0)] = 30
    paraphraser_learning_rate: Annotated[float, Field(gt=0)] | None = 0.01  # null: the recipe's

    paper: ClassVar[str] = "arXiv:1802.04977"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = "Paraphrased factors of a teacher's map are easier for a student than the map itself."
    citation: ClassVar[str] = (
        "Kim, Park and Kwak. Paraphrasing Complex Network: Network Compression via Factor Transfer. 2018."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    soft_labels: ClassVar[bool] = True
    deviations: ClassVar[tuple[str, ...]] = (
        "sib, tf2: strided convolutions pad symmetrically, and their weight decay is the recipe's",
        "rep: the paraphraser's learning rate is 0.01 for every network (the code: for residual networks)",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy, accuracy_teacher (0..1, test) and loss (nats)."""
        pair = Pair(ctx, "output" if self.code_base == "rep" else "activated")
        s, t = pair.student_shapes.maps[-1], pair.teacher_shapes.maps[-1]
        paraphraser = ctx.initialised("paraphraser", lambda: Paraphraser(t.shape[1], self.code_base))
        translator = ctx.initialised(
            "translator", lambda: encoder(s.shape[1], t.shape[1], self.code_base, teacher=False)
        )

        def reconstruction(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            return paraphraser.loss(pair.teacher_features(images, index).maps[-1])

        pair.initialise(
            reconstruction,
            self.paraphraser_epochs,
            {"paraphraser": paraphraser},
            student=False,
            learning_rate=self.paraphraser_learning_rate,
            name="paraphrase",
        )
        paraphraser.eval().requires_grad_(False)

        def loss(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
            student, teacher = pair(images, index)
            factors = translator(student.maps[-1]), paraphraser.encoder(teacher.maps[-1])
            return pair.task_loss(student, labels) + self.weight * self.difference(*factors)

        return pair.distil(loss, {"translator": translator})

    def difference(self, s: Tensor, t: Tensor) -> Tensor:
        """Mean absolute difference of factors (B, K, H, W), the larger ones pooled.

        rep: of their ``attention`` (B, H*W); sib: of unit length over channels at every pixel; tf2: over the factor.
        """
        s, t = pool_to_smaller(s, t)
        if self.code_base == "rep":
            return (attention(s) - attention(t)).abs().mean()
        if self.code_base == "tf2":
            s, t = s.flatten(1), t.flatten(1)
        return (normalize(s) - normalize(t)).abs().mean()


class Paraphraser(nn.Module):
    """Encodes a map of ``width`` channels as factors and decodes them again.

    tf2: batch normalisation is a scale and a shift alone, since its code never moves the averages it divides by.
    """

    def __init__(self, width: int, code_base: str) -> None:
        super().__init__()
        self.code_base = code_base
        self.encoder = encoder(width, width, code_base, teacher=True)
        self.decoder = decoder(width, code_base)
        self.train()

    def train(self, mode: bool = True) -> Paraphraser:
        """tf2 stays in evaluation mode."""
        return super().train(mode and self.code_base != "tf2")

    def loss(self, maps: Tensor) -> Tensor:
        """The error of the reconstruction of (B, C, H, W).

        rep: mean square; sib: mean absolute value; tf2: absolute values, plus 1e-6 times the factors', over B*H*W.
        """
        factors = self.encoder(maps)
        if self.code_base != "rep":  # on the way to the decoder alone; in tf2 for the second time
            factors = leaky_relu(factors, 0.2)
        decoded = self.decoder(factors)[:, :, : maps.shape[2], : maps.shape[3]]
        if self.code_base == "rep":
            return (decoded - maps).square().mean()
        if self.code_base == "sib":
            return (decoded - maps).abs().mean()
        return ((decoded - maps).abs().sum() + 1e-6 * factors.abs().sum()) / maps[:, 0].numel()


def encoder(in_channels: int, width: int, code_base: str, *, teacher: bool) -> nn.Sequential:
    """Three 3x3 convolutions from a map to factors; ``width`` is the teacher's.

    rep: in_channels, width/2, width/2 channels, slope 0.1 after each; the student's with batch normalisation. sib:
    width/2, /4, /8, stride 2 in the middle, slope 0.2, none at the end. tf2: the same widths, ReLU (not behind the
    student's third), batch normalisation, slope 0.2, no biases. sib, tf2: He initialisation over the outputs.
    """
    if code_base == "rep":
        widths, stride, slope = [in_channels, width // 2, width // 2], 1, 0.1
    else:
        widths, stride, slope = [width // 2, width // 4, max(width // 8, 1)], 2, 0.2
    layers: list[nn.Module] = []
    for number, out in enumerate(widths):
        step = stride if number == 1 else 1
        layers.append(nn.Conv2d(in_channels, out, 3, step, 1, bias=code_base != "tf2"))
        if code_base == "tf2" and (teacher or number < 2):
            layers.append(nn.ReLU())
        if code_base == "tf2" or (code_base == "rep" and not teacher):
            layers.append(nn.BatchNorm2d(out))
        if code_base != "sib" or number < 2:
            layers.append(nn.LeakyReLU(slope))
        in_channels = out
    return _initialised(layers, code_base)


def decoder(width: int, code_base: str) -> nn.Sequential:
    """Three transposed 3x3 convolutions from factors to a map of ``width`` channels, the mirror of ``encoder``.

    tf2: the last one ends with ReLU alone.
    """
    if code_base == "rep":
        widths, stride, slope = [width // 2, width // 2, width, width], 1, 0.1
    else:
        widths, stride, slope = [max(width // 8, 1), width // 4, width // 2, width], 2, 0.2
    layers: list[nn.Module] = []
    for number, (inside, out) in enumerate(pairwise(widths)):
        step = stride if number == 1 else 1
        bias = code_base != "tf2"
        layers.append(nn.ConvTranspose2d(inside, out, 3, step, 1, output_padding=step - 1, bias=bias))
        if code_base == "tf2":
            layers.append(nn.ReLU())
        if code_base == "tf2" and number < 2:
            layers.append(nn.BatchNorm2d(out))
        if code_base != "tf2" or number < 2:
            layers.append(nn.LeakyReLU(slope))
    return _initialised(layers, code_base)


def _initialised(layers: list[nn.Module], code_base: str) -> nn.Sequential:
    for layer in layers:
        if code_base != "rep" and isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
