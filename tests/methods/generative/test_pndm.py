"""PNDM's samplers against the card's worked numbers, closed forms of Gaussians, and what they must share with DDIM."""

import math

import pytest
import torch
from commands import runner

from runner.methods.generative.ddpm import DDPM
from runner.methods.generative.exact_scores import Gaussian, Mixture
from runner.methods.generative.noise_schedules import Diffusion, diffused
from runner.methods.generative.pndm import PNDM
from runner.methods.generative.samplers import (
    SAMPLERS,
    Flow,
    adams_bashforth,
    levels_of,
    probability_flow,
    sample,
    steps_within,
    time_grid,
    transfer,
)

ALPHA_BARS = Diffusion().alpha_bars()


def ddim_formula(x, noise, alpha, alpha_next):
    return (
        math.sqrt(alpha_next) * (x - math.sqrt(1 - alpha) * noise) / math.sqrt(alpha)
        + math.sqrt(1 - alpha_next) * noise
    )


def flow_of(exact, table="prefixed") -> Flow:
    trained_with = levels_of(ALPHA_BARS, "prefixed")
    return Flow(lambda x, t: exact.noise(x, trained_with[int(t) + 1]), levels_of(ALPHA_BARS, table))


def test_the_transfer_is_ddims():
    one = torch.ones(1, dtype=torch.float64)
    assert transfer(one, 0.3 * one, 0.5, 0.7).item() == pytest.approx(1.0965347159112503, abs=1e-14)
    assert ddim_formula(1.0, 0.3, 0.5, 0.7) == pytest.approx(1.0965347159112503, abs=1e-14)
    x, noise = torch.randn(2, 40, dtype=torch.float64)
    for alpha, alpha_next in ((1e-4, 0.3), (0.3, 0.9999), (0.9999, 1.0), (0.9, 0.2)):
        assert torch.allclose(transfer(x, noise, alpha, alpha_next), ddim_formula(x, noise, alpha, alpha_next))
    assert torch.equal(transfer(x, noise, 0.4, 0.4), x)


def test_with_the_true_noise_the_transfer_stays_on_the_path_and_composes():
    clean, noise = torch.randn(2, 30, dtype=torch.float64)
    moved = transfer(diffused(clean, noise, 0.2), noise, 0.2, 0.6)
    assert torch.allclose(moved, diffused(clean, noise, 0.6))
    assert torch.allclose(transfer(moved, noise, 0.6, 1.0), clean)


def test_single_precision_keeps_a_short_transfer():
    """Where the two levels are neighbours DDIM's own form loses digits."""
    x, noise = torch.randn(2, 1000)
    exact = ddim_formula(x.double(), noise.double(), 0.5, 0.5 + 1e-6) - x.double()
    change = transfer(x * 0, noise, 0.5, 0.5 + 1e-6).double() + (transfer(x, noise * 0, 0.5, 0.5 + 1e-6) - x).double()
    assert (change - exact).abs().max() < 3e-7


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_constant_noise_makes_all_samplers_ddim(name):
    torch.manual_seed(0)
    x, noise = torch.randn(2, 5, 3, dtype=torch.float64)
    flow = Flow(lambda x, t: noise, levels_of(ALPHA_BARS, "prefixed"))
    moved = sample(SAMPLERS[name], flow, x, time_grid(1000, 20))
    expected = transfer(x, noise, ALPHA_BARS[950].item(), 1.0)
    assert torch.allclose(moved, expected, rtol=1e-9) == (name != "fon")  # whose step is straight


def test_multistep_weights_sum_to_one():
    past = [torch.full((2,), 0.7, dtype=torch.float64)] * 4
    assert torch.allclose(adams_bashforth(past), past[0])


GAUSSIAN = {  # of x = 1 at the first time: DDIM, S-PNDM, F-PNDM
    ("prefixed", 10): (0.374128, 0.445757, 0.494963),
    ("prefixed", 20): (0.433734, 0.484408, 0.502358),
    ("prefixed", 50): (0.472439, 0.497467, 0.500567),
    ("released", 10): (0.376379, 0.446477, 0.494795),
    ("released", 20): (0.435724, 0.485489, 0.503259),
    ("released", 50): (0.474236, 0.498858, 0.501915),
}


@pytest.mark.parametrize(("table", "steps"), GAUSSIAN)
def test_a_gaussian_ends_where_the_card_says(table, steps):
    one = torch.ones(1, 1, dtype=torch.float64)
    for name, expected in zip(("ddim", "s_pndm", "f_pndm"), GAUSSIAN[table, steps], strict=True):
        found = sample(SAMPLERS[name], flow_of(Gaussian(0.5), table), one, time_grid(1000, steps))
        assert found.item() == pytest.approx(expected, abs=6e-7)


def test_the_exact_map_of_a_gaussian():
    one = torch.ones(1, dtype=torch.float64)
    for steps, expected in ((10, 0.50005), (50, 0.50001)):
        start = time_grid(1000, steps)[0][0]
        assert Gaussian(0.5).moved(one, ALPHA_BARS[start].item(), 1.0).item() == pytest.approx(expected, abs=5e-6)


def test_the_probability_flow_of_a_gaussian_is_its_exact_map():
    one = torch.ones(1, 1, dtype=torch.float64)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)

    def noise(x, t):
        time = t / 999
        log_root = -1000 * (time**2 * (0.02 - 1e-4) / 4 + time * 1e-4 / 2)
        return Gaussian(0.5).noise(x, math.exp(2 * log_root))

    def left(time):
        return math.exp(-2000 * (time**2 * (0.02 - 1e-4) / 4 + time * 1e-4 / 2))

    flow = Flow(noise, [])
    found = probability_flow(flow, one, betas, 1e-7)
    assert found.item() == pytest.approx(Gaussian(0.5).moved(one, left(1.0), left(1e-3)).item(), abs=1e-5)
    assert flow.evaluations > 50


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ddim", [5.744e-05, -12.51505271, 0.0001509, 60.84626491]),
        ("s_pndm", [0.03326129, -12.38996854, 0.0443019, 60.84106883]),
        ("f_pndm", [0.07679999, -12.40861648, 0.11292181, 60.84035537]),
        ("fon", [0.01721795, -7.57941438, 0.0420301, 36.94876673]),
    ],
)
def test_a_curved_estimate_is_sampled_as_by_the_released_code(name, expected):
    """Its numbers, in float64 with the clean image's level in front; half times reach the estimate."""
    flow = Flow(lambda x, t: torch.tanh(x * (1 + t / 700)), levels_of(ALPHA_BARS, "prefixed"))
    x = torch.tensor([[0.3, -1.2], [0.7, 2.0]], dtype=torch.float64)
    assert sample(SAMPLERS[name], flow, x, time_grid(1000, 10)).flatten().tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("name", ["ddim", "s_pndm", "f_pndm", "fon"])
def test_more_steps_bring_a_mixture_nearer_to_a_thousand(name):
    torch.manual_seed(0)
    x = torch.randn(20, 2, dtype=torch.float64)
    slow = sample(SAMPLERS["ddim"], flow_of(Mixture()), x, time_grid(1000, 1000))
    few, more = (
        (sample(SAMPLERS[name], flow_of(Mixture()), x, time_grid(1000, steps)) - slow).square().mean()
        for steps in (10, 100)
    )
    assert more < few / 4


def test_the_noise_of_a_mixture_is_that_of_its_density():
    """eps = -sqrt(1 - abar) d log p / dx."""
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    alpha_bar = 0.4
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = math.sqrt(alpha_bar) * torch.stack([angles.cos(), angles.sin()], 1)
    variance = alpha_bar * 0.01 + 1 - alpha_bar
    log_density = torch.logsumexp(-(x[:, None] - means).square().sum(2) / (2 * variance), 1)
    (score,) = torch.autograd.grad(log_density.sum(), x)
    assert torch.allclose(Mixture().noise(x.detach(), alpha_bar), -math.sqrt(1 - alpha_bar) * score)


@pytest.mark.parametrize(("name", "evaluations"), [("ddim", 20), ("s_pndm", 21), ("f_pndm", 29), ("fon", 29)])
def test_evaluations_are_counted(name, evaluations):
    flow = flow_of(Gaussian(0.5))
    sample(SAMPLERS[name], flow, torch.ones(1, 1, dtype=torch.float64), time_grid(1000, 20))
    assert flow.evaluations == SAMPLERS[name].evaluations(20) == evaluations


def test_the_grid_ends_at_the_clean_image_and_has_more_steps_where_they_do_not_divide():
    assert time_grid(1000, 4) == [(750, 500), (500, 250), (250, 0), (0, -1)]
    assert len(time_grid(1000, 1000)) == 1000 and len(time_grid(1000, 7)) == 8


@pytest.mark.parametrize("evaluations", [10, 20, 50])
@pytest.mark.parametrize("name", SAMPLERS)
def test_equal_evaluations_are_not_exceeded_and_no_more_steps_fit(name, evaluations):
    steps = steps_within(SAMPLERS[name], evaluations, 1000)
    assert SAMPLERS[name].evaluations(len(time_grid(1000, steps))) <= evaluations
    assert SAMPLERS[name].evaluations(len(time_grid(1000, steps + 1))) > evaluations


def test_half_times_are_cut_towards_zero_for_the_level_and_kept_for_the_network():
    asked = []
    flow = Flow(lambda x, t: asked.append(t) or x, levels_of(ALPHA_BARS, "prefixed"))
    sample(SAMPLERS["f_pndm"], flow, torch.ones(1, 1), time_grid(1000, 40)[:1])
    assert asked == [975, 962.5, 962.5, 950]
    x, noise = torch.ones(2, 1)
    assert torch.equal(flow.move(x, noise, 975, 962.5), flow.move(x, noise, 975, 962))
    assert torch.equal(flow.move(x, noise, 0, -0.5), x)  # level 0, as the released code cuts


def test_the_released_table_is_one_level_off_and_lacks_the_last_time():
    assert levels_of(ALPHA_BARS, "prefixed")[:2] == [1.0, ALPHA_BARS[0].item()]
    assert levels_of(ALPHA_BARS, "released") == ALPHA_BARS.tolist()
    with pytest.raises(ValueError, match="no level for time 999"):
        PNDM(table="released", steps=1000)
    with pytest.raises(ValueError, match="too few for one step"):
        PNDM(counted="evaluations", steps=3)


def test_what_cannot_be_sampled_or_measured_is_refused():
    with pytest.raises(ValueError, match="that of schedule=linear, not cosine"):
        PNDM(sampler="probability_flow", diffusion=Diffusion(schedule="cosine"))
    for method in (PNDM, DDPM):
        with pytest.raises(ValueError, match="one image has no spread"):
            method(samples=1)
    PNDM(samples=1, estimate="mixture")


def test_a_run_on_a_gaussian_needs_no_data_and_no_network(tmp_path):
    answer = runner(
        "method=pndm",
        "dataset=none",
        "model=none",
        "scale=smoke",
        "method.estimate=gaussian",
        "method.diffusion.steps=1000",
        "method.sampling_batch_size=500",
        "method.samples=500",
        "method.steps=20",
        place=tmp_path,
    )
    assert answer.code == 0, answer.err
    metrics = answer.result["metrics"]
    assert metrics["evaluations"] == 29 and metrics["steps"] == 20
    assert metrics["rms_to_exact"] == pytest.approx(abs(0.502358 - 0.50003), rel=0.1)  # times the noise's RMS
    assert 0 < metrics["rms_to_reference"] < 0.01
    refused = runner("method=pndm", "dataset=none", "model=none", "scale=smoke", place=tmp_path)
    assert refused.code == 2 and "method.estimate=network needs images" in refused.err
