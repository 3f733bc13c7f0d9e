"""Tasks: a function of (seed, split, number), classes that do not meet, sizes, sets of tasks."""

import zipfile
from io import BytesIO

import numpy
import pytest
import torch
from PIL import Image

from runner.datasets import check_dataset, found_in_root, kind_of, load_data
from runner.datasets.episodes import Tasks, draw, stack
from runner.datasets.glyphs import glyphs
from runner.errors import UserError
from runner.schema import AugmentationSettings, DatasetSettings, EpisodeSettings

UNIT = {"mean": [0.0], "std": [255.0]}
COLOUR = {"mean": [0.0] * 3, "std": [255.0] * 3}


def glyph_data(scale, size="paper", limit=None, **episodes):
    settings = DatasetSettings(
        name="glyph_episodes", normalisation=UNIT, episodes=EpisodeSettings(**{"queries": 10, **episodes})
    )
    return load_data(settings, scale(size, limit), data_root="unused", offline=True)


@pytest.fixture(scope="module")
def glyph_set(scale):
    return glyph_data(scale)


def test_a_task_is_a_function_of_seed_split_and_number(glyph_set):
    first = glyph_set.task("train", 7, seed=1)
    torch.rand(5)
    assert all(torch.equal(a, b) for a, b in zip(first, glyph_set.task("train", 7, seed=1), strict=True))
    for other in (glyph_set.task("train", 8, seed=1), glyph_set.task("train", 7, seed=2), glyph_set.task("test", 7)):
        assert not torch.equal(first.support, other.support)


def test_validation_and_test_tasks_do_not_depend_on_the_seed_of_the_run(glyph_set):
    for split in ("validation", "test"):
        assert torch.equal(glyph_set.task(split, 3, seed=1).query, glyph_set.task(split, 3, seed=2).query)


def test_the_shape_of_a_task(glyph_set):
    task = glyph_set.task("test", 0)
    assert task.support.shape == (5, 1, 28, 28) and task.query.shape == (50, 1, 28, 28)
    assert task.support_targets.tolist() == [0, 1, 2, 3, 4]
    assert task.query_targets.tolist() == [k for k in range(5) for _ in range(10)]
    assert task.query.min() >= 0 and task.query.max() == 1
    several = glyph_set.tasks("test", range(3))
    assert several.count == 3 and torch.equal(several.support[0], task.support)


def test_classes_of_the_splits_do_not_meet(glyph_set):
    assert [len(getattr(glyph_set, split)) for split in ("train", "validation", "test")] == [2400, 400, 1200]
    assert len(set(glyph_set.class_names)) == 200
    assert torch.equal(glyph_set.test.images[:20, 0], glyphs(140))


def test_glyphs_are_strokes_that_differ_between_classes_more_than_within():
    first, second = glyphs(0).float(), glyphs(1).float()
    assert first.shape == (20, 28, 28) and first.max() >= 250 and first.median() < 50
    within = (first - first.mean(0)).square().mean()
    assert (first.mean(0) - second.mean(0)).square().mean() > 0.2 * within
    assert torch.equal(glyphs(0).float(), first)


def test_support_and_query_share_no_image():
    classes = [torch.arange(20 * k, 20 * k + 20) for k in range(8)]
    support, query = draw(classes, 5, 3, 10, torch.Generator().manual_seed(0))
    rows = torch.cat([*support, *query])
    assert len(rows.unique()) == len(rows) == 5 * 13
    for few, many in zip(support, query, strict=True):
        assert len({int(row) // 20 for row in (*few, *many)}) == 1


def test_imbalanced_tasks():
    """In half of the tasks every class has its own number of shots, in the other half all have one."""
    classes = [torch.arange(30 * k, 30 * k + 30) for k in range(7)]
    alike, counts = 0, []
    for number in range(400):
        support, query = draw(classes, 5, 1, 8, torch.Generator().manual_seed(number), max_shots=10)
        sizes = [len(part) for part in support]
        assert all(len(part) == 8 for part in query)
        alike += len(set(sizes)) == 1
        counts += sizes
    assert set(counts) == set(range(1, 11)) and 160 < alike < 240
    support, _ = draw([torch.arange(10)] * 5, 5, 5, 8, torch.Generator().manual_seed(0), max_shots=10)
    assert [len(part) for part in support] == [2] * 5  # a class of ten images has two left


def test_imbalanced_tasks_are_not_stacked(scale):
    data = glyph_data(scale, max_shots=8)
    assert not data.balanced and "1..8-shot" in data.describe()
    tasks = [data.task("train", number, 0) for number in range(6)]
    assert len({len(task.support) for task in tasks}) > 1
    assert tasks[0].support_targets.tolist() == sorted(tasks[0].support_targets.tolist())


def test_other_numbers_of_ways_and_queries_in_training(scale):
    data = glyph_data(scale, train_ways=20, test_queries=4, train_classes=25)
    assert data.task("train", 0, 0).query.shape[0] == 200
    assert data.task("test", 0).query.shape[0] == 20
    assert len(data.train) == 25 * 20


def test_rotations_are_classes(scale):
    data = glyph_data(scale, rotations=True, train_classes=6)
    assert len(data.train.labels.unique()) == 24
    assert torch.equal(data.train.images[120], torch.rot90(data.train.images[0], 1, (1, 2)))


def test_smoke_reads_few_classes(scale):
    data = glyph_data(scale, "smoke", 40, queries=2)
    assert len(data.train.labels.unique()) == 5 and len(data.train) == 15


def test_views_of_training_images_are_the_tasks_own(scale):
    settings = DatasetSettings(
        name="glyph_episodes",
        normalisation=UNIT,
        augmentation=AugmentationSettings(horizontal_flip=True),
        episodes=EpisodeSettings(queries=10),
    )
    data = load_data(settings, scale("paper"), data_root="unused", offline=True)
    plain = glyph_data(scale)
    state = torch.get_rng_state()
    task = data.task("train", 0, 0)
    assert torch.equal(torch.get_rng_state(), state), "a task draws from no generator but its own"
    same = plain.task("train", 0, 0)
    flipped = [torch.equal(a, b.flip(-1)) for a, b in zip(task.query, same.query, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(task.query, same.query, strict=True)]
    assert 10 < sum(flipped) < 40 and sum(flipped) + sum(kept) == 50
    assert torch.equal(data.task("test", 0).query, plain.task("test", 0).query)


@pytest.mark.parametrize(
    ("episodes", "words"),
    [
        ({"ways": 30}, r"30-way tasks, but glyphs has 20 validation classes.*dataset\.episodes\.ways"),
        ({"shots": 15}, "15 shots and 10 queries need 25 images"),
    ],
)
def test_tasks_that_a_set_cannot_give(scale, episodes, words):
    with pytest.raises(UserError, match=words):
        glyph_data(scale, **episodes)


def test_sinusoids(scale):
    settings = DatasetSettings(
        name="sinusoid", episodes=EpisodeSettings(ways=1, shots=10, queries=10, test_queries=100)
    )
    assert kind_of(settings) == "regression episodes"
    data = load_data(settings, scale("paper"), data_root="unused", offline=True)
    task = data.task("test", 0)
    assert task.support.shape == (10, 1) and task.query_targets.shape == (100, 1)
    inputs = torch.cat([task.support, task.query]).double()
    targets = torch.cat([task.support_targets, task.query_targets]).double()
    waves = torch.cat([inputs.sin(), inputs.cos()], 1)
    solution = torch.linalg.lstsq(waves, targets).solution
    torch.testing.assert_close(waves @ solution, targets, rtol=0, atol=1e-4)  # A sin(x - phase), nothing else
    assert 0.1 <= solution.norm() <= 5
    assert data.tasks("train", range(4), 0).support.shape == (4, 10, 1)
    with pytest.raises(UserError, match="ways=1"):
        load_data(
            DatasetSettings(name="sinusoid", episodes=EpisodeSettings()), scale("paper"), data_root="", offline=True
        )


def png(value: int, side: int = 8) -> bytes:
    stream = BytesIO()
    Image.fromarray(numpy.full((side, side, 3), value, dtype=numpy.uint8)).save(stream, "png")
    return stream.getvalue()


def folder_data(path, scale, **episodes):
    settings = DatasetSettings(
        name="episode_folder",
        path=str(path),
        normalisation=COLOUR,
        episodes=EpisodeSettings(**{"ways": 2, "shots": 1, "queries": 2, **episodes}),
    )
    return load_data(settings, scale("paper"), data_root="unused", offline=True)


@pytest.fixture
def splits(tmp_path):
    """Three classes a split of three images, each class of one grey value."""
    for number, split in enumerate(("train", "val", "test")):
        for label in range(3):
            folder = tmp_path / "set" / split / f"class{number}{label}"
            folder.mkdir(parents=True)
            for image in range(3):
                (folder / f"{image}.png").write_bytes(png(80 * number + 20 * label))
    return tmp_path / "set"


def test_a_folder_of_splits(splits, scale):
    data = folder_data(splits, scale)
    assert data.display_name == "episode_folder:set" and len(data.class_names) == 9
    for split, low in (("train", 0), ("validation", 80), ("test", 160)):
        task = data.task(split, 0)
        values = [round(255 * float(image.mean())) for image in task.support]
        assert set(values) <= {low, low + 20, low + 40} and len(set(values)) == 2
        assert [round(255 * float(image.mean())) for image in task.query] == [v for v in values for _ in range(2)]
    again = folder_data(splits, scale)  # from the cache of decoded images
    assert torch.equal(again.test.images, data.test.images)


def test_published_lists_in_a_zip(tmp_path, scale):
    with zipfile.ZipFile(tmp_path / "mini.zip", "w") as archive:
        for number, split in enumerate(("train", "val", "test")):
            lines = ["filename,label"]
            for label in range(2):
                for image in range(3):
                    name = f"n{number}{label}{image}.png"
                    archive.writestr(f"images/{name}", png(90 * number + 30 * label))
                    lines.append(f"{name},n{number}{label}")
            archive.writestr(f"{split}.csv", "\n".join(lines))
    data = folder_data(tmp_path / "mini.zip", scale)
    assert data.class_names == ["n00", "n01", "n10", "n11", "n20", "n21"]
    assert sorted(data.test.images.flatten(1)[:, 0].unique().tolist()) == [180, 210]


def test_files_that_an_archiver_adds_are_no_images(splits, scale):
    for place in (splits / "__MACOSX" / "train" / "class00", splits / "train" / "__MACOSX"):
        place.mkdir(parents=True)
        (place / "._0.png").write_bytes(b"attributes")
        (place / "0.png").write_bytes(b"attributes")
    assert len(folder_data(splits, scale).class_names) == 9


def test_a_listed_name_that_two_images_have_is_refused(splits, scale):
    for split in ("train", "val", "test"):
        (splits / f"{split}.csv").write_text(f"filename,label\n0.png,{split}")
    with pytest.raises(UserError, match=r"names 0\.png, and 9 images have this name"):
        folder_data(splits, scale)


def test_a_class_in_two_splits_is_refused(splits, scale):
    (splits / "test" / "class20").rename(splits / "test" / "class00")
    with pytest.raises(UserError, match="class00 is in train and in test"):
        folder_data(splits, scale)


def test_a_folder_without_test_classes_is_refused(splits, scale):
    (splits / "test").rename(splits / "more")
    with pytest.raises(UserError, match=r"has no test classes; needs train/CLASS/image"):
        folder_data(splits, scale)


def test_what_is_missing_is_said_first():
    with pytest.raises(UserError, match=r"needs dataset\.path=PATH"):
        check_dataset(DatasetSettings(name="episode_folder", episodes=EpisodeSettings()), "data", offline=True)
    with pytest.raises(UserError, match=r"Omniglot \(16 MB\) is not in .*offline=true"):
        check_dataset(DatasetSettings(name="omniglot_episodes", episodes=EpisodeSettings()), "nowhere", offline=True)


def test_omniglot_from_its_small_zips(shared_data, scale):
    path = shared_data / "omniglot"
    settings = DatasetSettings(
        name="omniglot_episodes", path=str(path), normalisation=UNIT, episodes=EpisodeSettings(queries=15)
    )
    data = load_data(settings, scale("paper"), data_root="unused", offline=True)
    sizes = [len(getattr(data, split).labels.unique()) for split in ("train", "validation", "test")]
    assert sum(sizes) == len(data.class_names) and sizes[2] == round(sum(sizes) * 423 / 1623)
    assert torch.bincount(data.train.labels).tolist() == [20] * sizes[0]
    task = data.task("test", 0)
    assert task.support.shape == (5, 1, 28, 28) and task.support.mean() < 0.3, "strokes are white on black"


def test_parts_in_the_data_folder_are_taken_but_at_paper_scale(shared_data, scale, tmp_path):
    """Omniglot's small zips, and a part of Tiny ImageNet."""
    (tmp_path / "omniglot").mkdir()
    name = "omniglot/images_background_small1.zip"
    (tmp_path / name).symlink_to(shared_data / name)
    settings = DatasetSettings(name="omniglot_episodes", normalisation=UNIT, episodes=EpisodeSettings(queries=1))
    assert (
        "Balinese/character01" in load_data(settings, scale("smoke", 40), data_root=tmp_path, offline=True).class_names
    )
    assert found_in_root({"name": "omniglot_episodes"}, tmp_path) == tmp_path / "omniglot"
    with pytest.raises(UserError, match=r"omniglot is a part of the set.*dataset\.path=.*omniglot takes the part"):
        load_data(settings, scale("paper"), data_root=tmp_path, offline=True)
    for name in ("tiny_imagenet", "tiny_imagenet_episodes"):
        assert found_in_root({"name": name}, tmp_path) is None
    part = tmp_path / "tiny_imagenet_part.tar"
    part.write_bytes(b"")
    for name in ("tiny_imagenet", "tiny_imagenet_episodes"):
        assert found_in_root({"name": name}, tmp_path) == part
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(b"")
    assert found_in_root({"name": "tiny_imagenet"}, tmp_path) is None, "the published zip is checked by its sum"


def test_tiny_imagenet_classes_in_the_order_of_their_ids(shared_data, scale):
    settings = DatasetSettings(
        name="tiny_imagenet_episodes",
        path=str(shared_data / "tiny_imagenet_100_per_class.tar.xz"),
        normalisation=COLOUR,
        episodes=EpisodeSettings(queries=2),
    )
    data = load_data(settings, scale("smoke", 40), data_root="unused", offline=True)
    assert data.class_names == sorted(data.class_names) and len(data.class_names) == 15
    assert data.task("test", 0).query.shape == (10, 3, 64, 64)


def test_stacks_are_in_order():
    single = [Tasks(*(torch.tensor([float(k)]) for _ in range(4))) for k in range(3)]
    assert stack(single).query.flatten().tolist() == [0.0, 1.0, 2.0]
