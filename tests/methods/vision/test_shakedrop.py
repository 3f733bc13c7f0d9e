"""ShakeDrop: what goes forward and back, by gate and granularity; survival by depth; PyramidNet's sizes."""

import copy

import pytest
import torch
from torch import nn

from runner.errors import UserError
from runner.methods.vision.shakedrop import ShakeDropTraining
from runner.methods.vision.shaken_branches import ShakeDrop, branch_ends, fold, shake_branches, survival_rates
from runner.models.pyramidnet import PyramidNet, block_widths
from runner.models.resnet import cifar_resnet
from runner.models.wide_resnet import WideResNet


def forward_and_back(shake, shape=(3, 4, 2, 2), training=True):
    """The branch's output and the gradient that reaches it, for a branch and an outer gradient of ones."""
    module = nn.Identity().train(training)
    branch = torch.ones(shape, requires_grad=True)
    output = shake(module, (branch,), branch)
    output.backward(torch.ones(shape))
    return output.detach(), branch.grad


def small_network():
    network = cifar_resnet(8, 4, num_classes=3, in_channels=1, padding="symmetric")
    for block in branch_ends(network):
        nn.init.uniform_(block.weight, 0.5, 1.0)
        nn.init.uniform_(block.bias, -0.5, 0.5)
    return network


def test_survival_falls_along_the_depth():
    assert survival_rates(4, 0.5) == [0.875, 0.75, 0.625, 0.5]
    assert survival_rates(3, 0.0, "uniform") == [0, 0, 0]
    deaths = [1 - rate for rate in survival_rates(54, 0.5)]
    assert deaths == pytest.approx([0.5 * number / 54 for number in range(1, 55)])


def test_in_evaluation_the_branch_has_its_expected_factor():
    output, _ = forward_and_back(ShakeDrop(0.75), training=False)
    assert torch.equal(output, torch.full_like(output, 0.75))
    assert ShakeDrop(0.75, forward_range=(0.0, 1.0)).expected == pytest.approx(0.75 + 0.25 / 2)
    assert ShakeDrop(0.75, forward_range=(0.0, 0.0)).expected == 0.75


def test_with_the_gate_open_the_branch_is_as_it_was():
    branch = torch.randn(2, 3, 4, 4, requires_grad=True)
    assert ShakeDrop(1.0)(nn.Identity(), (branch,), branch) is branch


def test_with_the_gate_closed_forward_and_backward_have_factors_of_their_own():
    output, gradient = forward_and_back(ShakeDrop(0.0, (-0.5, -0.5), (0.25, 0.25)))
    assert torch.equal(output, torch.full_like(output, -0.5))
    assert torch.equal(gradient, torch.full_like(gradient, 0.25))

    shake = ShakeDrop(0.0, (0.8, 0.8), (0.2, 0.2))
    x = torch.randn(3, dtype=torch.double, requires_grad=True)
    y = x + shake(nn.Identity(), (x,), 3 * x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(gradient, torch.full_like(x, 1 + 0.2 * 3))  # identity path unchanged
    # no derivative: analytic over numeric is beta / alpha
    assert not torch.autograd.gradcheck(lambda b: shake(nn.Identity(), (b,), b), x, raise_exception=False)


@pytest.mark.parametrize(("granularity", "draws"), [("batch", 1), ("image", 3), ("channel", 12), ("pixel", 48)])
def test_granularity(granularity, draws):
    torch.manual_seed(0)
    output, gradient = forward_and_back(ShakeDrop(0.0, granularity=granularity))
    assert len(output.unique()) == len(gradient.unique()) == draws
    assert output.min() >= -1 and output.max() <= 1 and gradient.min() >= 0 and gradient.max() <= 1
    per_image = output.flatten(1)
    assert all(len(row.unique()) == {1: 1, 3: 1, 12: 4, 48: 16}[draws] for row in per_image)


def test_the_gate_is_drawn_once_a_batch_or_once_an_image():
    torch.manual_seed(0)
    shapes = [forward_and_back(ShakeDrop(0.5, (0.0, 0.0), (0.0, 0.0)), (6, 1, 1, 1)) for _ in range(40)]
    sums = [float(output.sum()) for output, _ in shapes]
    assert set(sums) == {0.0, 6.0} and all(torch.equal(output, gradient) for output, gradient in shapes)
    one = ShakeDrop(0.5, (0.0, 0.0), (0.0, 0.0), gate="image")
    output, gradient = forward_and_back(one, (200, 1, 1, 1))
    assert 70 < output.sum() < 130 and torch.equal(output, gradient)


def test_means_over_many_passes():
    torch.manual_seed(0)
    shake, total, back = ShakeDrop(0.6), 0.0, 0.0
    for _ in range(2000):
        output, gradient = forward_and_back(shake, (1, 8, 4, 4))
        total, back = total + output.mean(), back + gradient.mean()
    assert total / 2000 == pytest.approx(0.6, abs=0.03)
    assert back / 2000 == pytest.approx(0.6 + 0.4 / 2, abs=0.03)


def test_networks_have_their_branches_in_the_order_of_depth():
    residual = cifar_resnet(20, 8, num_classes=10, in_channels=3, padding="symmetric")
    assert len(branch_ends(residual)) == 9
    wide = WideResNet(16, 1, num_classes=10, in_channels=3)
    pyramid = PyramidNet(10, 3, depth=20, widening=9)
    assert len(branch_ends(wide)) == 6 and all(isinstance(end, nn.Conv2d) for end in branch_ends(wide))
    assert [end.num_features for end in branch_ends(pyramid)] == list(range(17, 26))
    shake_branches(residual, 0.5, "linear")
    found = [next(iter(end._forward_hooks.values())).survival for end in branch_ends(residual)]
    assert found == survival_rates(9, 0.5)
    with pytest.raises(UserError, match="no residual blocks"):
        branch_ends(nn.Linear(2, 2))


def test_all_gates_open_is_the_plain_network_and_copies_are_shaken_too():
    plain = small_network()
    shaken, images = copy.deepcopy(plain), torch.randn(4, 1, 8, 8)
    shake_branches(shaken, 1.0, "linear")
    for network in (plain, shaken):
        network(images).square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), shaken.parameters(), strict=True))
    closed = copy.deepcopy(plain)
    shake_branches(closed, 0.0, "uniform", forward_range=(0.0, 0.0))
    assert not torch.equal(closed(images), plain(images))
    assert torch.equal(copy.deepcopy(closed)(images), closed(images))


@pytest.mark.parametrize("build", [small_network, lambda: WideResNet(10, 1, num_classes=3, in_channels=1)])
def test_folding_leaves_what_evaluation_computes(build):
    network, images = build(), torch.randn(4, 1, 8, 8)
    shake_branches(network, 0.3, "linear", forward_range=(0.0, 1.0))
    network.eval()
    expected = network(images)
    fold(network)
    assert not any(module._forward_hooks for module in network.modules())
    assert torch.allclose(network(images), expected, atol=1e-5)


def test_the_size_of_pyramidnet_is_the_card_s():
    assert block_widths(110, 270)[-1] == 286 and len(block_widths(110, 270)) == 54
    assert block_widths(20, 10)[:2] == [18, 19]  # rounded up
    with torch.device("meta"):
        network = PyramidNet(10, 3)
    bias_of_the_port = 16
    assert sum(item.numel() for item in network.parameters()) + bias_of_the_port == 28_485_493
    assert sum(module.stride == (2, 2) for module in network.modules() if isinstance(module, nn.Conv2d)) == 2
    assert PyramidNet(10, 3, depth=8, widening=6)(torch.zeros(2, 3, 15, 15)).shape == (2, 10)  # odd sides too
    with pytest.raises(ValueError, match="6n"):
        PyramidNet(10, 3, depth=4)


def test_a_shaken_pyramidnet_computes_what_the_port_does():
    """Outputs and norms of gradients are those of owruby/shake-drop_pytorch in double precision, without the bias of
    its first convolution: the first gate open, the others closed, alpha -0.5, beta 0.25."""
    network = PyramidNet(3, 3, depth=8, widening=7).double()
    with torch.no_grad():
        for weight in network.parameters():
            filled = torch.arange(weight.numel(), dtype=torch.double).sin() * 0.2
            weight.copy_(filled.view_as(weight) + (1.0 if weight.dim() == 1 and len(weight) > 3 else 0.0))
    for end, survival in zip(branch_ends(network), (1.0, 0.0, 0.0), strict=True):
        end.register_forward_hook(ShakeDrop(survival, (-0.5, -0.5), (0.25, 0.25)))
    output = network(torch.arange(2 * 3 * 32 * 32, dtype=torch.double).cos().view(2, 3, 32, 32))
    output.square().sum().backward()
    expected = [[0.8827346193, -0.2894850445, -0.2130353422], [0.8553923989, -0.2945581050, -0.1802869335]]
    assert torch.allclose(output, torch.tensor(expected, dtype=torch.double))
    assert float(network.conv1.weight.grad.norm()) == pytest.approx(14.64275961)
    assert float(network.layer1[0].conv1.weight.grad.norm()) == pytest.approx(17.18730008)


def test_ranges_have_their_ends_in_order():
    with pytest.raises(ValueError, match="forward_range"):
        ShakeDropTraining(forward_range=(1.0, -1.0))
