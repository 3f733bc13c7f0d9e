"""SPT and LSA: what the method switches on, what it measures, and that its product finds its pieces again."""

import json
import math

import pytest
import torch
from commands import metric_lines, runner

from runner.methods.vision.spt_lsa import attention_maps, divergence_from_uniform, divergences_from_uniform, mean_scale
from runner.models.cait import CaiT
from runner.models.pit import PiT
from runner.models.swin import Swin
from runner.models.t2t import T2T
from runner.models.vit import ViT

SMOKE = ("method=spt_lsa", "scale=smoke", "hardware=cpu")


# Two images through small networks with both pieces (CaiT with the released mask): logits of aanna0701/SPT_LSA_ViT in
# double precision, every tensor of weights filled with 0.3 sin(0, 1, 2, ...), pixels with cos(0, 1, 2, ...).
RELEASED = {
    "vit": [[0.3078243496, 0.2763536912, -0.0419936304], [0.3077431706, 0.2763946084, -0.0419243582]],
    "pit": [[0.7897996303, -0.5335737855, 0.9884591856], [0.7897992643, -0.5335734924, 0.9884589903]],
    "swin": [[0.6318424929, -0.3320467697, 0.7604278085], [0.631842036, -0.3320462773, 0.7604273223]],
    "cait": [[0.3970397437, 0.2367054318, -0.1196713782], [0.3964678337, 0.2371182761, -0.1192196059]],
    "t2t": [[11.5149458858, -0.1828957112, -11.2075118772], [11.5149433666, -0.1829001955, -11.2075090011]],
}


@pytest.mark.parametrize("name", RELEASED)
def test_networks_compute_what_the_released_ones_do(name):
    pieces = {"shifts": "diagonal", "learnable_temperature": True, "diagonal_mask": True, "cait_mask_bug": True}
    size = 16 if name in ("swin", "t2t") else 8
    stages = {"patch_size": 2, "width": 8, "heads": [2, 4]}
    network = {
        "vit": lambda: ViT(3, 3, size, patch_size=4, width=8, depth=2, heads=2, locality=pieces),
        "pit": lambda: PiT(3, 3, size, depths=[1, 1], **stages, locality=pieces),
        "swin": lambda: Swin(3, 3, size, depths=[2, 1], **stages, locality=pieces),
        "cait": lambda: CaiT(
            3, 3, size, patch_size=4, width=8, depth=2, class_depth=1, heads=2, head_width=4, hidden=16, locality=pieces
        ),
        "t2t": lambda: T2T(3, 3, size, token_width=4, depth=1, locality=pieces),
    }[name]()
    network.double().eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.3 * torch.arange(weight.numel(), dtype=torch.double).sin().view_as(weight))
        logits = network(torch.arange(2 * 3 * size**2, dtype=torch.double).cos().view(2, 3, size, size))
    for found, expected in zip(logits.tolist(), RELEASED[name], strict=True):
        assert found == pytest.approx(expected, abs=2e-9)


def test_divergence_from_uniform():
    rows = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0, 1, 0, 0], [0.5, 0.5, 0, 0]])
    assert divergence_from_uniform(rows).tolist() == pytest.approx([0, math.log(4), math.log(2)], abs=1e-6)


def test_the_mask_alone_raises_the_divergence_by_log_n_over_n_minus_one():
    network = ViT(3, 1, 8, patch_size=4, width=8, depth=2, heads=2, locality={"diagonal_mask": True})
    for block in network.blocks:
        torch.nn.init.zeros_(block.attention.queries_keys_values.weight)  # all logits are equal
    found = divergences_from_uniform(network.train(), torch.randn(2, 1, 8, 8))
    assert found == pytest.approx(dict.fromkeys(attention_maps(network), math.log(5 / 4)), abs=1e-6)
    assert network.training and not any(module._forward_hooks for module in network.modules())


def test_mean_scale_weighs_layers_alike():
    network = ViT(3, 1, 8, patch_size=4, width=8, depth=2, heads=2, locality={"learnable_temperature": True})
    maps = attention_maps(network)
    assert mean_scale(maps).item() == pytest.approx(0.5)
    with torch.no_grad():
        next(iter(maps.values())).scale.copy_(torch.tensor([1.0, 2.0]))
    assert mean_scale(maps).item() == pytest.approx(1.0)


@pytest.mark.parametrize(("shifts", "copies"), [("diagonal", 4), ("none", 0), ("all", 8)])
def test_the_switches_reach_the_network(shifts, copies, tmp_path):
    answer = runner(*SMOKE, f"method.shifts={shifts}", place=tmp_path)
    plain = runner(*SMOKE, "method.shifts=none", "method.learnable_temperature=false", place=tmp_path)
    assert (answer.code, plain.code) == (0, 0), answer.err + plain.err
    params = [item.result["profile"]["final"]["params"] for item in (answer, plain)]
    columns, norm = copies * 3 * 4**2, 2 * (1 + copies) * 3 * 4**2 if copies else 0
    assert params[0] - params[1] == 32 * columns + norm + 3 * 4  # and a factor a head and layer


def test_its_product_keeps_its_pieces(tmp_path):
    answer = runner(*SMOKE, "method.shifts=cardinal", place=tmp_path)
    assert answer.code == 0, answer.err
    stored = json.loads((answer.folder / "artifacts" / "model" / "architecture.json").read_text())
    assert stored["arguments"]["locality"]["shifts"] == "cardinal"
    again = runner("evaluate", answer.folder, "hardware=cpu", place=tmp_path)
    assert again.code == 0, again.err
    assert again.result["metrics"]["accuracy"] == answer.result["metrics"]["accuracy"]
    tuned = runner("method=supervised", *SMOKE[1:], "model=vit_tiny", f"model.weights={answer.folder}",
                   "dataset.image_size=16", place=tmp_path)  # fmt: skip
    assert tuned.code == 0, tuned.err


def test_it_measures_every_layer(tmp_path):
    answer = runner(*SMOKE, place=tmp_path)
    logged = {name for line in metric_lines(answer.folder) for name in line}
    assert {f"temperature_layer_{number}" for number in (1, 2, 3)} <= logged
    assert {"scale", "divergence_layer_3"} <= logged
    metrics = answer.result["metrics"]
    assert metrics["scale_start"] == pytest.approx(8**-0.5) and metrics["divergence_from_uniform"] > math.log(17 / 16)


def test_other_networks_are_refused(tmp_path):
    answer = runner(*SMOKE, "model=resnet20", place=tmp_path)
    assert answer.code == 2 and "vision transformer" in answer.message
    answer = runner(*SMOKE, "model=mlp", "model.target=torch.nn:Identity", place=tmp_path)
    assert answer.code == 2 and "locality" in answer.message
