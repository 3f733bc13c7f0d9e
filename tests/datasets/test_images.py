"""Class-balanced subsets, validation, statistics and batches."""

import pytest
import torch

from runner.datasets.images import (
    Batches,
    Images,
    Limits,
    Loaded,
    Normalisation,
    assemble,
    balanced_rows,
    hold_out,
    rank_in_class,
    resize,
)
from runner.errors import UserError
from runner.schema import AugmentationSettings, DatasetSettings


def make_images(labels: list[int], size: int = 8) -> Images:
    count = len(labels)
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.tensor(labels), torch.arange(count) + 100)


def test_rank_counts_earlier_images_of_the_class():
    assert rank_in_class(torch.tensor([2, 0, 2, 2, 0, 1])).tolist() == [0, 0, 1, 2, 1, 0]


def test_first_and_last_per_class():
    images = make_images([1, 0, 1, 0, 1, 0, 1])
    first, last = images.first_per_class(2), images.last_per_class(2)
    assert first.index.tolist() == [101, 103, 100, 102]
    assert last.index.tolist() == [105, 103, 106, 104]  # class by class, the very last first
    assert first.labels.tolist() == last.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(last.images[0], images.images[5])


def test_per_class_takes_what_a_small_class_has():
    images = make_images([0, 0, 0, 1])
    assert images.first_per_class(2).index.tolist() == [100, 101, 103]
    assert images.last_per_class(2).index.tolist() == [102, 101, 103]
    assert sorted(images.last_per_class(9).index.tolist()) == [100, 101, 102, 103]


def test_a_taken_part_keeps_its_original_rows():
    part = make_images([0, 1, 0, 1, 0, 1]).take(torch.tensor([5, 2, 3]))
    assert part.index.tolist() == [105, 102, 103]
    assert part.take(torch.tensor([1])).index.tolist() == [102]


@pytest.mark.parametrize(
    ("labels", "count", "rows"),
    [
        ([0, 0, 0, 1, 1, 1], 4, [0, 1, 3, 4]),
        ([0, 0, 0, 1, 1, 1], 3, [0, 1, 3]),  # the remainder goes to the first class
        ([1, 1, 1, 0, 0, 0], 3, [0, 3, 4]),
        ([0, 0, 0, 0, 1, 2], 5, [0, 1, 2, 4, 5]),  # exhausted classes: the rest comes from the others
        ([0, 0, 1, 2], 2, [0, 2]),
        ([0, 1], None, [0, 1]),
        ([0, 1], 7, [0, 1]),
    ],
)
def test_balanced_rows(labels, count, rows):
    assert balanced_rows(torch.tensor(labels), count).tolist() == rows


@pytest.mark.parametrize(
    ("counts", "fraction", "held"),
    [
        ([10, 10], 0.0, [0, 0]),
        ([10, 10], 0.1, [1, 1]),
        ([30, 30], 0.1, [3, 3]),
        ([100, 50], 0.07, [7, 4]),  # 3.5 rounded up; 7.000000000000001 is 7
        ([1, 2, 3], 0.9, [0, 1, 2]),  # every class keeps an image
    ],
)
def test_hold_out_counts(counts, fraction, held):
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    stay, out = hold_out(labels, fraction)
    assert torch.bincount(labels[out], minlength=len(counts)).tolist() == held
    assert sorted(stay.tolist() + out.tolist()) == list(range(len(labels)))


def test_hold_out_takes_the_end_of_every_class():
    stay, out = hold_out(torch.tensor([0, 1, 1, 0, 1, 0]), 0.4)
    assert (stay.tolist(), out.tolist()) == ([0, 1], [2, 3, 4, 5])


def test_statistics_are_exact():
    images = torch.randint(0, 256, (2500, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 2] = 7
    found = Normalisation.of(images)
    pixels = images.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(found.mean, pixels.mean(1).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.std[:2], pixels[:2].std(1, correction=0).float(), rtol=1e-6, atol=0)
    assert found.std[2] == 1.0  # a constant channel is not divided by 0
    again = Normalisation.of(images.flip(0))
    assert torch.equal(found.mean, again.mean)
    assert torch.equal(found.std, again.std)


def test_statistics_of_two_values():
    found = Normalisation.of(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2))
    assert (found.mean.item(), found.std.item()) == (127.5, 127.5)


def test_resize_keeps_constants_and_averages():
    assert torch.equal(resize(torch.full((1, 3, 8, 8), 200, dtype=torch.uint8), 32), torch.full((1, 3, 32, 32), 200))
    # bilinear from 2 to 4 pixels, centres aligned: 0, 1/4, 3/4, 1 of the way
    row = resize(torch.tensor([[0.0, 100.0]]).expand(2, 2).view(1, 1, 2, 2), 4)[0, 0, 0]
    assert row.tolist() == [0, 25, 75, 100]
    assert row.dtype == torch.uint8


# ---- assemble


def make_loaded() -> Loaded:
    return Loaded("made", make_images([0, 1] * 20), make_images([0, 1] * 5), ["a", "b"])


def test_validation_is_taken_from_the_capped_training_split():
    settings = DatasetSettings(name="made", validation_fraction=0.25)
    data = assemble(make_loaded(), settings, Limits(train=16, test=4))
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 4)
    assert data.train.index.tolist() == list(range(100, 112))
    assert data.validation.index.tolist() == list(range(112, 116))
    assert data.test.index.tolist() == [100, 101, 102, 103]
    assert (data.num_classes, data.channels, data.image_size, data.kind) == (2, 3, 8, "images")
    expected = Normalisation.of(data.train.images)  # the held-out images do not enter
    assert torch.equal(data.normalisation.mean, expected.mean)


def test_without_a_fraction_validation_is_empty():
    data = assemble(make_loaded(), DatasetSettings(name="made"), Limits())
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 0, 10)


def test_a_wish_that_cannot_be_met_is_refused():
    with pytest.raises(UserError, match=r"dataset\.train_size=41, but made has 40 train images"):
        assemble(make_loaded(), DatasetSettings(name="made", train_size=41), Limits(train=41))
    assert len(assemble(make_loaded(), DatasetSettings(name="made"), Limits(train=5000)).train) == 40


def test_given_normalisation():
    given = {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}
    data = assemble(make_loaded(), DatasetSettings(name="made", normalisation=given), Limits())
    assert (data.normalisation.mean.tolist(), data.normalisation.std.tolist()) == ([1, 2, 3], [4, 5, 6])


@pytest.mark.parametrize(
    "given", [{"mean": [0.0] * 3}, {"mean": [0.0], "std": [1.0]}, {"mean": [0.0] * 3, "std": [1.0, 0.0, 1.0]}]
)
def test_bad_normalisation_is_refused(given):
    with pytest.raises(UserError, match=r"dataset\.normalisation"):
        assemble(make_loaded(), DatasetSettings(name="made", normalisation=given), Limits())


def test_padding_wider_than_the_image_is_refused():
    settings = DatasetSettings(name="made", augmentation=AugmentationSettings(crop_padding=8))
    with pytest.raises(UserError, match="crop_padding=8 must be smaller"):
        assemble(make_loaded(), settings, Limits())


# ---- batches

UNIT = Normalisation(torch.zeros(3), torch.ones(3))
MOVING = AugmentationSettings(horizontal_flip=True, crop_padding=2)


def make_batches(count: int = 10, size: int = 4, **options) -> Batches:
    options = {"shuffle": True, "augmentation": None} | options
    return Batches(make_images([k % 3 for k in range(count)]), UNIT, size, **options)


def test_an_epoch_has_every_image_once_with_its_label_and_row():
    batches = make_batches()
    seen = list(batches.iterate(5))
    assert [len(batch.labels) for batch in seen] == [4, 4, 2]
    rows = torch.cat([batch.index for batch in seen])
    assert sorted(rows.tolist()) == list(range(10))
    assert torch.equal(torch.cat([batch.images for batch in seen]), batches.images.images[rows].float())
    assert torch.equal(torch.cat([batch.labels for batch in seen]), batches.images.labels[rows])


def test_order_is_a_function_of_the_seed_alone():
    def order(seed: int) -> list[int]:
        torch.rand(seed)  # whatever else was drawn
        return torch.cat([batch.index for batch in make_batches(50).iterate(seed)]).tolist()

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != list(range(50))
    unshuffled = make_batches(50, shuffle=False).iterate(1)
    assert torch.cat([batch.index for batch in unshuffled]).tolist() == list(range(50))


def test_iterating_without_augmentation_draws_nothing():
    before = torch.get_rng_state()
    list(make_batches().iterate(0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("start", [0, 1, 3, 5])
def test_start_goes_on_exactly(start):
    batches = make_batches(20, augmentation=MOVING, views=2, colour=True)
    torch.manual_seed(7)
    whole = batches.iterate(3)
    for _ in range(start):
        next(whole)
    state = torch.get_rng_state()
    rest = list(whole)
    assert len(rest) == 5 - start
    torch.set_rng_state(state)
    resumed = list(batches.iterate(3, start=start))
    assert len(resumed) == len(rest)
    for one, other in zip(rest, resumed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("count", "drop_last", "length"), [(10, False, 3), (10, True, 2), (8, True, 2), (8, False, 2), (3, True, 1)]
)
def test_length(count, drop_last, length):
    batches = make_batches(count, drop_last=drop_last)
    assert len(batches) == len(list(batches.iterate(0))) == length


def test_normalisation_is_applied():
    batches = Batches(
        make_images([0, 1]),
        Normalisation(torch.tensor([10.0, 20, 30]), torch.tensor([2.0, 4, 5])),
        2,
        shuffle=False,
        augmentation=None,
    )
    batch = next(batches.iterate(0))
    pixel = batches.images.images[1, :, 3, 2].float()
    expected = (pixel - torch.tensor([10.0, 20, 30])) / torch.tensor([2.0, 4, 5])
    torch.testing.assert_close(batch.images[1, :, 3, 2], expected)


def test_views_are_drawn_apart_and_belong_to_one_image():
    batches = make_batches(8, 8, augmentation=MOVING, views=2)
    torch.manual_seed(0)
    images = next(batches.iterate(0)).images
    assert images.shape == (8, 2, 3, 8, 8)
    same = (images[:, 0] == images[:, 1]).flatten(1).all(1)
    assert not same.all()
    plain = next(make_batches(8, 8, views=2).iterate(0))
    assert torch.equal(plain.images[:, 0], plain.images[:, 1])
    assert torch.equal(plain.images[:, 0], batches.images.images[plain.index].float())


def test_an_empty_part_works():
    empty = make_images([0, 1]).take(torch.tensor([], dtype=torch.int64))
    assert len(empty.first_per_class(3)) == len(empty.last_per_class(3)) == 0
    batches = Batches(empty, UNIT, 4, shuffle=True, augmentation=MOVING)
    assert len(batches) == len(list(batches.iterate(0))) == 0
