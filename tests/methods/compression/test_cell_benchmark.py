"""Tables of trained architectures: what is drawn, written, read and refused."""

import numpy
import pytest
from commands import runner

from runner.errors import UserError
from runner.methods.compression.architecture_table import ArchitectureTable, read_table
from runner.methods.compression.cell_benchmark import drawn_architectures


def test_a_sample_is_distinct_and_the_seed_s():
    drawn = drawn_architectures(50, 3)
    assert len(set(drawn)) == 50 and drawn == drawn_architectures(50, 3) != drawn_architectures(50, 4)


def test_without_validation_images_nothing_is_compared(tmp_path):
    words = ("dataset=digits", "dataset.validation_fraction=0", "scale=smoke", "hardware=cpu")
    answer = runner("method=cell_benchmark", *words, place=tmp_path)
    assert answer.code == 2 and "dataset.validation_fraction" in answer.message


def test_a_table_is_made(tmp_path):
    answer = runner("method=cell_benchmark", "dataset=digits", "scale=smoke", "hardware=cpu", place=tmp_path)
    assert answer.code == 0, answer.err
    found = read_table(answer.folder / "artifacts" / "architectures.csv")
    assert len(found) == answer.result["metrics"]["architectures"] == 2
    assert (found.columns["cost"] > 0).all() and set(found.accuracies()) == {"accuracy", "accuracy_validation"}


def test_a_table_is_written_and_read(tmp_path):
    columns = {"accuracy_test": numpy.array([0.1, 1 / 3]), "cost": numpy.array([1.0, 1e-7])}
    ArchitectureTable(["|a~0|", "|b~0|"], columns).write(tmp_path / "table.csv")
    found = read_table(tmp_path / "table.csv")
    assert found.architectures == ["|a~0|", "|b~0|"]
    assert {name: values.tolist() for name, values in found.columns.items()} == {
        name: values.tolist() for name, values in columns.items()
    }


def test_a_published_table_in_percent(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("architecture,accuracy_validation,accuracy_test,accuracy_cifar100,note\nx,91.6,94.4,0.7,best\n")
    found = read_table(path)
    assert {name: values[0] for name, values in found.accuracies().items()} == pytest.approx(
        {"accuracy": 0.944, "accuracy_validation": 0.916, "accuracy_cifar100": 0.7}
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("architecture,accuracy\nx,0.5\n", "the column accuracy_test"),
        ("architecture,accuracy_test\n", "needs rows"),
        ("architecture,accuracy_test\nx,0.5\nx,0.6\n", "twice"),
        ("architecture,accuracy_test\nx,much\n", "line 2: 'much'"),
        ("architecture,accuracy_test\nx,nan\n", "line 2: 'nan'"),
        ("architecture,accuracy_test\nx\n", "line 2: ''"),
    ],
)
def test_what_is_no_table_is_refused(text, said, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_table(path)
