"""Sampling-based inference for the linearised Laplace approximation of a trained classifier.

Antoran, Padhy, Barbano, Nalisnick, Janz, Hernandez-Lobato, "Sampling-based inference for large linear models, with
application to linearised Laplace", ICLR 2023, arXiv:2210.04994. Official code: cambridge-mlg/sampled-laplace. The
products stand in ``linearisation``, the formulas in ``laplace``; deviations: see the class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from runner.errors import UserError
from runner.methods.optimization.laplace import (
    Dense,
    averaged_softmax,
    dyadic_counts,
    effective_dimension,
    gibbs_probit,
    joint_log_likelihood,
    prior_scale,
    updated_precision,
)
from runner.methods.optimization.linearisation import (
    Linearisation,
    curvature_roots,
    softmax_curvature,
    weighted_squares,
)

if TYPE_CHECKING:
    from runner.context import Context

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
LARGEST = 3000  # weights of an exact reference


@dataclass(kw_only=True)
class LinearisedLaplace:
    """Posterior samples of a linearised network by stochastic optimisation, prior precision by EM, and a g-prior."""

    precision: Rate = 1.0  # of the prior, before the first EM step
    samples: Positive = 8
    em_steps: Positive = 10
    g_prior: bool = True  # weights scaled so that the curvature's diagonal is 1
    objective: Literal["new", "original"] = "new"  # noise in the prior's mean, or in the targets
    update: Literal["weight", "function"] = "weight"  # where the effective dimension is measured
    jitter: Annotated[float, Field(ge=0)] = 1e-6  # added to the curvature's diagonal
    batch_size: Positive = 2000
    mode_epochs: Positive = 15  # of the linear model's mode, a step
    mode_rate: Rate = 0.1  # Adam
    epochs: Positive = 20  # of the samples, a step
    rate: Rate = 200.0  # SGD with Nesterov's momentum; the released run without g-prior has 0.2, and precision 1000
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    gradient_limit: Rate | None = None  # largest norm over all samples; null: off
    polyak: Annotated[float, Field(gt=0, le=1)] | None = 0.01  # step of the samples' moving average; null: the last
    rescale: Rate = 1.0  # the first linear layer is multiplied by it and the next divided, which ReLU does not notice
    exact: bool = False  # beside it the exact posterior, for networks of at most 3000 weights
    angles: list[float] = field(default_factory=lambda: [0, 15, 30, 45, 60, 75, 90, 120, 150, 180])  # degrees, tests

    paper: ClassVar[str] = "arXiv:2210.04994"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "Posterior samples from randomised least squares make linearised Laplace work for networks whose Hessian "
        "cannot be formed."
    )
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Antoran, Padhy, Barbano, Nalisnick, Janz, Hernandez-Lobato. Sampling-based inference for large linear models, "
        "with application to linearised Laplace. ICLR 2023."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "the moving average goes on over the EM steps and predicts; the released code restarts it at zero in each and "
        "predicts with the last iterates",
        "pairs of the joint log-likelihood join the test set's halves, not those of its batches of 2000",
        "rates are constant within an EM step; the released CIFAR-100 runs lower them linearly",
        "the tomography of the paper is left out, and so is its test on corrupted images",
        "diagonal, Kronecker-factored and last-layer Laplace, dropout and ensembles are not built",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns prior_precision, effective_dimension; of the test images turned by each angle A log_likelihood_map_A,
        _gibbs_A and _mc_A (nats an image) and accuracy_A (0..1, that of the trained network); accuracy; the joint
        log-likelihoods of pairs joint_map and joint_mc (nats a group of 10); with ``exact`` also
        prior_precision_exact, precision_ratio, variance_correlation and variance_error (relative)."""
        network = ctx.trained_model("baseline")
        with torch.no_grad():
            rescale_layers(network, self.rescale)
        line = Linearisation(network)
        if self.exact and line.size > LARGEST:
            raise UserError(f"method.exact: the network has {line.size} weights; the exact posterior takes {LARGEST}")
        batches = ctx.batches("train", self.batch_size, augment=False)
        noise = ctx.once("noise", lambda: self._noise(ctx, line))
        noise = {name: value.to(ctx.device) for name, value in noise.items()}
        if self.g_prior:
            line.scale = prior_scale(noise["squares"], self.samples)
        found = self._infer(ctx, line, batches, noise)
        metrics = {"prior_precision": found["precision"], "effective_dimension": found["dimension"]}
        samples = found["samples"]
        if self.exact:
            metrics |= ctx.once("exact", lambda: self._compare(ctx, line, samples, found["precision"]))
        metrics |= ctx.once("predictions", lambda: self._predict(ctx, line, samples))
        ctx.log(**metrics)
        return metrics

    def _noise(self, ctx: Context, line: Linearisation) -> dict[str, Tensor]:
        """Of the prior (K, P), of the data sum_n J_n' B_n^1/2 xi_n (K, P), the sum of its squared terms (P,), and of
        the original objective the targets B_n^-1/2 xi_n (N, K, O)."""
        count, size = len(ctx.data.train), self.samples
        found = {"prior": torch.randn(size, line.size), "squares": torch.zeros(line.size, device=ctx.device)}
        found["data"] = torch.zeros(size, line.size, device=ctx.device)
        if self.objective == "original":
            found["targets"] = torch.zeros(count, size, ctx.data.num_classes)
        for images, _, index in ctx.batches("train", self.batch_size, shuffle=False, augment=False).iterate(0):
            logits = line.outputs(line.weights, images)
            root, inverse = curvature_roots(softmax_curvature(logits, self.jitter))
            draws = torch.randn(size, *logits.shape).to(ctx.device)
            scattered = torch.einsum("nop,knp->kno", root, draws)
            found["data"] += line.transposed(images, scattered)
            found["squares"] += line.squares(images, scattered)
            if "targets" in found:
                found["targets"][index.cpu()] = torch.einsum("nop,knp->nko", inverse, draws).cpu()
        return found

    def _infer(self, ctx: Context, line: Linearisation, batches: Any, noise: dict[str, Tensor]) -> dict[str, Any]:
        """The EM loop: the linear model's mode, the samples, then the prior precision."""
        count = len(ctx.data.train)
        theta = torch.zeros(1, line.size, device=ctx.device)
        samples = noise["prior"] / self.precision**0.5  # where the weights matter to no datum, this is the posterior
        average = torch.zeros_like(samples)
        state: dict[str, Any] = {"precision": self.precision, "dimension": 0.0}
        ctx.track(theta=theta, samples=samples, average=average, state=state)
        for _ in ctx.loop("em", self.em_steps):
            precision = state["precision"]
            self._find_mode(ctx, line, batches, theta, precision / count)
            self._sample(ctx, line, batches, noise, samples, average, precision)
            if self.polyak is not None:
                samples.copy_(average)  # the next step's start
            weight_space = self.update == "weight"
            squares = samples.square().sum(1) if weight_space else self._squares(ctx, line, samples)
            state["dimension"] = effective_dimension(squares, precision, line.size, weight_space=weight_space)
            state["precision"] = updated_precision(state["dimension"], theta)
            ctx.log(prior_precision=state["precision"], effective_dimension=state["dimension"])
        return {**state, "samples": samples}

    def _find_mode(self, ctx: Context, line: Linearisation, batches: Any, theta: Tensor, precision: float) -> None:
        optimizer = torch.optim.Adam([theta], self.mode_rate)
        ctx.track(optimizer=optimizer)
        for images, labels, _ in ctx.loop("mode", batches, epochs=self.mode_epochs):
            logits = line.products(images, theta)[0]
            loss = cross_entropy(logits, labels) + precision / 2 * theta.square().sum()
            slope = (logits.softmax(1) - torch.nn.functional.one_hot(labels, logits.shape[1])) / len(labels)
            theta.grad = line.transposed(images, slope[None]) + precision * theta
            optimizer.step()
            ctx.log(loss=loss)

    def _sample(
        self,
        ctx: Context,
        line: Linearisation,
        batches: Any,
        noise: dict[str, Tensor],
        samples: Tensor,
        average: Tensor,
        precision: float,
    ) -> None:
        optimizer = torch.optim.SGD([samples], self.rate, momentum=self.momentum, nesterov=self.momentum > 0)
        ctx.track(optimizer=optimizer)
        centre = noise["prior"] / precision**0.5
        if self.objective == "new":
            centre = centre + line.scale * noise["data"] / precision
        count, classes = len(ctx.data.train), ctx.data.num_classes
        for images, _, index in ctx.loop("samples", batches, epochs=self.epochs):
            curvature = softmax_curvature(line.outputs(line.weights, images), self.jitter)
            targets = noise["targets"][index].transpose(0, 1) if self.objective == "original" else None
            data, prior = objective_gradient(line, images, curvature, samples, centre, precision, targets)
            samples.grad = (data / len(images) + prior / count) / classes
            if self.gradient_limit is not None:
                nn.utils.clip_grad_norm_([samples], self.gradient_limit)
            optimizer.step()
            if self.polyak is not None:
                average.lerp_(samples, self.polyak)
            ctx.log(gradient_norm=samples.grad.norm())

    def _squares(self, ctx: Context, line: Linearisation, samples: Tensor) -> Tensor:
        found = torch.zeros(len(samples), device=ctx.device)
        for images, _, _ in ctx.batches("train", self.batch_size, shuffle=False, augment=False).iterate(0):
            curvature = softmax_curvature(line.outputs(line.weights, images), self.jitter)
            found += weighted_squares(line.products(images, samples), curvature)
        return found

    def _compare(self, ctx: Context, line: Linearisation, samples: Tensor, precision: float) -> dict[str, float]:
        """Against the exact posterior and the exact EM path of as many steps."""
        images, labels = _whole(ctx, ctx.data.train)
        dense = Dense(line.jacobian(images), softmax_curvature(line.outputs(line.weights, images), self.jitter))
        exact, theta = self.precision, torch.zeros(line.size, device=ctx.device)
        for _ in range(min(self.em_steps, ctx.scale.max_steps or self.em_steps)):
            theta = dense.mode(labels, exact, theta)
            exact = updated_precision(dense.effective_dimension(exact), theta)
        tested, _ = _whole(ctx, ctx.data.test)
        variances = dense.variances(line.jacobian(tested), precision)
        estimates = line.products(tested, samples).square().mean(0)
        both = torch.stack((variances.flatten(), estimates.flatten()))
        return {
            "prior_precision_exact": exact,
            "precision_ratio": precision / exact,
            "variance_correlation": float(torch.corrcoef(both)[0, 1]),
            "variance_error": float((estimates - variances).norm() / variances.norm()),
        }

    def _predict(self, ctx: Context, line: Linearisation, samples: Tensor) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for angle in self.angles:
            test = turned(ctx.data.test, angle)
            batches = ctx.batches(test, ctx.recipe.evaluation_batch_size, shuffle=False, augment=False).iterate(0)
            parts = [(line.outputs(line.weights, x), line.products(x, samples), y) for x, y, _ in batches]
            logits, labels = (torch.cat([part[place] for part in parts]) for place in (0, 2))
            drawn = torch.cat([part[1] for part in parts], 1)
            rows = torch.arange(len(labels), device=labels.device)
            name = f"{angle:g}"
            for kind, log_probabilities in (
                ("map", logits.log_softmax(1)),
                ("gibbs", gibbs_probit(logits, drawn.square().mean(0))),
                ("mc", averaged_softmax(logits, drawn)),
            ):
                metrics[f"log_likelihood_{kind}_{name}"] = float(log_probabilities[rows, labels].mean())
            metrics[f"accuracy_{name}"] = float((logits.argmax(1) == labels).double().mean())
            if angle == 0:
                counts = dyadic_counts(len(labels) // 2).to(labels.device)
                each = (logits + drawn).log_softmax(2)[:, rows, labels]
                metrics["joint_mc"] = joint_log_likelihood(each, counts)
                metrics["joint_map"] = joint_log_likelihood(logits.log_softmax(1)[rows, labels][None], counts)
                metrics["accuracy"] = metrics[f"accuracy_{name}"]
        return metrics


def objective_gradient(
    line: Linearisation,
    images: Tensor,
    curvature: Tensor,
    samples: Tensor,
    centre: Tensor,
    precision: float,
    targets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of the data term and of the prior term of samples z (K, P), each (K, P).

    1/2 sum_n |J_n z - y_n|^2 in the metric B_n, and lam / 2 |z - centre|^2. The new objective has no targets and its
    data noise in the centre; the original one has targets (K, B, O) and the prior's draw as centre.
    """
    outputs = line.products(images, samples)
    if targets is not None:
        outputs = outputs - targets
    data = line.transposed(images, torch.einsum("nop,knp->kno", curvature, outputs))
    return data, precision * (samples - centre)


def rescale_layers(network: nn.Module, factor: float) -> None:
    """Multiplies the first linear layer by ``factor`` and divides the weights of the next by it, in place.

    Raises UserError: there are no two linear layers.
    """
    if factor == 1:
        return
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if len(layers) < 2:
        raise UserError("method.rescale: the network has no two linear layers; use model=grey_perceptron")
    layers[0].weight.mul_(factor)
    if layers[0].bias is not None:
        layers[0].bias.mul_(factor)
    layers[1].weight.div_(factor)


def turned(images: Any, angle: float) -> Any:
    """The split with its images turned by ``angle`` degrees, bilinearly; what comes in is 0."""
    if not angle:
        return images
    from torchvision.transforms.v2.functional import InterpolationMode, rotate

    found = images.take(torch.arange(len(images), device=images.labels.device))
    found.images = rotate(found.images, angle, InterpolationMode.BILINEAR)
    return found


def _whole(ctx: Context, split: Any) -> tuple[Tensor, Tensor]:
    """All images of a split, normalised, and their labels."""
    images, labels, _ = next(iter(ctx.batches(split, len(split), shuffle=False, augment=False).iterate(0)))
    return images, labels
