"""Training a network to predict noise, its stored weights, and drawing images with it: what diffusion methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from runner.datasets.images import Images, Normalisation
from runner.fit import fit
from runner.methods.generative.noise_schedules import Diffusion, antithetic_times, diffused
from runner.methods.generative.sample_quality import Components, frechet_distance, squared_mmd
from runner.methods.generative.samplers import Estimate
from runner.storage import write_tensors

if TYPE_CHECKING:
    from runner.context import Context

WEIGHTS = "noise_predictor.safetensors"
HALF_RANGE = 127.5  # of a pixel
LOSS_LEVELS = 10  # times at which the loss on held-out images is taken


def use_symmetric_range(ctx: Context) -> None:
    """Pixels run from -1 to 1, whatever their statistics are."""
    half = torch.full((ctx.data.channels,), HALF_RANGE, device=ctx.device)
    ctx.data.normalisation = Normalisation(half, half)


def symmetric(images: Images) -> Tensor:
    """All images as numbers from -1 to 1: (N, C, H, W) float32."""
    return images.images.float() / HALF_RANGE - 1


# ---- training --------------------------------------------------------------------------------------------------------


def train(ctx: Context, diffusion: Diffusion) -> nn.Module:
    """The config's network after the recipe's epochs, with the moving average of its weights where the recipe has one.

    Each image of a batch gets a time and noise of its own. The squared error is a mean over pixels (Ho et al.'s
    simplified loss), the absolute one a sum (as released with PNDM).
    """
    network = ctx.model()
    levels = diffusion.alpha_bars().float().to(ctx.device)

    def loss(images: Tensor) -> Tensor:
        if diffusion.antithetic:
            times = antithetic_times(len(images), diffusion.steps, images.device)
        else:
            times = torch.randint(diffusion.steps, (len(images),), device=images.device)
        noise = torch.randn_like(images)
        error = predicted(network, diffused(images, noise, levels[times]), times) - noise
        return error.square().mean() if diffusion.loss == "squared" else error.abs().flatten(1).sum(1).mean()

    fitted = fit(ctx, network, loss, validate=False)
    ctx.track(model=None, optimizer=None, best=None, averaged=None, gradients=None)
    return fitted.averaged or network


def loss_on(ctx: Context, network: nn.Module, diffusion: Diffusion) -> float:
    """Mean squared error of the noise over the test images and ten times spread evenly, noise drawn once."""
    levels = diffusion.alpha_bars()
    network.eval()
    total, count = torch.zeros((), dtype=torch.float64), 0
    with torch.no_grad(), ctx.autocast():
        for images, *_ in ctx.batches("test", ctx.recipe.evaluation_batch_size, shuffle=False, augment=False).iterate(
            0
        ):
            for place in range(LOSS_LEVELS):
                time = int((place + 0.5) / LOSS_LEVELS * diffusion.steps)
                noise = torch.randn_like(images)
                times = torch.full((len(images),), time, device=images.device)
                error = predicted(network, diffused(images, noise, levels[time].item()), times) - noise
                total += error.double().square().sum().cpu()
                count += error.numel()
    return (total / count).item()


def predicted(network: nn.Module, x: Tensor, times: Tensor) -> Tensor:
    """The network's estimate of the noise in x (B, C, ...); the first half of what estimates variances too."""
    return network(x, times)[:, : x.shape[1]].float()


def save(ctx: Context, network: nn.Module) -> None:
    write_tensors(ctx.artifact(WEIGHTS), network.state_dict())


def trained(ctx: Context, diffusion: Diffusion) -> tuple[nn.Module, dict[str, float]]:
    """The network of the ``ddpm`` cell with this model, data and recipe, and what it measured; or the network with
    ``model.weights`` where they are set."""
    if ctx.settings.model.weights is not None:
        return ctx.model().eval(), {}
    cell = ctx.cell("ddpm", {"diffusion": asdict(diffusion), "samples": 0}, role="diffusion")
    network = ctx.model().eval()
    network.load_state_dict(load_file(cell.artifact(WEIGHTS)))
    return network, cell.metrics


def noise_estimate(ctx: Context, network: nn.Module) -> Estimate:
    """The network as samplers call it: one time, which may be fractional, for all of x."""

    def estimate(x: Tensor, time: float) -> Tensor:
        with ctx.autocast():
            return predicted(network, x, torch.full((len(x),), float(time), device=x.device))

    return estimate


# ---- drawing ---------------------------------------------------------------------------------------------------------


class Drawn:
    """Samples on disk under artifacts/samples/, one file a batch."""

    def __init__(self, folder: Path, batches: int) -> None:
        self.folder, self.batches = folder, batches

    def file(self, number: int) -> Path:
        return self.folder / f"{number:05d}.safetensors"

    def __iter__(self) -> Iterator[Tensor]:
        """The batches in order, on the CPU."""
        for number in range(self.batches):
            yield load_file(self.file(number))["samples"]


def draw(
    ctx: Context,
    shape: tuple[int, ...],
    count: int,
    batch_size: int,
    sampler: Callable[[Tensor], tuple[Tensor, dict[str, float]]],
    dtype: torch.dtype = torch.float32,
) -> tuple[Drawn, dict[str, float]]:
    """``count`` samples by a function of noise (B, *shape), which returns them and numbers about them (``evaluations``
    of the network); and the means of these numbers. The same seed and sizes give every sampler the same noise."""
    drawn = Drawn(ctx.artifact("samples/batch").parent, -(-count // batch_size))
    sums: dict[str, float] = {"samples": 0}
    ctx.track(sums=sums)
    loop = ctx.loop("sample", drawn.batches)
    drawn.batches = loop.total
    for number in loop:
        size = min(batch_size, count - number * batch_size)
        samples, numbers = sampler(torch.randn(size, *shape, dtype=dtype).to(ctx.device))
        write_tensors(drawn.file(number), {"samples": samples})
        sums["samples"] += size
        for name, value in numbers.items():
            sums[name] = sums.get(name, 0.0) + size * value
        ctx.log(**numbers)
    ctx.track(sums=None)
    return drawn, {name: value / sums["samples"] for name, value in sums.items() if name != "samples"}


def distances(ctx: Context, drawn: Drawn, components: int) -> dict[str, float]:
    """``frechet_distance`` and ``squared_mmd`` of drawn images to the test images, in principal components of the
    training images; pixels are cut to -1 .. 1 as for showing them."""

    def measure() -> dict[str, float]:
        space = Components.of(symmetric(ctx.data.train).cpu(), components)
        samples = torch.cat([space.features(batch.clamp(-1, 1)) for batch in drawn])
        held_out = space.features(symmetric(ctx.data.test).cpu())
        return {
            "frechet_distance": frechet_distance(samples, held_out),
            "squared_mmd": squared_mmd(samples, held_out),
        }

    return ctx.once("distances", measure)
