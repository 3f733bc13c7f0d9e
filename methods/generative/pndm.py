"""PNDM: pseudo numerical methods, which sample a trained diffusion model in few steps.

Liu, Ren, Lin and Zhao, "Pseudo Numerical Methods for Diffusion Models on Manifolds", ICLR 2022, arXiv:2202.09778,
eq. 11-13, algorithms 1 and 2. Official code: luping-liu/PNDM (PyTorch). The samplers stand in ``samplers``; the
network is the cell ``ddpm``, or the estimate is exact, of points. Deviations: see the class.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from runner.errors import UserError
from runner.methods.generative import noise_prediction
from runner.methods.generative.exact_scores import Gaussian, Mixture
from runner.methods.generative.noise_prediction import Drawn, draw
from runner.methods.generative.noise_schedules import Diffusion
from runner.methods.generative.samplers import (
    SAMPLERS,
    Estimate,
    Flow,
    Table,
    levels_of,
    probability_flow,
    sample,
    steps_within,
    time_grid,
)

if TYPE_CHECKING:
    from runner.context import Context

Positive = Annotated[int, Field(gt=0)]


@dataclass(kw_only=True)
class PNDM:
    """Samplers of a trained diffusion model at equal steps or equal evaluations."""

    sampler: Literal["ddim", "s_pndm", "f_pndm", "pseudo_runge_kutta", "fon", "probability_flow"] = "f_pndm"
    steps: Positive = 50  # N
    counted: Literal["steps", "evaluations"] = "steps"  # what N counts; evaluations: the most steps that take no more
    tolerance: Annotated[float, Field(gt=0)] = 1e-5  # of the probability flow, relative and absolute
    table: Table = "prefixed"  # noise levels: behind the clean image's, or one level off as released
    estimate: Literal["network", "gaussian", "mixture"] = "network"  # of the noise; the others are exact, of points
    deviation: Annotated[float, Field(gt=0)] = 0.5  # of estimate=gaussian
    samples: Positive = 50_000
    sampling_batch_size: Positive = 512
    reference: bool = False  # compare with DDIM in T steps from the same noise, a run of its own
    components: Positive = 50  # principal ones, in which drawn images are compared with test images
    diffusion: Diffusion = field(default_factory=lambda: Diffusion(loss="absolute", antithetic=True))

    paper: ClassVar[str] = "arXiv:2202.09778"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "Combining noise estimates as multistep methods do, with DDIM's transfer kept, draws better images in 50 steps "
        "than DDIM in 1000."
    )
    citation: ClassVar[str] = (
        "Liu, Ren, Lin and Zhao. Pseudo Numerical Methods for Diffusion Models on Manifolds. ICLR 2022."
    )
    data: ClassVar[tuple[str, ...]] = ("images", "none")
    model: ClassVar[tuple[str, ...]] = ("noise predictor", "none")
    distributed: ClassVar[bool] = False
    deviations: ClassVar[tuple[str, ...]] = (
        "the clean image has alpha-bar 1; in the released code the whole table is one noise level off, which is "
        "table=released",
        "distances are taken in principal components of pixels, not in Inception features: their size is not FID's",
        "with model.weights the network is the user's, as in the paper; without, it is trained here as the released "
        "code trains",
    )

    def __post_init__(self) -> None:
        total = self.diffusion.steps
        if self.estimate == "network" and self.samples == 1:
            raise ValueError("samples: one image has no spread to compare with that of the test images; take 2 or more")
        if self.sampler == "probability_flow":
            if self.diffusion.schedule != "linear":
                raise ValueError(
                    f"sampler: the probability flow is that of schedule=linear, not {self.diffusion.schedule}"
                )
            if self.counted == "evaluations":
                raise ValueError("counted: the probability flow chooses its steps; set method.tolerance")
            return
        if self.counted == "steps" and self.steps > total:
            raise ValueError(f"steps: the diffusion has {total}, fewer than {self.steps}")
        steps = self._steps()
        if steps is None:
            raise ValueError(f"steps: {self.steps} evaluations are too few for one step of {self.sampler}")
        if self.table == "released" and time_grid(total, steps)[0][0] == total - 1:
            raise ValueError(f"table: the released one has no level for time {total - 1}, where {steps} steps begin")

    def _steps(self) -> int | None:
        if self.counted == "steps":
            return self.steps
        return steps_within(SAMPLERS[self.sampler], self.steps, self.diffusion.steps)

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns evaluations (of the network, for a sample) and steps; of images frechet_distance and squared_mmd to
        test images; with a reference rms_to_reference, and of a Gaussian rms_to_exact (pixels run from -1 to 1)."""
        estimate, shape, dtype = self._noise_estimate(ctx)
        others = self._reference(ctx) if self.reference else None
        total, betas = self.diffusion.steps, self.diffusion.betas()
        levels = levels_of(self.diffusion.alpha_bars(), self.table)
        grid = [] if self.sampler == "probability_flow" else time_grid(total, self._steps())
        start = levels[grid[0][0] + 1] if grid else self.diffusion.alpha_bars()[-1].item()

        def sampler(noise: Tensor) -> tuple[Tensor, dict[str, float]]:
            flow = Flow(estimate, levels)
            if grid:
                samples = sample(SAMPLERS[self.sampler], flow, noise, grid)
            else:
                samples = probability_flow(flow, noise, betas, self.tolerance)
            numbers = {"evaluations": float(flow.evaluations)}
            if self.estimate == "gaussian":
                exact = Gaussian(self.deviation).moved(noise, start, 1.0)
                numbers["squared_error"] = (samples - exact).square().mean().item()
            return samples, numbers

        drawn, metrics = draw(ctx, shape, self.samples, self.sampling_batch_size, sampler, dtype)
        metrics["steps"] = float(len(grid))
        if self.estimate == "network":
            metrics |= noise_prediction.distances(ctx, drawn, self.components)
        if self.estimate == "gaussian":
            metrics["rms_to_exact"] = math.sqrt(metrics.pop("squared_error"))
        if others is not None:
            metrics["rms_to_reference"] = ctx.once("distance to the reference", lambda: rms(drawn, others))
        ctx.log(**metrics)
        return metrics

    def _noise_estimate(self, ctx: Context) -> tuple[Estimate, tuple[int, ...], torch.dtype]:
        """With the shape and the type of what it estimates the noise of."""
        if self.estimate == "network":
            if ctx.settings.dataset.name == "none":
                raise UserError("method.estimate=network needs images: choose a dataset=, or estimate=gaussian|mixture")
            noise_prediction.use_symmetric_range(ctx)
            shape = (ctx.data.channels, ctx.data.image_size, ctx.data.image_size)
            network, _ = noise_prediction.trained(ctx, self.diffusion)
            return noise_prediction.noise_estimate(ctx, network), shape, torch.float32
        exact = Gaussian(self.deviation) if self.estimate == "gaussian" else Mixture()
        trained_with = levels_of(self.diffusion.alpha_bars(), "prefixed")  # whatever the sampler takes them for
        return lambda x, time: exact.noise(x, trained_with[int(time) + 1]), (exact.size,), torch.float64

    def _reference(self, ctx: Context) -> Drawn:
        """The samples of DDIM in T steps."""
        slow = replace(
            self,
            sampler="ddim",
            steps=self.diffusion.steps,
            counted="steps",
            tolerance=PNDM.tolerance,
            table="prefixed",
            reference=False,
        )
        cell = ctx.cell("pndm", asdict(slow), role="reference")
        folder = cell.artifact("samples")
        return Drawn(folder, len(list(folder.glob("*.safetensors"))))


def rms(first: Drawn, second: Drawn) -> float:
    """Root of the mean squared difference over all numbers of two equally large sets of samples."""
    total, count = 0.0, 0
    for one, other in zip(first, second, strict=True):
        total += (one.double() - other.double()).square().sum().item()
        count += one.numel()
    return math.sqrt(total / count)
