"""Optimizers and learning-rate schedules of a recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from runner.schema import OptimizerSettings, ScheduleSettings

ONE_CYCLE_RISE = 0.3  # part of all steps; these three are torch's defaults
ONE_CYCLE_START = 25.0  # the base rate over the first
ONE_CYCLE_END = 1e4  # the first over the last
WARMUP_FLOOR = 1e-3  # of the base rate: where cosine_after_warmup starts and ends


class TensorFlowSGD(torch.optim.Optimizer):
    """SGD with momentum as TensorFlow 2 defines it: the learning rate is inside the velocity.

    v <- momentum * v - lr * g;  w <- w + v, or with Nesterov w <- w + momentum * v - lr * g.
    Equal to torch.optim.SGD until the learning rate changes; after a drop the old velocity keeps its size.
    Weight decay is coupled: g + weight_decay * w.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update; ``closure`` is not supported."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            gradients = [weight.grad for weight in weights]
            for weight in weights:
                if "velocity" not in self.state[weight]:
                    self.state[weight]["velocity"] = torch.zeros_like(weight)
            velocities = [self.state[weight]["velocity"] for weight in weights]
            if group["weight_decay"]:
                gradients = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, gradients, alpha=-group["lr"])
            if group["nesterov"]:
                torch._foreach_add_(weights, velocities, alpha=group["momentum"])
                torch._foreach_add_(weights, gradients, alpha=-group["lr"])
            else:
                torch._foreach_add_(weights, velocities)


def build_optimizer(parameters: Iterable[torch.nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimizer that a recipe names, over the parameters that require gradients."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.name == "sgd":
        return torch.optim.SGD(
            trainable,
            rate,
            momentum=settings.momentum,
            nesterov=settings.nesterov and settings.momentum > 0,
            weight_decay=decay,
        )
    if settings.name == "sgd_tensorflow":
        return TensorFlowSGD(trainable, rate, settings.momentum, settings.nesterov, decay)
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(trainable, rate, betas=(settings.momentum, 0.999), weight_decay=decay)


def learning_rate(base: float, settings: ScheduleSettings, *, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of a 0-based step.

    ``step``: milestones are fractions of all epochs, rounded down to whole epochs, the first epoch always at the base
    rate. All others move every step, and with t the part of all steps that is done: ``cosine``: (1 + cos(pi t)) / 2;
    ``linear``: 1 - t; ``polynomial``: (1 - t)^power; ``one_cycle`` (Smith and Topin, arXiv:1708.07120, the learning
    rate alone): from base / 25 to base in the first 30% of the steps and to base / 250,000 at the last, along cosines,
    as torch's OneCycleLR has it. A linear warm-up over ``warmup_epochs`` multiplies what the schedule says; in
    ``cosine_after_warmup`` it comes before it instead: from a thousandth of the base rate up to it, and back along a
    cosine over the steps that remain.
    """
    epoch = step // steps_per_epoch
    done = step / (steps_per_epoch * epochs)
    rate = base
    if settings.name == "step":
        passed = sum(epoch >= _milestone_epoch(milestone, epochs) for milestone in settings.milestones)
        rate *= settings.factor**passed
    elif settings.name == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / (steps_per_epoch * epochs)))
    elif settings.name == "linear":
        rate *= 1 - done
    elif settings.name == "polynomial":
        rate *= (1 - done) ** settings.power
    elif settings.name == "one_cycle":
        return base * _one_cycle(step, steps_per_epoch * epochs)
    elif settings.name == "cosine_after_warmup":
        rise = int(settings.warmup_epochs * steps_per_epoch)
        if step < rise:
            return base * (WARMUP_FLOOR + (1 - WARMUP_FLOOR) * step / rise)
        return base * _along_cosine(1.0, WARMUP_FLOOR, (step - rise) / (steps_per_epoch * epochs - rise))
    warmup = settings.warmup_epochs * steps_per_epoch
    return rate * min(1.0, (step + 1) / warmup) if warmup else rate


def _one_cycle(step: int, steps: int) -> float:
    top, last = ONE_CYCLE_RISE * steps - 1, steps - 1
    low, end = 1 / ONE_CYCLE_START, 1 / (ONE_CYCLE_START * ONE_CYCLE_END)
    if step <= top:
        return _along_cosine(low, 1.0, step / top)
    return _along_cosine(1.0, end, (step - top) / (last - top))


def _along_cosine(start: float, end: float, part: float) -> float:
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * part))


def _milestone_epoch(milestone: float, epochs: int) -> int:
    # the small number: 0.7 * 90 is 62.99... in floating point, and means epoch 63
    return max(1, int(milestone * epochs + 1e-9))
