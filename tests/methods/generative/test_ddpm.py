"""Noise schedules, noisy images, and ancestral sampling of diffusion models against closed forms."""

import math

import pytest
import torch

from runner.methods.generative.exact_scores import Gaussian
from runner.methods.generative.noise_schedules import Diffusion, antithetic_times, diffused
from runner.methods.generative.samplers import ancestral_step


def test_the_linear_schedule_has_the_levels_of_the_card():
    levels = Diffusion().alpha_bars()
    assert levels.dtype == torch.float64 and len(levels) == 1000
    for time, expected in ((0, 0.9999), (499, 0.07858724), (999, 4.0358e-5)):
        assert levels[time].item() == pytest.approx(expected, rel=1e-5)


def test_the_quadratic_schedule_has_evenly_spaced_roots():
    betas = Diffusion(schedule="quadratic", steps=5, first_beta=0.01, last_beta=0.25).betas()
    assert betas.tolist() == pytest.approx([0.1**2, 0.2**2, 0.3**2, 0.4**2, 0.5**2])


def test_the_cosine_schedule_follows_its_curve_until_beta_is_cut():
    diffusion = Diffusion(schedule="cosine", steps=100)
    at = torch.arange(1, 100) / 100
    curve = torch.cos((at + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert torch.allclose(diffusion.alpha_bars()[:-1].float(), curve)
    assert diffusion.betas()[-1] == 0.999


def test_each_image_gets_the_noise_of_its_level():
    clean, noise = torch.full((2, 1, 2, 2), 3.0), torch.full((2, 1, 2, 2), 5.0)
    noisy = diffused(clean, noise, torch.tensor([0.25, 0.64]))
    assert noisy[0].flatten()[0] == pytest.approx(0.5 * 3 + math.sqrt(0.75) * 5)
    assert noisy[1].flatten()[0] == pytest.approx(0.8 * 3 + 0.6 * 5)


@pytest.mark.parametrize("count", [1, 6, 7])
def test_antithetic_times_mirror_each_other(count):
    times = antithetic_times(count, 1000, torch.device("cpu"))
    half = count // 2 + 1
    assert times.shape == (count,) and times.min() >= 0 and times.max() < 1000
    assert torch.equal(times[half:], 999 - times[: count - half])


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_a_step_has_the_mean_of_the_paper(variance, clip):
    betas, levels = Diffusion().betas().tolist(), Diffusion().alpha_bars().tolist()
    clean, noise = 0.4 * torch.ones(1, dtype=torch.float64), 0.2 * torch.ones(1, dtype=torch.float64)
    x = diffused(clean, noise, levels[300])
    mean = (x - betas[300] / math.sqrt(1 - levels[300]) * noise) / math.sqrt(1 - betas[300])  # eq. 11
    assert torch.allclose(ancestral_step(x, noise, 0 * x, 300, betas, levels, variance, clip), mean)
    spread = ancestral_step(x, noise, 1 + 0 * x, 300, betas, levels, variance, clip) - mean
    smaller = (1 - levels[299]) / (1 - levels[300]) if variance == "posterior" else 1
    assert spread.item() == pytest.approx(math.sqrt(betas[300] * smaller))
    assert torch.allclose(
        ancestral_step(x, noise, 1 + 0 * x, 0, betas, levels, variance, clip), _clean(x, noise, levels)
    )


def _clean(x, noise, levels):
    return (x - math.sqrt(1 - levels[0]) * noise) / math.sqrt(levels[0])


def test_what_a_clipped_step_believes_lies_within_the_range():
    betas, levels = Diffusion().betas().tolist(), Diffusion().alpha_bars().tolist()
    x = torch.tensor([9.0])
    assert ancestral_step(x, 0 * x, 0 * x, 0, betas, levels, "beta", True).item() == pytest.approx(1)
    assert ancestral_step(x, 0 * x, 0 * x, 0, betas, levels, "beta", False).item() == pytest.approx(9, rel=1e-3)


def test_the_two_variances_are_right_for_normal_data_and_for_a_point():
    """Ho et al., section 3.2; what noise and time t - 1 should have is known: 1, and 1 - abar_(t-1)."""
    betas, levels = Diffusion().betas().tolist(), Diffusion().alpha_bars().tolist()
    one = torch.ones(1, dtype=torch.float64)
    for deviation, variance, before in ((1.0, "beta", 1.0), (1e-9, "posterior", 1 - levels[399])):
        exact = Gaussian(deviation)
        kept = ancestral_step(one, exact.noise(one, levels[400]), 0 * one, 400, betas, levels, variance, False)
        added = ancestral_step(0 * one, 0 * one, one, 400, betas, levels, variance, False)
        now = levels[400] * deviation**2 + 1 - levels[400]
        assert (kept.square() * now + added.square()).item() == pytest.approx(before)
