"""Generated gestures and the user's windows: splits by domain, what the tone says, refusals."""

from pathlib import Path

import numpy
import pytest
import torch

from runner.datasets import check_dataset, gestures, load_data, series_file
from runner.errors import UserError


@pytest.fixture
def loaded(scale):
    return lambda settings: load_data(settings, scale(), data_root="", offline=True)


def test_gestures_are_split_by_people(loaded):
    data = loaded(gestures.Settings(name="gestures", validation_fraction=0.2, seed=0))
    assert (len(data.train), len(data.validation), len(data.test)) == (1200, 300, 500)
    assert data.train.inputs.shape[1:] == (3, 100) and data.train.inputs.dtype == torch.float32
    assert data.test.groups["domain"].unique().tolist() == [6, 7]
    assert set(data.train.groups["domain"].tolist()) == set(range(6))
    rows = torch.cat((data.train.index, data.validation.index)).sort().values
    assert torch.equal(rows, torch.arange(1500))
    assert torch.bincount(data.test.labels).tolist() == [126, 126, 124, 124]


def test_the_same_seed_draws_the_same_gestures_and_null_those_of_the_run(loaded):
    of = {}
    for run_seed in (0, 1):
        for seed in (None, 5):
            torch.manual_seed(run_seed)
            of[run_seed, seed] = loaded(gestures.Settings(name="gestures", seed=seed)).test.inputs
    assert torch.equal(of[0, 5], of[1, 5])
    assert not torch.equal(of[0, None], of[1, None])


def strongest_tone(windows):
    """Of each window, which of the tones' frequencies is strongest over its channels."""
    time = torch.linspace(0, 1, windows.shape[-1])
    waves = torch.exp(-2j * torch.pi * torch.tensor(gestures.TONES)[:, None] * time)
    return (windows.to(torch.complex64) @ waves.T).abs().sum(1).argmax(1)


def test_the_tone_tells_the_class_in_training_people_alone(loaded):
    data = loaded(gestures.Settings(name="gestures", seed=1, noise=0.1, tone=3.0))
    agreement = {
        name: (strongest_tone(part.inputs) == part.labels).float().mean().item()
        for name, part in (("train", data.train), ("test", data.test))
    }
    assert agreement["train"] == pytest.approx(0.8, abs=0.05)
    assert agreement["test"] == pytest.approx(0.25, abs=0.06)


def test_the_style_changes_half_way_and_says_nothing_of_the_class(loaded):
    data = loaded(gestures.Settings(name="gestures", seed=2))
    style = data.train.groups["style"]
    for person in range(6):
        of_person = style[data.train.groups["domain"] == person]
        assert of_person.tolist() == [0] * 125 + [1] * 125
    shares = [data.train.labels[style == number].bincount() / (style == number).sum() for number in (0, 1)]
    assert (shares[0] - shares[1]).abs().max() < 0.05


def test_motifs_stay_within_one_and_begin_where_their_phase_says():
    time = torch.linspace(0, 1, 200).expand(4, 200)
    one = torch.ones(4, 1)
    found = gestures.motifs(time, torch.arange(4), 4 * one, 0 * one, 0.5 * one)
    assert found.abs().max() <= 1 + 1e-6
    assert found[2].unique().tolist() == [-1, 1]  # square
    assert found[3, 0] == -1  # a saw begins at its lowest
    assert found[1, 0] == 0 and found[0, 100].abs() < 0.2


def write(path: Path, **changes) -> Path:
    generator = numpy.random.default_rng(0)
    arrays = {
        "x": generator.normal(3, 2, (40, 2, 30)),
        "y": numpy.array(["walk", "run"] * 20),
        "domain": numpy.repeat([3, 5, 7, 9], 10),
    } | changes
    numpy.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def settings(path, **changes):
    return series_file.Settings(**{"name": "series_file", "path": str(path), "test_domains": [7]} | changes)


def test_a_users_windows(tmp_path, loaded):
    data = loaded(settings(write(tmp_path / "walks.npz"), validation_fraction=0.2))
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 6, 10)
    assert data.class_names == ["run", "walk"] and data.display_name == "walks"
    seen = torch.cat((data.train.inputs, data.validation.inputs))
    assert seen.mean((0, 2)) == pytest.approx([0, 0], abs=1e-5)
    assert seen.std((0, 2)) == pytest.approx([1, 1], abs=1e-5)
    raw = loaded(settings(tmp_path / "walks.npz", standardise=False))
    assert raw.test.inputs.mean() == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"y": None}, "the array y is missing"),
        ({"x": numpy.zeros((40, 30))}, "x (40, 30)"),
        ({"domain": numpy.zeros(3)}, "domain (3,)"),
        ({"x": numpy.full((40, 2, 30), numpy.nan)}, "not finite"),
        ({"y": numpy.array([None] * 40)}, "cannot be read"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, changes, text, loaded):
    with pytest.raises(UserError, match=text.replace("(", r"\(").replace(")", r"\)")):
        loaded(settings(write(tmp_path / "wrong.npz", **changes)))


def test_refusals_before_anything_is_read(tmp_path, loaded):
    file = write(tmp_path / "walks.npz")
    (tmp_path / "text.npz").write_text("no archive")
    for wrong, text in (
        (settings(None), "needs dataset.path"),
        (settings(tmp_path / "text.npz"), "needs a .npz file"),
        (settings(file, test_domains=[]), "name the domains"),
    ):
        wrong.path = None if wrong.path == "None" else wrong.path
        with pytest.raises(UserError, match=text):
            check_dataset(wrong, "", offline=True)
    with pytest.raises(UserError, match="there is no domain 4"):
        loaded(settings(file, test_domains=[4]))
    with pytest.raises(UserError, match="left to train on"):
        loaded(settings(file, test_domains=[3, 5, 7, 9]))
