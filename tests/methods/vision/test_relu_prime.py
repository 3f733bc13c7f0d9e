"""The derivative at zero: values of the card, gradients that differ only where an input is exactly 0."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from runner.errors import UserError
from runner.methods.vision.rectifiers import (
    Rectifier,
    in_format,
    put_back,
    put_rectifiers,
    rectifiers,
    watch,
    zero_share,
)
from runner.methods.vision.relu_prime import ReLUPrime, Search
from runner.methods.vision.relu_prime_divergence import weight_difference
from runner.methods.vision.relu_prime_volume import first_gradient
from runner.models.mlp import perceptron
from runner.models.optional_norm import resnet18_pooled, vgg11


def gradient(rectifier, values, incoming):
    x = torch.tensor(values, requires_grad=True)
    y = rectifier(x)
    y.backward(torch.tensor(incoming))
    return x.grad.tolist()


def network(seed=0, widths=(16, 16), bias=True):
    torch.manual_seed(seed)
    found = perceptron(3, 1, 4, widths)
    if not bias:
        for module in found:
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
    return found


def test_worked_gradients():
    x, g = [-1.0, 0.0, 2.0, -0.0], [3.0, 5.0, 7.0, 11.0]
    assert gradient(Rectifier(value=0.3), x, g) == pytest.approx([0, 1.5, 7, 3.3])
    assert gradient(Rectifier(value=0.3, official_backward=True), x, g) == pytest.approx([0, 0.3, 7, 0.3])
    six = [-1.0, 0.0, 3.0, 6.0, 7.0]
    incoming = [2.0, 3.0, 5.0, 7.0, 11.0]
    plain = Rectifier("relu6", 0.5, 2.0)
    assert gradient(plain, six, incoming) == pytest.approx([0, 1.5, 5, 14, 0])
    assert gradient(Rectifier("relu6", 0.5, 2.0, official_backward=True), six, incoming) == [0, 0.5, 5, 2, 0]
    for official in (True, False):  # the released one keeps the chain rule here
        leaky = Rectifier("leaky_relu", 0.5, official_backward=official)
        assert gradient(leaky, x, g) == pytest.approx([0.03, 2.5, 7, 5.5])
    drawn = gradient(Rectifier(value=None), [0.0] * 100, [2.0] * 100)
    assert 0 <= min(drawn) < 0.4 and 1.6 < max(drawn) <= 2 and len(set(drawn)) > 90


def test_the_official_form_draws_what_the_released_code_does():
    """Gradients are those of deel-ai/relu-prime's random rectifier at seed 0."""
    torch.manual_seed(0)
    found = gradient(Rectifier(value=None, official_backward=True), [-1.0, 0.0, 2.0, 0.0], [3.0, 5.0, 7.0, 11.0])
    assert found == pytest.approx([0, 0.7682218, 7, 0.1320305], rel=1e-5)


@pytest.mark.parametrize("kind", ["relu", "relu6", "leaky_relu"])
def test_forward_values_are_torch_s_and_0_is_torch_s_gradient(kind):
    x = torch.cat([torch.randn(50) * 5, torch.zeros(3), -torch.zeros(3)])
    theirs, ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    function = getattr(torch.nn.functional, kind)
    a, b = function(theirs), Rectifier(kind, 0.01 if kind == "leaky_relu" else 0.0)(ours)
    assert torch.equal(a, b)
    g = torch.randn(56)
    a.backward(g)
    b.backward(g)
    assert torch.equal(theirs.grad, ours.grad)


def test_at_64_bits_no_input_is_0_and_gradients_are_equal():
    net = network()
    put_rectifiers(net)
    net.double()
    watch(net)
    torch.manual_seed(1)
    loss = cross_entropy(net(torch.rand(64, 1, 4, 4, dtype=torch.double)), torch.randint(0, 3, (64,)))
    assert zero_share(net) == 0
    assert torch.equal(first_gradient(net, loss, 0.0), first_gradient(net, loss, 1.0))


def test_a_row_of_zeros_without_bias_gives_gradients_in_proportion_to_the_value():
    net = network(bias=False)
    put_rectifiers(net)
    watch(net)
    images = torch.rand(2, 1, 4, 4)
    images[0] = 0
    loss = cross_entropy(net(images), torch.tensor([0, 1]))
    assert rectifiers(net)[0].zeros >= 16 and rectifiers(net)[0].smallest == 0
    bias = net[1].bias

    def by_bias(value):
        for item in rectifiers(net):
            item.value = value
        return torch.autograd.grad(loss, bias, retain_graph=True)[0]

    # two rectifiers of value a on the path of the first image: its part grows with a squared
    part = by_bias(1.0) - by_bias(0.0)
    assert part.abs().max() > 0
    assert torch.allclose(by_bias(3.0) - by_bias(0.0), 9 * part, atol=1e-6)


def test_half_precision_meets_zeros_and_gradients_differ():
    net = network(widths=(64, 64))
    put_rectifiers(net)
    net.bfloat16()
    watch(net)
    torch.manual_seed(0)
    images = torch.randint(0, 5, (2048, 1, 4, 4)) / 4  # few bits, as stored images have
    loss = cross_entropy(net(images.bfloat16()), torch.randint(0, 3, (2048,)))
    assert zero_share(net) > 0
    assert not torch.equal(first_gradient(net, loss, 0.0), first_gradient(net, loss, 1.0))


def test_rectifiers_take_the_place_of_relus_and_leave_it():
    net = resnet18_pooled(10, 3)
    names = {name for name, item in net.named_modules() if isinstance(item, nn.ReLU)}
    weights = list(net.state_dict())
    images = torch.randn(2, 3, 32, 32)
    expected = net.eval()(images)
    places = put_rectifiers(net, value=1.0)
    assert set(places) == names and len(rectifiers(net)) == 9 and list(net.state_dict()) == weights
    assert torch.equal(net(images), expected)
    put_back(net, places)
    assert not rectifiers(net) and torch.equal(net(images), expected)
    with pytest.raises(UserError, match=r"no nn\.ReLU"):
        put_rectifiers(nn.Sequential(nn.Linear(2, 2)))


def test_a_number_format_goes_through_the_whole_network():
    images = torch.rand(2, 1, 4, 4)
    for name, out in (("bfloat16", torch.float32), ("float64", torch.float64), ("float32", torch.float32)):
        net = in_format(network(), name)
        assert net(images).dtype == out and net[1].weight.dtype == getattr(torch, name)
        assert copy.deepcopy(net)(images).dtype == out


def test_networks_that_differ_in_the_value_part_only_where_an_input_is_0():
    first = network()
    put_rectifiers(first, value=0.0)
    other, control = copy.deepcopy(first), copy.deepcopy(first)
    for item in rectifiers(other):
        item.value = 1.0
    torch.manual_seed(2)
    for step in range(4):
        images, labels = torch.rand(8, 1, 4, 4), torch.randint(0, 3, (8,))
        if step == 3:  # now an input of the first rectifier is 0
            with torch.no_grad():
                for net in (first, other, control):
                    net[1].weight[0], net[1].bias[0] = 0, 0
        for net in (first, other, control):
            loss = cross_entropy(net(images), labels)
            net.zero_grad()
            loss.backward()
            with torch.no_grad():
                for weight in net.parameters():
                    weight -= 0.1 * weight.grad
        assert weight_difference(first, control) == 0
        assert (weight_difference(first, other) > 0) == (step == 3)


def test_networks_of_the_paper():
    plain, normalised = vgg11(10, 3, batch_norm=False), vgg11(10, 3)
    assert [m.out_channels for m in plain if isinstance(m, nn.Conv2d)] == [64, 128, 256, 256, 512, 512, 512, 512]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in normalised) == 8
    assert plain(torch.zeros(1, 3, 32, 32)).shape == (1, 10) and plain[0].bias is not None
    residual = resnet18_pooled(10, 3, batch_norm=False)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in residual.modules())
    assert residual.conv1.kernel_size == (3, 3) and residual.conv1.stride == (1, 1)
    assert residual.layer1[0].conv1.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert all(block.bn2.weight.min() == 1 for block in resnet18_pooled(10, 3).layer2)


def test_the_search_has_limits_in_order():
    with pytest.raises(ValueError, match="lowest"):
        ReLUPrime(search=Search(lowest=0.1, highest=0.01))
