"""Every table file in conf/: it is right, all its measured cells compose, and its numbers are the card's."""

import pytest

from runner.errors import UserError
from runner.registry import choices, search_path
from runner.tables.document import document
from runner.tables.grid import make_grid
from runner.tables.schema import SCALES, at_scale, read_table

TABLES = list(choices("table", search_path()))


SMALL = {  # embedded, generated, or named by the table that needs it
    "block_graph",
    "digit_tokens",
    "digits",
    "fashion_mnist",
    "gestures",
    "glyph_episodes",
    "ising_models",
    "linear_tasks",
    "none",
    "omniglot_episodes",
    "pendulum",
    "pendulum_logged",
    "several",
    "shifted_gaussians",
    "sinusoid",
    "tiny_imagenet",
    "tiny_imagenet_episodes",
}
THREE_SEEDS = {"cxgrad/desk", "cxgrad/desk_images"}  # the card's check, of many minutes a seed


def scale_of_every_table() -> list:
    """Of all scales the slow tests; at desk scale, which is composed by itself, all tests."""
    return [
        pytest.param(name, scale, marks=[] if scale == "desk" else [pytest.mark.slow])
        for name in TABLES
        for scale in read_table(name).scales
    ]


@pytest.mark.parametrize(("name", "scale"), scale_of_every_table())
def test_a_table_file(name, scale):
    """Every measured cell composes, claims compare what rows say alone; a desk table has its own small grid and data,
    and claims of five seeds, or of three where that is the card's check."""
    table = read_table(name)
    grid = make_grid(name, table, scale, seeds=[0])
    runs = grid.runs()
    assert [run.error for run in runs if run.error] == []
    assert {run.plan.config["scale"]["name"] for run in runs} <= {scale}
    found = document(grid, search_path()[0])
    assert [claim for claim in found["claims"] if claim["verdict"] == "refused"] == []
    if scale == "paper":
        return
    assert 1 <= len(runs) <= 12
    assert {run.plan.config["dataset"]["name"] for run in runs} <= SMALL
    if scale == "desk" and grid.section.claims:
        assert len(at_scale(table, scale).seeds) >= (3 if name in THREE_SEEDS else 5)


def reported(name: str, row: str, column: str) -> tuple:
    found = read_table(name).reported[row][column]
    return found.value, found.spread


@pytest.mark.parametrize(
    ("name", "row", "column", "expected"),
    [
        ("ekg/knowledge_ablation", "Ensemble / Ensemble", "R56 C10", (94.09, 0.07)),
        ("ekg/knowledge_ablation", "Ensemble / Single", "MBv2 training hours", (2.36, None)),
        ("ekg/knowledge_ablation", "unpruned", "MBv2 C100", (76.07, None)),
        ("ekg/filter_scores", "GBN", "C10 validation loss", (0.0710, None)),
        ("ekg/filter_scores", "EKG", "C100 condition number", (0.0649, None)),
        ("ekg/imagenet_resnet", "ResNet-50 EKG, 45%", "top-1 change", (-0.02, None)),
        ("ekg/imagenet_resnet", "ResNet-18 DMCP", "top-5", (None, None)),
        ("modality_focusing/real_data", "NYU Depth v2, mIoU", "student of a general teacher", (47.93, None)),
        ("gap_maml/cross_domain", "MeTAL", "CUB 5-shot", (58.20, 0.24)),
        ("cxgrad/baselines", "MAML++", "mini 5-shot, five epochs", (68.32, 0.44)),
        ("meta_dropout/few_shot", "Meta-dropout", "miniImageNet 5-way 1-shot", (51.93, 0.67)),
        ("hyperdistill/sinusoid", "HyperDistill", "mean squared error", (0.327, 0.052)),
        ("hyperdistill/images", "one step", "loss weights, CIFAR-10 in two stages", (70.15, 1.24)),
        ("bayesian_taml/any_shot", "Bayesian TAML", "SVHN", (51.87, 0.23)),
        ("bayesian_taml/any_shot", "Meta-SGD, released code", "miniImageNet", (68.04, 0.67)),
        ("bayesian_taml/multiple_datasets", "Meta-SGD", "Traffic Signs", (52.07, 0.35)),
    ],
)
def test_numbers_of_the_card(name, row, column, expected):
    assert reported(name, row, column) == expected


def test_the_ablation_has_every_number_of_the_card():
    """6 accuracies x 4 columns; 5 x 2 pairs of hours, and the two of the unpruned networks."""
    cells = [cell for row in read_table("ekg/knowledge_ablation").reported.values() for cell in row.values()]
    assert len([cell for cell in cells if cell.value is not None]) == 6 * 4 + 5 * 4 + 2
    assert len([cell for cell in cells if cell.spread is not None]) == 5 * 4


def test_the_imagenet_table_has_every_row_of_the_card():
    rows = read_table("ekg/imagenet_resnet").reported
    assert [sum(row.startswith(f"ResNet-{depth}") for row in rows) for depth in (18, 34, 50)] == [8, 6, 17]
    hours = [cells["GPU hours"].value for cells in rows.values() if "GPU hours" in cells]
    assert sorted(hours) == [315, 322, 360, 428, 480, 530, 615, 676, 840, 1000, 1000]


def test_scales_are_those_of_the_runner():
    assert set(choices("scale", search_path())) == set(SCALES)


def test_a_scale_that_a_table_is_not_for_is_refused():
    with pytest.raises(UserError, match="ekg/desk is not for scale=paper; it has scale=desk and scale=smoke"):
        make_grid("ekg/desk", read_table("ekg/desk"), "paper")
