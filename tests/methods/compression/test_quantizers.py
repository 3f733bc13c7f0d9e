"""Fake quantizers on the worked numbers of NICE, gradients against closed forms, and sizes by hand."""

import math

import pytest
import torch

from runner.methods.compression import quantizers


def test_weights_of_three_bits():
    x = torch.tensor([-1.4, -0.5, -0.1, 0.2, 0.6, 2.0])
    found = quantizers.quantize_symmetric(x, 1.0, 3)
    assert found.tolist() == pytest.approx([-1, -2 / 3, 0, 1 / 3, 2 / 3, 1])  # a tie rounds to even: -1.5 to -2


def test_activations_of_three_bits():
    clamp = torch.tensor(1.0)
    clamped = quantizers.clamped_relu(torch.tensor([-0.3, 0.1, 0.4, 0.9, 1.7]), clamp)
    found = quantizers.quantize_unsigned(clamped, clamp, 3)
    assert found.tolist() == pytest.approx([0, 1 / 7, 3 / 7, 6 / 7, 1])


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_grids(bits):
    x = torch.linspace(-2, 2, 5001)
    clamp = torch.tensor(1.3)
    step = 1.3 / quantizers.weight_levels(bits)
    found = quantizers.quantize_symmetric(x, clamp, bits)
    assert len(found.unique()) == 2**bits - 1
    assert torch.equal(quantizers.quantize_symmetric(found, clamp, bits), found)
    inside = x.abs() <= clamp
    assert (found - x)[inside].abs().max() <= step / 2 + 1e-6
    positive = quantizers.quantize_unsigned(quantizers.clamped_relu(x, clamp), clamp, bits)
    assert len(positive.unique()) == 2**bits
    again = quantizers.quantize_unsigned(quantizers.clamped_relu(positive, clamp), clamp, bits)
    assert torch.allclose(again, positive, atol=1e-6)


def test_the_noise_is_as_wide_as_a_step():
    torch.manual_seed(0)
    step = 0.6 / quantizers.weight_levels(3)
    x = torch.full((200_000,), 0.05)
    noise = quantizers.with_uniform_noise(x, 0.6, 3) - x
    assert noise.abs().max() <= step / 2 + 1e-6 and step / 2 == pytest.approx(2 * 0.6 / (2**4 - 4))
    assert noise.mean().item() == pytest.approx(0, abs=step / 500)
    assert noise.var().item() == pytest.approx(step**2 / 12, rel=0.01)
    assert quantizers.with_uniform_noise(torch.tensor([5.0, -5.0]), 0.6, 3).tolist() == pytest.approx([0.6, -0.6])


def test_the_share_that_is_noisy():
    torch.manual_seed(0)
    ones, zeros = torch.ones(20_000), torch.zeros(20_000)
    assert quantizers.mixed(zeros, ones, 0.05).mean().item() == pytest.approx(0.05, abs=0.005)
    assert not quantizers.mixed(zeros, ones, 0.0).any() and quantizers.mixed(zeros, ones, 1.0).all()


def test_gradients_of_activations():
    """In x: 1 for 0 < x <= c, else 0. In c: 1 above c, (q - x) / c inside, 0 below 0 and at c."""
    x = torch.tensor([-0.3, 0.1, 0.4, 0.9, 1.7, 1.0], requires_grad=True)
    clamp = torch.tensor(1.0, requires_grad=True)
    q = quantizers.quantize_unsigned(quantizers.clamped_relu(x, clamp), clamp, 3)
    g = torch.tensor([1.0, -2.0, 3.0, 0.5, 7.0, 11.0])
    (q * g).sum().backward()
    assert x.grad.tolist() == pytest.approx([0, -2, 3, 0.5, 0, 11])
    inner = [-2 * (1 / 7 - 0.1), 3 * (3 / 7 - 0.4), 0.5 * (6 / 7 - 0.9)]
    assert clamp.grad.item() == pytest.approx(sum(inner) + 7, abs=1e-5)


def test_gradients_of_clamps_on_random_numbers():
    generator = torch.Generator().manual_seed(3)
    x, g = torch.randn(500, generator=generator).double() * 2, torch.randn(500, generator=generator).double()
    clamp = torch.tensor(-1.7, dtype=torch.float64, requires_grad=True)  # its size counts
    q = quantizers.quantize_unsigned(quantizers.clamped_relu(x, clamp), clamp, 4)
    (q * g).sum().backward()
    expected = (g * (x > 1.7)).sum() + (g * (q.detach() - x) / 1.7 * ((x > 0) & (x < 1.7))).sum()
    assert clamp.grad.item() == pytest.approx(-expected.item())


def test_straight_through_is_exact():
    x = torch.tensor([0.3, -1e9, 2.5], requires_grad=True)
    value = quantizers.round_through(x)
    assert value.tolist() == [0, -1e9, 2]
    value.sum().backward()
    assert x.grad.tolist() == [1, 1, 1]


def test_biases_and_normalisation_have_sixteen_bits():
    bias = torch.tensor([0.1, -0.26, 9000.0])
    found = quantizers.quantize_bias(bias, torch.tensor(0.25))
    assert found.tolist() == pytest.approx([0, -0.25, 0.25 * (2**15 - 1)])
    spread = torch.tensor([1.0, -0.3, 0.123456])
    step = 1.3 / 65535
    found = quantizers.quantize_spread(spread)
    assert (found / step - (found / step).round()).abs().max() < 1e-2 and (found - spread).abs().max() <= step
    for constant in (torch.ones(5), torch.zeros(5)):
        assert torch.equal(quantizers.quantize_spread(constant), constant)


def test_the_clamp_of_weights():
    weight = torch.tensor([1.0, 2.0, 3.0])
    assert quantizers.weight_clamp(weight, 3.45).item() == pytest.approx(2 + 3.45)
    assert quantizers.weight_clamp(-weight, 3.45).item() == pytest.approx(2 + 3.45)
    assert quantizers.weight_clamp(torch.tensor([-1.0, 1.0]), 2.0).item() == pytest.approx(2 * math.sqrt(2))
    nothing = torch.zeros(4)
    assert quantizers.quantize_symmetric(nothing, quantizers.weight_clamp(nothing, 3.45), 3).tolist() == [0, 0, 0, 0]


def test_hardware_steps_are_small_integers_times_powers_of_two():
    # step 0.3 = 4.8 x 2^-4: b = 5
    assert quantizers.hardware_clamp(torch.tensor(0.9), 3).item() == pytest.approx(3 * 5 / 16)
    assert quantizers.hardware_clamp(torch.tensor(1.0), 1).item() == 1
    # numbers of the released code
    for bits, expected in ((2, 2.625), (3, 2.625), (4, 2.8125), (5, 2.421875)):
        levels = quantizers.activation_levels(bits)
        assert quantizers.hardware_clamp(torch.tensor(2.345), levels).item() == expected


def test_sizes():
    assert quantizers.size_kilobytes([(1024, 8), (4096, 2)]) == 2
    assert quantizers.bit_operations([(10, 3, 4), (5, 32, 32)]) == 120 + 5120
