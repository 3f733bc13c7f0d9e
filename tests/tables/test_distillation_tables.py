"""The tables of IEP and MHGD have every number of their papers."""

import pytest

from runner.tables.schema import read_table


def values(name: str) -> list[float]:
    rows = read_table(name).reported.values()
    return [cell.value for row in rows for cell in row.values() if cell.value is not None]


@pytest.mark.parametrize(
    ("name", "count", "total"),
    [
        ("iep/cifar100_rates", 36, 2354.96),
        ("iep/tiny_imagenet_rates", 36, 1804.76),
        ("iep/cub200_rates", 36, 1089.59),
        ("iep/mit_scene_rates", 36, 1264.65),
        ("iep/ablation", 16, 1075.33),
        ("iep/ablation_tiny_imagenet", 9, 458.10),
        ("iep/other_students", 30, 1668.69),
        ("iep/tf2_benchmark", 10, 771.46),
        ("mhgd/same_family", 32, 1985.66),
        ("mhgd/other_students", 18, 1249.47),
        ("mhgd/heads", 6, 392.82),
        ("mhgd/benchmark", 26, 1912.37),
        ("mhgd/kd_svd", 15, 923.45),
    ],
)
def test_every_number_of_the_card(name, count, total):
    """The sums are of the papers' columns, added from the cards."""
    found = values(name)
    assert len(found) == count
    assert sum(found) == pytest.approx(total, abs=0.005)


@pytest.mark.parametrize(
    ("name", "row", "column", "expected"),
    [
        ("iep/cifar100_rates", "IEP + black box", "full", 78.37),
        ("iep/cifar100_rates", "RKD", "0.10", 23.27),
        ("iep/mit_scene_rates", "CO", "0.10", 6.07),
        ("iep/ablation", "IEP, plain PCA", "0.10", 51.88),
        ("iep/ablation", "IEP, 4 iterations", "0.25", 66.63),
        ("iep/ablation_tiny_imagenet", "IEP, 3 iterations", "0.25", 53.28),
        ("iep/other_students", "AB", "VGG", None),
        ("iep/tf2_benchmark", "CO", "accuracy", 78.54),
        ("iep/tf2_benchmark", "VID", "accuracy", None),
        ("mhgd/same_family", "MHGD", "CIFAR-100 VGG", 67.02),
        ("mhgd/benchmark", "KD-EID", "best", 74.07),
        ("mhgd/heads", "16 heads", "accuracy", 66.70),
    ],
)
def test_numbers_stand_in_their_cells(name, row, column, expected):
    assert read_table(name).reported[row][column].value == expected
