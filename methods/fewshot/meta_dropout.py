"""Meta-dropout: learned noise on the features of the support images, which makes them stand for unseen ones.

Lee, Nam, Yang and Hwang, "Meta Dropout: Learning to Perturb Latent Features for Generalization", ICLR 2020,
arXiv:1905.12914. Official code: haebeom-lee/metadrop (TensorFlow). Deviations: see the class.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from runner.errors import UserError
from runner.methods.fewshot.gradient_learner import GradientLearner
from runner.methods.fewshot.inner_loop import BatchStatisticsNorm, Weights, head_module, task_loss
from runner.methods.fewshot.meta_training import MetaTraining, measure, meta_learn, summary

if TYPE_CHECKING:
    from runner.context import Context

Noise = Literal["learned", "input_independent", "fixed", "deterministic", "none"]
Size = Annotated[int, Field(gt=0)]
NORM_EPSILON = (
    1e-3  # of batch normalisation, which has no scales either: TensorFlow's layer as the released code has it
)


@dataclass(kw_only=True)
class MetaDropout:
    """MAML whose inner steps see features multiplied by noise, with means that a second set of weights computes."""

    rate: Annotated[float, Field(gt=0)] = 0.1  # of the inner steps
    steps: Size = 5
    noise: Noise = "learned"
    # learned: its mean is a convolution of the features; input_independent: a number for every channel; fixed: mean 0;
    # deterministic: the learned factor without noise; none: MAML
    samples: Size = 1  # of the noise in a training task's inner loss
    test_samples: Size = 30  # in validation and test
    initial_deviation: Annotated[float, Field(gt=0)] | None = 0.02  # of all weights; null: the model's own weights
    train_tasks: Annotated[int, Field(ge=0)] = 0  # training tasks measured as the test's, for accuracy_train; 0: none
    training: MetaTraining = field(
        default_factory=lambda: MetaTraining(gradient_limit=3.0, validation_tasks=0, test_tasks=1000)
    )

    paper: ClassVar[str] = "arXiv:1905.12914"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "Noise that is learned to imitate test examples, from the query loss alone, generalises better than MAML and "
        "fixed noise."
    )
    data: ClassVar[tuple[str, ...]] = ("episodes",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Lee, Nam, Yang, Hwang. Meta Dropout: Learning to Perturb Latent Features for Generalization. ICLR 2020."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "convolutions pad symmetrically; initialisation and tasks are this project's random streams",
        "the recipe is that of Omniglot, 20-way 1-shot; the others stand in the table meta_dropout/few_shot",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns what ``meta_learn`` returns, and with ``train_tasks`` accuracy_train, on training classes."""
        network = ctx.model()
        if self.initial_deviation is not None and ctx.settings.model.weights is not None:
            raise UserError(
                f"model.weights={ctx.settings.model.weights}: method.initial_deviation={self.initial_deviation} would "
                "overwrite them; set method.initial_deviation=null"
            )
        learner = ctx.initialised("learner", lambda: MetaDropoutLearner(network, self))
        metrics = meta_learn(ctx, learner, self.training, outer=learner.outer, predict=learner.predict)
        if self.train_tasks:
            rows = measure(
                ctx, "training_tasks", learner, learner.predict, "train", self.train_tasks, self.training.batched
            )
            metrics["accuracy_train"] = summary(rows)["accuracy"]
            ctx.log(accuracy_train=metrics["accuracy_train"])
        return metrics


class MetaDropoutLearner(GradientLearner):
    """The meta-parameters: theta, the weights of ``network``, which tasks adapt; and phi, those of the noise, which
    they do not: ``noises`` (convolutions as the network's) and ``head_noise`` (one number an example)."""

    def __init__(self, network: nn.Module, settings: MetaDropout) -> None:
        convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
        for convolution in convolutions:
            if convolution.bias is None:  # the factors multiply it, so batch normalisation does not take it away
                convolution.bias = nn.Parameter(convolution.weight.new_zeros(convolution.out_channels))
        super().__init__(network, rate=settings.rate, steps=settings.steps, adapt_norm=False)
        self.settings = settings
        self.sampling = False  # whether a forward pass draws noise
        for module in network.modules():
            if isinstance(module, BatchStatisticsNorm):
                module.eps = NORM_EPSILON
                module.weight.requires_grad_(False)
        head = network.get_submodule(head_module(network))
        self.noises = nn.ModuleList()
        self.head_noise = nn.Linear(head.in_features, 1)
        if settings.noise != "none":
            self.noises.extend(noise_of(convolution) for convolution in convolutions)
            for convolution, noise in zip(convolutions, self.noises, strict=True):
                convolution.register_forward_hook(partial(self._perturbed_features, noise))
            head.register_forward_hook(self._perturbed_logits)
        if settings.initial_deviation is not None:
            for module in (*convolutions, *self.noises, head, self.head_noise):
                initialise(module, settings.initial_deviation)
        if settings.noise not in ("learned", "deterministic"):
            for noise in (*self.noises, self.head_noise):
                nn.init.zeros_(noise.weight).requires_grad_(False)
                nn.init.zeros_(noise.bias).requires_grad_(settings.noise == "input_independent")

    def support_loss(self, support: Tensor, support_targets: Tensor) -> Callable[[Weights, int], Tensor]:
        """The mean over draws of the noise of the support set's loss; each step draws anew."""
        samples = self.settings.samples if self.training else self.settings.test_samples
        drawn = self.settings.noise not in ("deterministic", "none")

        def loss(weights: Weights, step: int) -> Tensor:
            def one(_: Tensor) -> Tensor:
                return task_loss(self.forward_at(weights, step, support), support_targets)

            self.sampling = drawn
            try:
                if not drawn or samples == 1:
                    return one(support)
                return vmap(one, randomness="different")(torch.arange(samples, device=support.device)).mean()
            finally:
                self.sampling = False  # query images get no noise

        return loss

    # ---- hooks on the network's layers -----------------------------------------------------------------------------

    def _perturbed_features(
        self, noise: nn.Conv2d, convolution: nn.Conv2d, inputs: tuple[Tensor], mean: Tensor
    ) -> Tensor:
        """The convolution's output times the factor that its own input gives, before batch normalisation."""
        return mean * factor(noise(inputs[0]), self.sampling)

    def _perturbed_logits(self, head: nn.Linear, inputs: tuple[Tensor], logits: Tensor) -> Tensor:
        if not self.sampling:
            return logits
        return logits + logit_deviation(self.head_noise(inputs[0])) * torch.randn_like(logits)


def factor(alpha: Tensor, sampling: bool) -> Tensor:
    """softplus(z), with z drawn from N(alpha, 1) elementwise, or z = alpha without sampling."""
    return F.softplus(alpha + torch.randn_like(alpha) if sampling else alpha)


def logit_deviation(alpha: Tensor) -> Tensor:
    """The standard deviation (B, 1) of all logits of each example, from the number alpha (B, 1)."""
    return F.softplus(alpha)


def noise_of(convolution: nn.Conv2d) -> nn.Conv2d:
    """A convolution of the same shape, with a bias."""
    noise = copy.deepcopy(convolution)
    noise.bias = nn.Parameter(torch.zeros(convolution.out_channels))
    return noise


def initialise(module: nn.Conv2d | nn.Linear, deviation: float) -> None:
    """Normal weights, those of convolutions within two deviations, and zero biases."""
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    else:
        nn.init.normal_(module.weight, std=deviation)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
