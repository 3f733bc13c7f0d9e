"""Whatever is encoded can be read again; what could not is refused when it is written, not after a kill."""

from __future__ import annotations

import enum

import numpy
import pytest
import torch

from runner import checkpoints


class Stage(enum.StrEnum):
    """A text with a class of its own."""

    FIRST = "first"


def written_and_read(value, place):
    path = place / "state.pt"
    checkpoints.write(path, {"value": checkpoints.encode(value)})
    return checkpoints.decode(checkpoints.read(path)["value"])


@pytest.mark.parametrize(
    "value",
    [
        numpy.float64(0.25),  # a subclass of float
        numpy.float32(0.25),
        numpy.complex128(0.25 + 1j),  # of complex
        numpy.int64(3),
        numpy.bool_(True),
        numpy.str_("name"),  # of str
        {numpy.str_("name"): [numpy.float64(1)], "mean": numpy.ones(3).mean()},
        (True, 2**80, -0.5, 1j, "text", b"bytes", None, {1, 2}),
    ],
    ids=repr,
)
def test_numbers_and_text_of_numpy_come_back_as_plain_ones(value, tmp_path):
    assert written_and_read(value, tmp_path) == value


def test_arrays_and_tensors_come_back_to_the_bit(tmp_path):
    array, tensor = numpy.random.default_rng(0).normal(size=(3, 2)), torch.arange(4, dtype=torch.bfloat16)
    read_array, read_tensor = written_and_read([array, tensor], tmp_path)
    assert read_array.tobytes() == array.tobytes()
    assert torch.equal(read_tensor, tensor)
    assert read_tensor.dtype == tensor.dtype


def test_arrays_keep_their_shape(tmp_path):
    for array in (numpy.array(2.5), numpy.zeros((0, 3)), numpy.arange(6.0).reshape(2, 3).T[::-1]):
        found = written_and_read(array, tmp_path)
        assert isinstance(found, numpy.ndarray)
        assert found.shape == array.shape
        assert (found == array).all()


@pytest.mark.parametrize("value", [Stage.FIRST, len, [Stage.FIRST], {"stage": Stage.FIRST}], ids=repr)
def test_what_loading_would_refuse_is_refused_when_it_is_written(value):
    with pytest.raises(TypeError, match="only tensors, numbers, text and plain containers"):
        checkpoints.encode(value)


def test_a_torn_file_is_absent(tmp_path):
    path = tmp_path / "state.pt"
    checkpoints.write(path, {"value": 1})
    path.write_bytes(path.read_bytes()[:-1])
    assert checkpoints.read(path) is None
