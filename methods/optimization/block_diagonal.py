"""Adaptive gradient methods with block-diagonal matrices, and spectrum clipping.

Yun, Lozano and Yang, "Stochastic Gradient Methods with Block Diagonal Matrix Adaptation", 2019, arXiv:1905.10757
(AdaBlock, AISTATS 2022). No official code. The optimizer stands in ``block_optimizer``; what else it is compared with
in ``matrix_optimizers`` and torch. Deviations: see the class.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from runner import randomness
from runner.errors import UserError
from runner.fit import Fitted, fit, test_metrics
from runner.methods.optimization import rotated_blocks
from runner.methods.optimization.block_optimizer import Accumulation, BlockOptimizer, Grouping
from runner.methods.optimization.matrix_optimizers import GGT, Shampoo

if TYPE_CHECKING:
    from runner.context import Context

EARLY_EPOCH = 3  # whose training loss is reported
Positive = Annotated[int, Field(gt=0)]
PositiveNumber = Annotated[float, Field(gt=0)]


@dataclass(kw_only=True)
class BlockDiagonal:
    """Training with one second-moment matrix for each block of weights, beside diagonal and larger ones."""

    problem: Literal["classification", "rotated_blocks"] = "classification"  # rotated_blocks: a noisy quadratic
    permuted: bool = False  # of rotated_blocks: the Hessian's blocks are not the optimizer's
    steps: Positive = 600  # of rotated_blocks
    rates: list[PositiveNumber] = field(default_factory=list)  # the best is kept; []: recipe.optimizer.learning_rate
    optimizer: Literal["block_diagonal", "sgd", "adam", "rmsprop", "adagrad", "amsgrad", "ggt", "shampoo"] = (
        "block_diagonal"
    )
    block_size: Positive = 10  # 1: diagonal, and with clipping AdaBound
    grouping: Grouping = "rows"  # of a tensor's weights: by output, by input, kernels of a convolution, at random
    accumulation: Accumulation = "moving"  # of g g': Adam's and RMSprop's (momentum 0) kind, or Adagrad's
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999  # b2 of all that have one
    delta: PositiveNumber = 1e-4  # added to the roots of the eigenvalues
    bias_correction: bool = True
    clipping: PositiveNumber | None = None  # s*, to which the spectrum's bounds go; null: off
    clipping_speed: PositiveNumber = 1e-3  # gamma
    refresh_every: Positive = 1  # steps between eigendecompositions; Shampoo's too
    refresh_share: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the tensors, drawn at every refresh
    window: Positive = 100  # gradients that ggt keeps

    paper: ClassVar[str] = "arXiv:1905.10757"
    fidelity: ClassVar[str] = "reconstruction"
    claim: ClassVar[str] = (
        "Small blocks of second moments converge faster than diagonal ones and generalise better; clipping their "
        "spectrum, so that they end as SGD, generalises better still."
    )
    citation: ClassVar[str] = (
        "Yun, Lozano and Yang. Stochastic Gradient Methods with Block Diagonal Matrix Adaptation. 2019."
    )
    data: ClassVar[tuple[str, ...]] = ("images", "none")
    model: ClassVar[tuple[str, ...]] = ("classifier", "none")
    distributed: ClassVar[bool] = False
    deviations: ClassVar[tuple[str, ...]] = (
        "reconstructed from the abstracts: the bounds of the clipped spectrum are AdaBound's, the bias corrections and "
        "the place of delta Adam's, a refresh of a share of the layers draws each by itself",
        "of recipe.optimizer learning rate, momentum (b1) and weight decay count, not the name; the decay is "
        "decoupled, but for sgd, rmsprop and adagrad",
        "GGT and Shampoo precondition every tensor by itself; GGT leaves out what lies outside of its window's span",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns learning_rate, the one that was kept, and of rotated_blocks value (of the function, at the end); of
        classification accuracy (0..1), loss (nats), loss_training of the last epoch and loss_training_early of the
        third."""
        rates = self.rates or [ctx.recipe.optimizer.learning_rate]
        if self.problem == "rotated_blocks":
            found = {rate: self._minimise(ctx, rate) for rate in rates}
            best = min(found, key=found.__getitem__)
            metrics = {"value": found[best]}
        else:
            if ctx.settings.dataset.name == "none":
                raise UserError("method.problem=classification needs images: choose a dataset=")
            best, metrics = self._classify(ctx, rates)
        metrics["learning_rate"] = best
        ctx.log(**metrics)
        return metrics

    def build(self, ctx: Context, parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
        """The optimizer of the fields, over ``parameters``."""
        momentum, weight_decay = ctx.recipe.optimizer.momentum, ctx.recipe.optimizer.weight_decay
        parameters = list(parameters)
        if self.optimizer == "block_diagonal":
            return BlockOptimizer(
                parameters,
                rate,
                momentum=momentum,
                decay=self.decay,
                delta=self.delta,
                accumulation=self.accumulation,
                block_size=self.block_size,
                grouping=self.grouping,
                bias_correction=self.bias_correction,
                clipping=None if self.clipping is None else (self.clipping, self.clipping_speed),
                refresh_every=self.refresh_every,
                refresh_share=self.refresh_share,
                weight_decay=weight_decay,
                seed=ctx.seed,
            )
        if self.optimizer == "ggt":
            return GGT(
                parameters,
                rate,
                momentum=momentum,
                decay=self.decay,
                delta=self.delta,
                window=self.window,
                weight_decay=weight_decay,
            )
        if self.optimizer == "shampoo":
            return Shampoo(
                parameters,
                rate,
                momentum=momentum,
                delta=self.delta,
                refresh_every=self.refresh_every,
                weight_decay=weight_decay,
            )
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, rate, momentum=momentum, weight_decay=weight_decay)
        if self.optimizer == "rmsprop":
            return torch.optim.RMSprop(parameters, rate, alpha=self.decay, eps=self.delta, weight_decay=weight_decay)
        if self.optimizer == "adagrad":
            return torch.optim.Adagrad(parameters, rate, eps=self.delta, weight_decay=weight_decay)
        return torch.optim.AdamW(
            parameters,
            rate,
            betas=(momentum, self.decay),
            eps=self.delta,
            weight_decay=weight_decay,
            amsgrad=self.optimizer == "amsgrad",
        )

    def _minimise(self, ctx: Context, rate: float) -> float:
        """The quadratic's value after all steps; every rate sees the same function, start and noise."""

        def descend() -> float:
            with randomness.stream(ctx.seed, "rotated blocks"):
                hessian = rotated_blocks.draw_hessian(self.permuted)
                x = nn.Parameter(torch.randn(1, len(hessian), dtype=torch.float64))
                optimizer = self.build(ctx, [x], rate)
                for step in range(min(self.steps, ctx.scale.max_steps or self.steps)):
                    for group in optimizer.param_groups:
                        group["lr"] = rotated_blocks.rate_at(step, rate)
                    x.grad = rotated_blocks.noisy_gradient(x.data[0], hessian)[None]
                    optimizer.step()
                return rotated_blocks.value(x.data[0], hessian).item()

        return ctx.once(f"minimise {rate:g}", descend)

    def _classify(self, ctx: Context, rates: list[float]) -> tuple[float, dict[str, float]]:
        """Trains with every rate from the same weights; the best by validation accuracy is measured on the test."""
        if len(rates) > 1 and len(ctx.data.validation) == 0:
            raise UserError("method.rates: the best is chosen on validation images; set dataset.validation_fraction")
        start = ctx.model()
        trained = {rate: self._train(ctx, copy.deepcopy(start), rate) for rate in rates}
        validation = {
            rate: ctx.evaluate(model, "validation")["accuracy"] if len(rates) > 1 else 0.0
            for rate, (model, _, _) in trained.items()
        }
        best = max(rates, key=validation.__getitem__)
        model, fitted, means = trained[best]
        ctx.save_model(model)
        early = min(EARLY_EPOCH, len(means)) - 1
        losses = {"loss_training": means[-1].item(), "loss_training_early": means[early].item()}
        return best, {**test_metrics(ctx, model, fitted), **losses}

    def _train(self, ctx: Context, model: nn.Module, rate: float) -> tuple[nn.Module, Fitted, Tensor]:
        """The trained network and the mean training loss of every epoch."""
        curve = torch.zeros(ctx.recipe.epochs, 2, device=ctx.device)  # of every epoch the sum of losses, and images
        ctx.track(curve=curve)

        def loss(images: Tensor, labels: Tensor, epoch: int) -> Tensor:
            value = cross_entropy(model(images), labels, label_smoothing=ctx.recipe.label_smoothing)
            curve[epoch] += torch.stack([value.detach() * len(images), value.new_tensor(float(len(images)))])
            return value

        recipe = replace(ctx.recipe, optimizer=replace(ctx.recipe.optimizer, learning_rate=rate))
        optimizer = self.build(ctx, model.parameters(), rate)
        fitted = fit(ctx, model, loss, recipe, name=f"train {rate:g}", optimizer=optimizer)
        done = curve[curve[:, 1] > 0]
        return model, fitted, done[:, 0] / done[:, 1]
