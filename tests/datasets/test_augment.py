"""Batched augmentation against the same done image by image, pixel by pixel."""

import colorsys

import pytest
import torch

from runner.datasets import check_dataset
from runner.datasets.augment import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    augment,
    erase,
    flip_and_crop,
    vary_colour,
)
from runner.errors import UserError
from runner.schema import AugmentationSettings, DatasetSettings


def make_images(count: int = 6, channels: int = 3, height: int = 7, width: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("mode", ["reflect", "constant"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("flips", [True, False])
def test_flip_and_crop_equal_flip_pad_crop_of_each_image(mode, channels, flips):
    images, padding = make_images(40, channels), 3
    generator = torch.Generator().manual_seed(2)
    top, left = torch.randint(0, 2 * padding + 1, (2, 40), generator=generator)
    top[:4], left[:4] = torch.tensor([0, 0, 6, 6]), torch.tensor([0, 6, 0, 6])  # the corners
    flip = torch.rand(40, generator=generator) < 0.5
    found = flip_and_crop(images, flip if flips else None, top, left, padding, mode)
    for number, image in enumerate(images):
        expected = image.flip(-1) if flips and flip[number] else image
        expected = torch.nn.functional.pad(expected[None].float(), (padding,) * 4, mode=mode)[0]
        y, x = int(top[number]), int(left[number])
        assert torch.equal(found[number].float(), expected[:, y : y + 7, x : x + 9])
    assert found.dtype == torch.uint8


def test_reflection_does_not_repeat_the_border():
    row = torch.tensor([1, 2, 3, 4], dtype=torch.uint8).expand(1, 1, 4, 4)
    zero = torch.tensor([0])
    assert flip_and_crop(row, None, zero + 2, zero, 2, "reflect")[0, 0, 0].tolist() == [3, 2, 1, 2]
    assert flip_and_crop(row, None, zero + 2, zero + 4, 2, "constant")[0, 0, 0].tolist() == [3, 4, 0, 0]


def test_contrast_is_about_the_mean_of_each_channel_of_each_image():
    images = torch.tensor([[[[0.0, 100.0]], [[10.0, 30.0]]], [[[0.0, 100.0]], [[10.0, 30.0]]]])
    found = adjust_contrast(images, torch.tensor([0.5, 2.0]))
    assert found.tolist() == [[[[25, 75]], [[15, 25]]], [[[-50, 150]], [[0, 40]]]]  # not clipped


def test_brightness_adds():
    assert adjust_brightness(torch.zeros(2, 1, 1, 1), torch.tensor([0.1, -0.2])).flatten().tolist() == pytest.approx(
        [0.1, -0.2]
    )


@pytest.mark.parametrize("factor", [0.0, 0.8, 1.0, 1.2, 5.0])
def test_saturation_equals_hsv_pixel_by_pixel(factor):
    images = make_images(2, height=8, width=8).float()
    images[0, :, 0, 0] = 77.0  # gray
    images[0, :, 0, 1] = 0.0  # black
    images[0, :, 0, 2] = torch.tensor([255.0, 0.0, 0.0])  # already saturated
    found = adjust_saturation(images, torch.full((2,), factor))
    for n, y, x in torch.cartesian_prod(torch.arange(2), torch.arange(8), torch.arange(8)).tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(*(images[n, :, y, x] / 255).tolist())
        expected = colorsys.hsv_to_rgb(hue, min(saturation * factor, 1.0), value)
        assert found[n, :, y, x].tolist() == pytest.approx([255 * v for v in expected], abs=2e-3)


def test_saturation_of_pixels_below_zero_follows_tensorflow():
    # value 100, saturation (100 + 20) / 100 = 1.2, times 0.5 is 0.6: the smallest becomes 40, the middle half way
    pixel = torch.tensor([100.0, 40.0, -20.0]).view(1, 3, 1, 1)
    assert adjust_saturation(pixel, torch.tensor([0.5])).flatten().tolist() == pytest.approx([100, 70, 40])
    # factor 1 still clips the saturation to 1
    assert adjust_saturation(pixel, torch.tensor([1.0])).flatten().tolist() == pytest.approx([100, 50, 0])
    # a value of 0 or less has the saturation 0
    below = torch.tensor([-1.0, -5.0, -9.0]).view(1, 3, 1, 1)
    assert adjust_saturation(below, torch.tensor([1.1])).flatten().tolist() == pytest.approx([-1, -1, -1])


def test_saturation_of_one_channel_is_the_identity():
    images = make_images(channels=1).float()
    assert torch.equal(adjust_saturation(images, torch.full((6,), 0.8)), images)


def test_colour_draws_lie_in_the_ranges_and_differ_between_images():
    torch.manual_seed(0)
    image = torch.tensor([[90.0, 110.0], [60.0, 100.0], [100.0, 140.0]]).view(1, 3, 1, 2)
    varied = vary_colour(image.expand(2000, -1, -1, -1))
    shift = varied.mean((2, 3)).amax(1) - 120  # the largest channel's mean moves by the brightness only
    assert shift.abs().max() <= 0.2001
    assert shift.max() > 0.19
    assert shift.min() < -0.19
    contrast = (varied[:, 2, 0, 1] - varied[:, 2, 0, 0]) / 40  # the value channel is not moved by the saturation
    assert 0.7999 <= contrast.min() < 0.81
    assert 1.19 < contrast.max() <= 1.2001
    middle = varied.mean(3)
    saturation = ((middle[:, 2] - middle[:, 1]) / middle[:, 2]) / (40 / 120)
    assert saturation.min() < 0.82
    assert saturation.max() > 1.18


def test_augment_draws_every_offset_and_both_flips():
    torch.manual_seed(0)
    image = torch.arange(25, dtype=torch.uint8).view(1, 1, 5, 5).expand(4000, -1, -1, -1)
    found = augment(image, AugmentationSettings(horizontal_flip=True, crop_padding=1), colour=False)
    kinds, counts = found.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 2 * 9
    assert counts.min() > 4000 / 18 * 0.7
    assert found.dtype == torch.uint8


def test_augment_flips_only():
    torch.manual_seed(0)
    images = make_images(200)
    found = augment(images, AugmentationSettings(horizontal_flip=True), colour=False)
    flipped = (found == images.flip(-1)).flatten(1).all(1)
    same = (found == images).flatten(1).all(1)
    assert (flipped ^ same).all()
    assert 70 < flipped.sum() < 130


def test_no_augmentation_returns_the_images():
    images = make_images()
    assert augment(images, None, colour=False) is images
    assert augment(images, AugmentationSettings(), colour=False) is images


def test_erasing_fills_one_rectangle_of_some_images():
    images, fill = torch.randn(400, 2, 12, 10), torch.tensor([7.0, 9.0])
    torch.manual_seed(3)
    found = erase(images, 0.25, fill)
    changed = (found != images).any(1)
    assert 0.15 < changed.flatten(1).any(1).float().mean() < 0.35
    for image, marks in zip(found[changed.flatten(1).any(1)], changed[changed.flatten(1).any(1)], strict=True):
        rows, columns = marks.any(1).nonzero().flatten(), marks.any(0).nonzero().flatten()
        height, width = len(rows), len(columns)
        assert marks.sum() == height * width and height < 12 and width < 10  # one rectangle, smaller than the image
        assert 0.01 < height * width / 120 < 0.45 and 0.2 < height / width < 5
        assert torch.equal(image[:, marks], fill[:, None].expand(-1, height * width))
    assert torch.equal(erase(images, 0.0, fill), images)


@pytest.mark.parametrize("policy", ["cifar10", "svhn", "imagenet"])
def test_policies_change_every_image_by_its_own_draws(policy):
    images = make_images(64, height=16, width=16)
    torch.manual_seed(4)
    found = augment(images, AugmentationSettings(policy=policy), colour=False)
    assert found.dtype == torch.uint8 and found.shape == images.shape
    assert 20 < sum(not torch.equal(a, b) for a, b in zip(found, images, strict=True)) < 64
    moved = [image for image in found if (image == 128).flatten(1).float().mean() > 0.04]
    assert moved, "nothing was moved out of any image"


@pytest.mark.parametrize("name", ["glyph_episodes", "imagenet"])
def test_they_are_refused_where_images_are_not_in_memory(name, tmp_path):
    (tmp_path / "train" / "n0").mkdir(parents=True)
    (tmp_path / "val" / "n0").mkdir(parents=True)
    settings = DatasetSettings(
        name=name,
        path=str(tmp_path) if name == "imagenet" else None,
        image_size=32,
        normalisation={"mean": [0], "std": [1]},
        augmentation=AugmentationSettings(erasing=0.25),
    )
    with pytest.raises(UserError, match=r"dataset\.augmentation\.erasing=0\.25"):
        check_dataset(settings, tmp_path, offline=True)


def test_a_part_of_a_batch_gets_the_policies_and_rectangles_of_the_whole():
    images, settings = make_images(10, height=16, width=16), AugmentationSettings(crop_padding=2, policy="cifar10")
    part = slice(4, 7)

    def views(images: torch.Tensor, rows: slice, count: int) -> torch.Tensor:
        torch.manual_seed(5)
        moved = augment(images, settings, False, rows, count)
        return erase(moved.float(), 0.5, torch.zeros(3), rows, count)

    assert torch.equal(views(images[part], part, 10), views(images, slice(None), 10)[part])
