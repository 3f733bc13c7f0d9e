"""ViT, PiT, Swin, CaiT and T2T: sizes of the card, shifted patches, local attention, what image sizes they take."""

import pytest
import torch
import yaml
from torch import nn

from runner.errors import UserError
from runner.models import build_model, describe_model
from runner.models.cait import TalkingMap
from runner.models.swin import cut_windows, join_windows, relative_positions, shift_mask
from runner.models.t2t import sinusoids
from runner.models.transformers import (
    CARDINAL,
    DIRECTIONS,
    AttentionMap,
    Locality,
    PatchEmbedding,
    cut_patches,
    with_shifted_copies,
)
from runner.product import load, save_model
from runner.registry import choice_file, search_path
from runner.schema import ModelSettings

LSA = {"learnable_temperature": True, "diagonal_mask": True}
ARMS = ({}, {"shifts": "diagonal"}, LSA, {"shifts": "diagonal", **LSA})
BACKBONES = ("vit", "pit", "swin", "cait", "t2t")
SHALLOW = {
    "vit": {"depth": 1},
    "pit": {"depths": [1, 1], "heads": [1, 2], "width": 16},
    "swin": {"depths": [2, 1], "heads": [1, 2], "width": 16},
    "cait": {"depth": 1, "class_depth": 1},
    "t2t": {"depth": 1},
}


def settings(name: str, **arguments) -> ModelSettings:
    """The config's network, with other arguments."""
    config = yaml.safe_load(choice_file("model", name, search_path()).read_text())
    return ModelSettings(**{**config, "arguments": {**config["arguments"], **arguments}})


def build(name: str, *, image_size: int = 32, num_classes: int = 10, channels: int = 3, **arguments) -> nn.Module:
    shape = {"image_size": image_size, "num_classes": num_classes, "channels": channels}
    return build_model(settings(name, **arguments), small_image_stem="cifar", **shape).eval()


@pytest.mark.parametrize(
    ("name", "image_size", "num_classes", "counts"),
    [  # the card: plain, SPT, LSA, both; counted on the released networks
        ("vit", 32, 10, (2692426, 2729770, 2692534, 2729878)),
        ("vit", 32, 100, (2709796, 2747140, 2709904, 2747248)),
        ("vit", 64, 200, (2756744, 2906120, 2756852, 2906228)),
        ("pit", 32, 10, (6972586, 8641954, 6972646, 8642014)),
        ("pit", 32, 100, (7007236, 8676604, 7007296, 8676664)),
        ("pit", 64, 200, (7049192, 8732744, 7049252, 8732804)),
        ("swin", 32, 10, (7073188, 8562076, 7073278, 8562166)),
        ("swin", 32, 100, (7107838, 8596726, 7107928, 8596816)),
        ("swin", 64, 200, (7149794, 8652866, 7149884, 8652956)),
        ("cait", 32, 10, (9020618, 9057962, 9020722, 9058066)),
        ("cait", 32, 100, (9037988, 9075332, 9038092, 9075436)),
        ("cait", 64, 200, (9084936, 9234312, 9085040, 9234416)),
        ("t2t", 32, 10, (6486080, 6507032, 6486129, 6507081)),
        ("t2t", 32, 100, (6509210, 6530162, 6509259, 6530211)),
        ("t2t", 64, 200, (6659262, 6680214, 6659312, 6680264)),
    ],
)
def test_parameter_counts_are_those_of_the_card(name, image_size, num_classes, counts):
    with torch.device("meta"):
        networks = [build(name, image_size=image_size, num_classes=num_classes, locality=arm) for arm in ARMS]
    assert tuple(sum(item.numel() for item in network.parameters()) for network in networks) == counts


def test_shifted_copies_of_the_card():
    found = with_shifted_copies(torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None], 1)
    assert found[0].tolist() == [
        [[1, 2], [3, 4]],
        [[0, 0], [0, 1]],
        [[0, 0], [2, 0]],
        [[0, 3], [0, 0]],
        [[4, 0], [0, 0]],
    ]


def test_cardinal_copies_and_larger_shifts():
    image = torch.arange(1.0, 17).view(1, 1, 4, 4)
    left, right, up, down = with_shifted_copies(image, 2, CARDINAL)[0, 1:]
    assert left[0].tolist() == [0, 0, 1, 2] and right[0].tolist() == [3, 4, 0, 0]
    assert up[:, 0].tolist() == [0, 0, 1, 5] and down[:, 0].tolist() == [9, 13, 0, 0]
    assert with_shifted_copies(image, 2, DIRECTIONS["all"]).shape == (1, 9, 4, 4)
    assert [Locality(shift_ratio=ratio).pixels(size) for ratio, size in ((0.5, 4), (0.5, 3), (0.25, 2))] == [2, 1, 1]


def test_patches_run_over_rows_then_columns_then_channels():
    image = torch.arange(32.0).view(1, 2, 4, 4)
    assert cut_patches(image, 2)[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23]


def test_without_its_copies_the_shifted_embedding_is_the_plain_one():
    plain = PatchEmbedding(3, 8, 4, Locality())
    shifted = PatchEmbedding(3, 8, 4, Locality(shifts="diagonal"))
    shifted.norm = nn.Identity()
    with torch.no_grad():
        weight = shifted.projection.weight.view(8, 16, 15)
        weight[..., 3:] = 0
        weight[..., :3] = plain.projection.weight.view(8, 16, 3)
        shifted.projection.bias.copy_(plain.projection.bias)
        images = torch.randn(2, 3, 8, 8)
        assert torch.allclose(shifted(images), plain(images), atol=1e-6)
    assert plain(images).shape == (2, 4, 8)


def test_masked_attention_has_no_diagonal_and_with_two_tokens_is_the_swap():
    masked = AttentionMap(2, 0.3, Locality(diagonal_mask=True, learnable_temperature=True))
    weights = masked(torch.randn(3, 2, 5, 5))
    assert torch.allclose(weights.sum(-1), torch.ones(3, 2, 5)) and weights.diagonal(dim1=-2, dim2=-1).abs().max() == 0
    with torch.no_grad():
        masked.scale.fill_(-7.0)
    assert masked(torch.randn(2, 2, 2)).tolist() == [[[0, 1], [1, 0]]] * 2


def test_without_mask_it_starts_as_ordinary_attention_and_learns_the_factor():
    products = torch.randn(2, 3, 4, 4, requires_grad=True)
    local = AttentionMap(3, 16**-0.5, Locality(learnable_temperature=True))
    weights = local(products)
    assert torch.equal(weights, (products / 4).softmax(-1))
    assert torch.equal(weights, AttentionMap(3, 16**-0.5, Locality())(products))
    logits = (products * 0.25).detach().requires_grad_()
    target = torch.randn(2, 3, 4, 4)
    (logits.softmax(-1) * target).sum().backward()
    (weights * target).sum().backward()
    assert torch.allclose(local.scale.grad, (logits.grad * products).sum((0, 2, 3)), atol=1e-6)


def test_the_mask_of_talking_heads_stands_behind_their_mixing():
    products = torch.randn(2, 4, 5, 5)
    torch.manual_seed(0)
    behind = TalkingMap(4, 0.5, Locality(diagonal_mask=True), masked=True)
    weights = behind(products)
    assert weights.isfinite().all() and weights.diagonal(dim1=-2, dim2=-1).abs().max() == 0
    released = TalkingMap(4, 0.5, Locality(diagonal_mask=True, cait_mask_bug=True), masked=True)
    released.mixing = behind.mixing
    assert released(products).diagonal(dim1=-2, dim2=-1).min() > 0  # only its logit is 0
    classes = TalkingMap(4, 0.5, Locality(diagonal_mask=True), masked=False)
    classes.mixing = behind.mixing
    assert classes(products).diagonal(dim1=-2, dim2=-1).min() > 0


def test_windows():
    maps = torch.arange(64.0).view(1, 8, 8, 1)
    windows = cut_windows(maps, 4)
    assert windows[1, :5, 0].tolist() == [4, 5, 6, 7, 12]
    assert torch.equal(join_windows(windows, 4, 8), maps)
    places = relative_positions(2)
    assert places.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    mask = shift_mask(8, 4, 2)
    assert mask.shape == (4, 16, 16) and mask[0].abs().max() == 0  # the first window is whole
    assert mask[1, 0].view(4, 4).tolist() == [[0, 0, -100, -100]] * 4  # the second one has two strips
    assert mask[3, 0].view(4, 4).tolist() == [[0, 0, -100, -100]] * 2 + [[-100] * 4] * 2


def test_sinusoids():
    table = sinusoids(3, 4)[0]
    expected = [[0, 1, 0, 1], [0.8415, 0.5403, 0.01, 0.99995], [0.9093, -0.4161, 0.02, 0.9998]]
    assert torch.allclose(table, torch.tensor(expected), atol=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_initial_weights(name):
    network = build(name)
    assert all(module.bias.abs().max() == 0 for module in network.modules() if isinstance(module, nn.LayerNorm))
    if name in ("vit", "pit", "cait"):
        assert network.positions.std().item() == pytest.approx(1, rel=0.05)
        fan = sum(network.head.weight.shape)
        assert network.head.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.1)
    else:
        assert network.head.bias.abs().max() < 0.06


def test_layer_scales_of_cait_start_by_the_layer():
    network = build("cait")
    starts = [block.scale2[0].item() for block in network.patch_blocks]
    assert starts == pytest.approx([0.1] * 18 + [1e-5] * 6)
    assert [block.scale1[0].item() for block in network.class_blocks] == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("arm", [{}, {"shifts": "all", "shift_pooling": False, "diagonal_mask": True}, ARMS[-1]])
def test_the_product_is_rebuilt_and_exported(name, arm, tmp_path):
    from runner.models import architecture_of

    torch.manual_seed(1)
    chosen = settings(name, **SHALLOW[name], locality=arm)
    shape = {"image_size": 16, "num_classes": 3, "channels": 1}
    network = build_model(chosen, small_image_stem="cifar", **shape).eval()
    said = {"normalisation": {"mean": [0], "std": [1]}, "class_names": list("abc"), "small_image_stem": "cifar"}
    export = arm == ARMS[-1]
    saved = save_model(
        tmp_path / "model", network, architecture_of(chosen, **shape, **said), torch.zeros(2, 1, 16, 16), export=export
    )
    assert saved["warning"] is None and (tmp_path / "model" / "program.pt2").is_file() == export
    images = torch.randn(3, 1, 16, 16)
    with torch.no_grad():
        expected = network(images)
        assert expected.shape == (3, 3) and torch.equal(load(tmp_path)(images), expected)
        again = ModelSettings(**{**vars(settings(name, **SHALLOW[name])), "weights": str(tmp_path)})
        assert torch.equal(build_model(again, small_image_stem="cifar", **shape).eval()(images), expected)
        if export:
            program = torch.export.load(tmp_path / "model" / "program.pt2").module()
            assert torch.allclose(program(images), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vit", {"image_size": 28, "patch_size": 8}, "28 pixels are no whole number of patches of 8"),
        ("pit", {"image_size": 28, "patch_size": 4, "locality": ARMS[1]}, "7 tokens a side"),
        ("swin", {"image_size": 36, "patch_size": 2}, "no whole number of windows of 4x4"),
        ("swin", {"image_size": 4, "patch_size": 1, "locality": LSA}, "single token"),
        ("cait", {"image_size": 8, "patch_size": 8, "locality": LSA}, "single token"),
        ("t2t", {"image_size": 2, "locality": LSA}, "single token"),
        ("vit", {"window": 4}, "window"),
    ],
)
def test_image_sizes_that_do_not_fit_are_refused(name, options, words):
    with pytest.raises(UserError, match=words):
        build(name, **options)


def test_patches_follow_the_size_of_the_image():
    assert [build("vit", image_size=size).embedding.size for size in (32, 64)] == [4, 8]
    assert [len(build("t2t", image_size=size, depth=1).token_transformers) for size in (16, 32, 64)] == [1, 1, 2]
    assert "runner.models.vit:ViT" in describe_model(settings("vit"), image_size=32, small_image_stem="cifar")
