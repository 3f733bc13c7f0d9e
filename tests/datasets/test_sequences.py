"""ListOps, digits as tokens, and the user's files of tokens."""

import random

import pytest
import torch

from runner.datasets import check_dataset, digit_tokens, listops, load_data, token_file
from runner.errors import UserError


@pytest.fixture
def loaded(scale):
    return lambda settings: load_data(settings, scale(), data_root="", offline=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("[SM 8 7 ]", 5),
        ("[MED 1 4 ]", 2),
        ("[MED 1 4 [SM 5 6 7 ] ]", 4),
        ("[MIN [MAX 3 1 ] [SM 9 9 ] ]", 3),
    ],
)
def test_values_of_expressions(text, value):
    assert listops.value_of(text.split()) == value


def test_expressions_stay_within_their_bounds():
    settings = listops.Settings(name="listops", shortest=10, longest=40, depth=3, arguments=4)
    draws = random.Random(0)
    lengths = []
    for _ in range(200):
        expression, value = listops.draw(settings, draws)
        lengths.append(len(expression))
        nested = deepest = 0
        for token in expression:
            nested += (token in listops.OPERATIONS) - (token == "]")
            deepest = max(deepest, nested)
        assert nested == 0 and deepest <= 3 and 0 <= value <= 9
    assert 10 <= min(lengths) < max(lengths) <= 40


def test_listops_are_the_same_for_every_run(loaded):
    settings = listops.Settings(name="listops", examples=30, test_examples=10)
    torch.manual_seed(0)
    one = loaded(settings)
    torch.manual_seed(1)
    other = loaded(settings)
    assert torch.equal(one.test.inputs, other.test.inputs)
    assert one.train.inputs.shape == (30, 128) and one.vocabulary == 16
    assert one.train.inputs.max() <= 15
    assert not torch.equal(one.train.inputs[:10], one.test.inputs)


def test_impossible_lengths_are_refused(loaded):
    with pytest.raises(UserError, match="too rare"):
        loaded(listops.Settings(name="listops", examples=1, depth=2, arguments=2, shortest=100))


def test_digits_are_64_tokens_of_17_levels(loaded):
    data = loaded(digit_tokens.Settings(name="digit_tokens", validation_fraction=0.1))
    assert (len(data.train), len(data.validation), len(data.test)) == (1298, 144, 355)
    assert data.train.inputs.shape[1] == 64 and data.vocabulary == 18
    assert (data.train.inputs.min(), data.train.inputs.max()) == (1, 17)


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.tsv").write_text(text)
    return token_file.Settings(name="token_file", path=str(folder))


def test_files_of_tokens(tmp_path, loaded):
    settings = write(
        tmp_path,
        basic_train="Source\tTarget\n( a b ) c\tyes\nb b\tno\n",
        basic_val="c\tno\n",
        basic_test="a new\tyes\n",
    )
    settings.dropped = ["(", ")"]
    data = loaded(settings)
    assert data.class_names == ["no", "yes"] and data.vocabulary == 5
    assert data.train.inputs.tolist() == [[2, 3, 4], [3, 3, 0]]
    assert data.test.inputs.tolist() == [[2, 1, 0]]
    assert data.validation.inputs.tolist() == [[4, 0, 0]] and data.validation.labels.tolist() == [0]
    settings.length = 2
    assert loaded(settings).train.inputs.tolist() == [[2, 3], [3, 3]]


def test_wrong_files_are_refused(tmp_path, loaded):
    with pytest.raises(UserError, match=r"needs dataset\.path"):
        check_dataset(token_file.Settings(name="token_file"), "", True)
    settings = write(tmp_path, train="a b\tyes\n")
    with pytest.raises(UserError, match=r"there is no test\.tsv"):
        check_dataset(settings, "", True)
    write(tmp_path, test="a b yes\n")
    with pytest.raises(UserError, match=r"test\.tsv, line 1"):
        loaded(settings)
    write(tmp_path, test="")
    with pytest.raises(UserError, match="has no sequence"):
        loaded(settings)
    write(tmp_path, other_test="a\tb\n")
    with pytest.raises(UserError, match="keep one"):
        check_dataset(settings, "", True)
