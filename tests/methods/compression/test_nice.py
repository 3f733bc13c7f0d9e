"""NICE: quantized layers, their stages and their schedule; the product is loaded, evaluated and trained on."""

import copy
import math

import pytest
import torch
from commands import runner
from torch import nn
from torch.nn import functional as F

from runner.errors import UserError
from runner.methods.compression.nice import NICE
from runner.methods.compression.quantized_layers import (
    QuantizedBatchNorm2d,
    QuantizedConv2d,
    QuantizedLinear,
    QuantizedReLU,
)
from runner.methods.compression.quantized_network import (
    Place,
    Schedule,
    Widths,
    places,
    quantizable,
    quantized,
    quantized_form,
    sizes,
    stages,
    traced,
    without_ends,
)
from runner.methods.compression.quantizers import quantize_bias, quantize_spread, quantize_symmetric
from runner.models import build_network

THREE = {"weight_bits": 3, "activation_bits": 3, "quantize_first": False, "quantize_last": False}


def resnet(name="resnet8"):
    torch.manual_seed(0)
    return build_network(
        name=name, target=None, arguments={}, num_classes=4, channels=1, stem="cifar", padding="symmetric"
    )


def kinds(order: list[Place]) -> str:
    return "".join({"layer": "L", "normalisation": "n", "activation": "a"}[place.kind] for place in order)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 5, 3, padding=1, bias=True), nn.Linear(4, 5)])
@pytest.mark.parametrize("training", [True, False])
def test_a_quantized_layer(layer, training):
    torch.manual_seed(0)
    layer = copy.deepcopy(layer)
    kind = QuantizedConv2d if isinstance(layer, nn.Conv2d) else QuantizedLinear
    found = kind.of(layer, 3, 0.05).train(training)
    found.clamp.fill_(0.2)
    found.activation_step.fill_(0.01)
    x = torch.randn(2, 3, 6, 6) if isinstance(layer, nn.Conv2d) else torch.randn(2, 4)
    stored = found.weight.clone()
    weight = quantize_symmetric(layer.weight, 0.2, 3)
    bias = quantize_bias(layer.bias, 0.2 / 3 * 0.01)
    expected = F.conv2d(x, weight, bias, padding=1) if isinstance(layer, nn.Conv2d) else F.linear(x, weight, bias)
    assert torch.equal(found(x), expected)
    assert torch.equal(found.weight, stored)
    found(x).sum().backward()
    straight = torch.autograd.grad(
        (F.conv2d(x, layer.weight, padding=1) if isinstance(layer, nn.Conv2d) else F.linear(x, layer.weight)).sum(),
        layer.weight,
    )
    assert torch.allclose(found.weight.grad, straight[0], atol=1e-4)  # outside of the clamp too


def test_phases_of_a_layer():
    torch.manual_seed(0)
    layer = nn.Linear(50, 40)
    found = QuantizedLinear.of(layer, 3, 0.0)
    found.clamp.fill_(0.1)
    x = torch.randn(3, 50)
    quantized = found(x)
    found.phase = "full"
    assert torch.equal(found(x), layer(x)) and torch.equal(found.eval()(x), quantized)
    found.train().phase = "mixed"
    assert torch.equal(found(x), quantized)  # no noise: the stage in training is the quantized one
    found.noise_share = 0.05
    first, second = found.seen()[0], found.seen()[0]
    levels = quantize_symmetric(layer.weight, 0.1, 3)
    assert 0.02 < (first != levels).float().mean() < 0.1 and not torch.equal(first, second)
    assert (first - layer.weight.clamp(-0.1, 0.1)).abs().max() <= 0.1 / 3 / 2 + 1e-6


def test_an_earlier_layer_s_gradient_goes_through_the_quantized_weights():
    torch.manual_seed(0)
    first, second = (QuantizedLinear.of(nn.Linear(6, 6, bias=False), 2, 0.0) for _ in range(2))
    for layer in (first, second):
        layer.clamp.fill_(0.3)
    x = torch.randn(5, 6)
    second(first(x)).sum().backward()
    weight = quantize_symmetric(second.weight.detach(), 0.3, 2)
    assert torch.allclose(first.weight.grad, torch.outer(weight.sum(0), x.sum(0)), atol=1e-5)


def test_batch_normalisation_of_sixteen_bits():
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(4)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.running_mean)
    found = QuantizedBatchNorm2d.of(copy.deepcopy(plain))
    x = torch.randn(8, 4, 3, 3)
    found.phase = "full"
    assert torch.equal(found(x), plain(x)) and torch.equal(found.running_mean, plain.running_mean)
    found.phase = "quantized"
    expected = F.batch_norm(x, None, None, quantize_spread(plain.weight), plain.bias, True)
    assert torch.equal(found(x), expected)
    plain(x)
    assert torch.equal(found.running_var, plain.running_var) and found.num_batches_tracked == 2
    before = found.running_mean.clone()
    averages = quantize_spread(plain.running_mean), quantize_spread(plain.running_var)
    expected = F.batch_norm(x, *averages, quantize_spread(plain.weight), plain.bias, False)
    assert torch.equal(found.eval()(x), expected) and torch.equal(found.running_mean, before)


def test_an_activation_is_clamped_before_it_is_quantized():
    found = QuantizedReLU(3)
    x = torch.tensor([-1.0, 0.3, 0.5, 4.0])
    assert found(x).tolist() == pytest.approx([0, 2 / 7, 4 / 7, 1])  # 3.5 rounds to even
    found.phase = "mixed"
    assert found(x).tolist() == pytest.approx([0, 0.3, 0.5, 1])
    assert found.eval()(x).tolist() == pytest.approx([0, 2 / 7, 4 / 7, 1])


def test_wide_grids_and_ranges_leave_the_network_as_it_is():
    network = resnet().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
    graph, _ = quantized_form(
        network, Widths(weight_bits=16, activation_bits=16, quantize_first=True, quantize_last=True)
    )
    for module in graph.modules():
        if isinstance(module, QuantizedReLU):
            module.clamp.data.fill_(50.0)
        elif isinstance(module, (QuantizedConv2d, QuantizedLinear)):
            module.clamp.fill_(module.weight.abs().max() + 1)
            module.activation_step.fill_(50 / 65535)
    x = torch.randn(2, 1, 16, 16)
    assert (graph.eval()(x) - network(x)).abs().max() < 5e-3


class Shared(nn.Module):
    """One ReLU module called twice, a function, a method and a ReLU6."""

    def __init__(self):
        super().__init__()
        self.one, self.relu, self.six = nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), nn.ReLU6()
        self.two, self.end = nn.Conv2d(2, 2, 1), nn.Linear(2, 3)

    def forward(self, x):
        x = self.relu(self.one(x))
        x = self.relu(self.two(x)).relu()
        return self.end(self.six(F.relu(x - 0.1, inplace=True)).mean((2, 3)))


def test_every_call_of_a_relu_is_a_module_of_its_own():
    network = Shared()
    x = torch.randn(4, 1, 3, 3)
    expected = network(x.clone())
    graph = traced(network)
    assert torch.equal(graph(x), expected)
    assert kinds(places(graph)) == "LaLaaaaL"
    order = places(traced(resnet()))
    assert kinds(order)[:9] == "LnaLnaLna" and kinds(order)[-2:] == "aL"
    names = ("downsample.0", "downsample.1", "conv1", "bn1")
    assert [place.name for place in order][9:13] == [f"layer2.0.{name}" for name in names]


def test_ends_and_stages():
    order = [Place(str(number), {"L": "layer", "n": "normalisation", "a": "activation"}[kind])
             for number, kind in enumerate("LnaLnaLnLaL")]  # fmt: skip
    assert kinds(without_ends(order, first=False, last=False)) == "naLnaLnL"
    assert kinds(without_ends(order, first=False, last=True)) == "naLnaLnLaL"
    assert kinds(without_ends(order, first=True, last=False)) == "LnaLnaLnL"
    inner = without_ends(order, first=False, last=False)
    assert [kinds(part) for part in stages(inner, 1)] == ["naLna", "Ln", "L"]
    assert [kinds(part) for part in stages(inner, 2)] == ["naLnaLn", "L"]


def test_the_schedule_quantizes_one_stage_after_another():
    graph, order = quantized_form(resnet(), Widths(**THREE))
    parts = stages(order, 1)
    schedule = Schedule(graph, parts, 1.5)
    seen = []
    for _ in range(12):
        seen.append(schedule.stage)
        schedule.step()
        phases = [{module.phase for module in modules} for modules in schedule.modules]
        assert phases == [{"quantized"}] * seen[-1] + [{"mixed"}] * (seen[-1] < 8) + [{"full"}] * (7 - seen[-1])
    assert len(parts) == 8 and seen[:7] == [0, 0, 1, 2, 2, 3, 4] and seen[-1] == 7
    again = Schedule(graph, parts, 1.5)
    again.load_state_dict(schedule.state_dict())
    assert again.stage == schedule.stage == 8


def test_sizes_of_a_network():
    network = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 4, 1), nn.ReLU(),
                            nn.Flatten(), nn.Linear(16, 3))  # fmt: skip
    graph, _ = quantized_form(network, Widths(**THREE | {"activation_bits": 4}))
    found = sizes(graph, (1, 2, 2))
    kilobyte = 8 * 1024
    bits = 2 * 32 + 8 * 16 + 8 * 3 + 4 * 16 + (48 + 3) * 32  # the two ends stay at 32
    assert found["weights_kilobytes"] == pytest.approx(bits / kilobyte)
    assert found["weights_kilobytes_full"] == pytest.approx((2 + 8 + 8 + 4 + 51) * 32 / kilobyte)
    assert found["activations_kilobytes"] == pytest.approx((8 * 4 + 16 * 32) / kilobyte)
    assert found["largest_activation_kilobytes"] == pytest.approx(16 * 32 / kilobyte)
    assert found["bit_operations"] == 8 * 32 * 32 + 32 * 3 * 4 + 48 * 32 * 32
    assert found["bit_operations_full"] == (8 + 32 + 48) * 1024


def test_what_cannot_be_quantized_is_refused():
    with pytest.raises(UserError, match="no layer"):
        quantized_form(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Tanh(), nn.Linear(1, 1)), Widths(**THREE))
    with pytest.raises(ValueError, match="training=false"):
        NICE(training=False, learn_clamps=False)

    with pytest.raises(UserError, match="quantized already"):
        traced(quantized_form(resnet(), Widths(**THREE))[0])

    class Drops(nn.Module):
        def forward(self, x):
            return F.dropout(x, training=self.training)

    with pytest.raises(UserError, match="as a module"):
        traced(Drops())

    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UserError, match="cannot trace"):
        traced(Branches())


def test_the_product_is_evaluated_and_trained_on(tmp_path):
    common = ("model=vgg5_narrow", "dataset=digits", "scale=smoke", "hardware=cpu")
    found = runner("method=nice", "method.weight_bits=2", *common, place=tmp_path)
    assert found.code == 0, found.err
    again = runner("evaluate", found.folder, place=tmp_path)
    assert again.code == 0, again.err
    for name in ("accuracy", "loss"):
        assert again.result["metrics"][name] == pytest.approx(found.result["metrics"][name], abs=1e-5)
    trained = runner("method=supervised", f"model.weights={found.folder}", *common, place=tmp_path)
    assert trained.code == 0, trained.err
    after = runner("method=nice", "method.training=false", "method.clamps=maximum", *common, place=tmp_path)
    assert after.code == 0, after.err
    assert after.result["metrics"]["accuracy"] == after.result["metrics"]["accuracy_initial"]


def waves(*shape: int) -> torch.Tensor:
    return torch.sin(torch.arange(math.prod(shape)) * 1.7).reshape(shape)


def test_the_whole_network_as_the_released_code_quantizes_it():
    """Clamps and logits that the released code gave for these weights and images, at 3/4 bits without the ends."""
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(),
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).eval()  # fmt: skip
    items = [*network.named_parameters(), *((n, b) for n, b in network.named_buffers() if "running" in n)]
    for number, (name, tensor) in enumerate(items):
        scale = "running_var" in name or (name.endswith("weight") and tensor.dim() == 1)
        tensor.data.copy_(waves(*tensor.shape) * 0.5 + (1.0 if scale else 0.03 * number))
    method = NICE(weight_bits=3, activation_bits=4, noise_share=0.0)
    method.calibration_images = lambda ctx: iter([waves(4, 1, 6, 6) * factor for factor in (1, 2, 3)])
    graph = traced(network)
    widths = Widths(**THREE | {"activation_bits": 4})
    order = quantizable(graph, widths)
    ranges = method.activation_ranges(None, graph)
    assert list(ranges.values()) == pytest.approx([2.261812, 3.859123, 11.621938])
    quantized(graph, order, widths)
    method.set_clamps(graph, order, ranges)  # the grid of the biases has the step of the last activation: 11.6 / 15
    clamps = [module.clamp.item() for module in graph.modules() if isinstance(module, QuantizedConv2d)]
    assert clamps == pytest.approx([1.339466, 1.464102])
    images = torch.cos(torch.arange(72.0) * 1.3).reshape(2, 1, 6, 6)
    expected = torch.tensor([[2.532392, 3.010595, 2.184647], [2.575978, 3.05408, 2.230224]])
    assert torch.allclose(graph.eval()(images), expected, atol=1e-5)
    for stage, expected in enumerate([
        [[1.608425, 2.062846, 1.307711], [1.673214, 2.135591, 1.373863]],
        [[1.580958, 2.035277, 1.281833], [1.698866, 2.154194, 1.385735]],
    ]):  # fmt: skip
        schedule = Schedule(graph, stages(order, 1), 1)
        schedule.load_state_dict({"steps": stage})
        schedule.step()
        assert torch.allclose(copy.deepcopy(graph).train()(images), torch.tensor(expected), atol=1e-5)
