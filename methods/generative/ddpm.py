"""Denoising diffusion probabilistic models: a network predicts the noise in noisy images; images are drawn by steps.

Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020, arXiv:2006.11239, algorithms 1 and 2.
Official code: hojonathanho/diffusion (TensorFlow). The weights of a run with samples=0 are what methods that sample
(pndm) start from. Deviations: see the class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from runner.methods.generative import noise_prediction
from runner.methods.generative.noise_schedules import Diffusion
from runner.methods.generative.samplers import ancestral_step

if TYPE_CHECKING:
    from runner.context import Context


@dataclass(kw_only=True)
class DDPM:
    """A diffusion model: training by noise prediction, ancestral sampling."""

    diffusion: Diffusion = field(default_factory=Diffusion)
    samples: Annotated[int, Field(ge=0)] = 50_000  # images drawn; 0: the run is the training alone
    sampling_batch_size: Annotated[int, Field(gt=0)] = 512
    variance: Literal["posterior", "beta"] = "beta"  # of a sampling step
    clip: bool = True  # the estimate of the clean image, to -1 .. 1
    components: Annotated[int, Field(gt=0)] = 50  # principal ones, in which drawn images are compared with test images

    paper: ClassVar[str] = "arXiv:2006.11239"
    fidelity: ClassVar[str] = "paper"
    claim: ClassVar[str] = "A network that predicts noise under the simplified loss draws images as good as a GAN's."
    citation: ClassVar[str] = "Ho, Jain and Abbeel. Denoising Diffusion Probabilistic Models. NeurIPS 2020."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("noise predictor",)
    deviations: ClassVar[tuple[str, ...]] = (
        "the network is that of the DDIM repository (PyTorch): the same layers, of which none starts at zero",
        "an epoch ends with a smaller batch; the released code draws batches without end",
        "the distance is taken in principal components of pixels, not in Inception features: its size is not FID's",
    )

    def __post_init__(self) -> None:
        if self.samples == 1:
            raise ValueError("samples: one image has no spread to compare with that of the test images; take 0, or 2")

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns loss, the mean squared error of the noise on test images; of drawn ones frechet_distance and
        squared_mmd to them."""
        noise_prediction.use_symmetric_range(ctx)
        if self.samples == 0:
            network = noise_prediction.train(ctx, self.diffusion)
            loss = ctx.once("loss on test images", lambda: noise_prediction.loss_on(ctx, network, self.diffusion))
            noise_prediction.save(ctx, network)
            return {"loss": loss}
        network, metrics = noise_prediction.trained(ctx, self.diffusion)
        estimate = noise_prediction.noise_estimate(ctx, network)
        betas, levels = self.diffusion.betas().tolist(), self.diffusion.alpha_bars().tolist()

        @torch.no_grad()
        def ancestral(x: Tensor) -> tuple[Tensor, dict[str, float]]:
            for t in reversed(range(self.diffusion.steps)):
                fresh = torch.randn_like(x)
                x = ancestral_step(x, estimate(x, t), fresh, t, betas, levels, self.variance, self.clip)
            return x, {"evaluations": self.diffusion.steps}

        shape = (ctx.data.channels, ctx.data.image_size, ctx.data.image_size)
        drawn, _ = noise_prediction.draw(ctx, shape, self.samples, self.sampling_batch_size, ancestral)
        found = {**metrics, **noise_prediction.distances(ctx, drawn, self.components)}
        ctx.log(**found)
        return found
