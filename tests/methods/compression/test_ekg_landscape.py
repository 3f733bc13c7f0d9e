"""Hessian extremes against closed forms and dense Hessians, filter-normalised surfaces, the landscape study's parts."""

import json
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from commands import SMOKE, runner
from forked import repository
from torch import nn
from torch.nn import functional as F

pytest.importorskip("matplotlib", reason="the extra [figures] is not installed")

from runner.evaluation import batch_statistics
from runner.methods.compression.ekg_landscape import mean_loss, random_rates, share
from runner.methods.compression.gates import GatedNetwork
from runner.methods.compression.hessian import Extremes, HessianProduct, extreme_eigenvalues
from runner.methods.compression.loss_surface import filter_normalised_direction, losses_along
from runner.models import build_model
from runner.schema import ModelSettings


def symmetric(values: torch.Tensor) -> torch.Tensor:
    """A matrix with these eigenvalues and random eigenvectors."""
    rotation = torch.linalg.qr(torch.randn(len(values), len(values), dtype=values.dtype)).Q
    return rotation @ torch.diag(values) @ rotation.T


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)
    ).double()


def data(count: int = 12) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images, labels = torch.randn(count, 1, 6, 6, dtype=torch.float64), torch.arange(count) % 3
    return list(zip(images.split(8), labels.split(8), strict=True))  # a smaller last batch


def dense_hessian(network: nn.Module, batches: list) -> torch.Tensor:
    """By torch.func.hessian, over all parameters in their order."""
    shapes = {name: item.shape for name, item in network.named_parameters()}

    def loss(flat: torch.Tensor) -> torch.Tensor:
        pieces = flat.split([shape.numel() for shape in shapes.values()])
        weights = {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
        images = [batch[0] for batch in batches]
        logits = torch.cat([torch.func.functional_call(network, weights, (part,)) for part in images])
        return F.cross_entropy(logits, torch.cat([batch[1] for batch in batches]))

    return torch.func.hessian(loss)(nn.utils.parameters_to_vector(network.parameters()).detach())


def differenced_hessian(network: nn.Module, batches: list, step: float = 1e-5) -> torch.Tensor:
    """By central differences of the gradient: torch.func.hessian is not symmetric through batch statistics."""
    parameters = list(network.parameters())
    point = nn.utils.parameters_to_vector(parameters).detach().clone()

    def gradient(at: torch.Tensor) -> torch.Tensor:
        nn.utils.vector_to_parameters(at, parameters)
        loss = sum(share(network, batch, batches) for batch in batches)
        return torch.cat([item.reshape(-1) for item in torch.autograd.grad(loss, parameters)])

    moves = step * torch.eye(len(point), dtype=point.dtype)
    rows = torch.stack([(gradient(point + move) - gradient(point - move)) / (2 * step) for move in moves])
    nn.utils.vector_to_parameters(point, parameters)
    return (rows + rows.T) / 2


def test_the_product_of_a_quadratic_is_its_matrix():
    matrix = symmetric(torch.tensor([-3.0, -1.0, 0.5, 2.0, 7.0], dtype=torch.float64))
    first, second = (torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (2, 3))

    def quadratic():
        point = torch.cat([first, second])
        return 0.5 * point @ matrix @ point

    vector = torch.randn(5, dtype=torch.float64)
    for shares in ([quadratic], [lambda: quadratic() / 4, lambda: quadratic() * 0.75, lambda: first.sum()]):
        product = HessianProduct(shares, [first, second])
        for _ in range(2):  # a kept graph serves again
            torch.testing.assert_close(product(vector), matrix @ vector)
    assert product.size == 5


def test_lanczos_finds_both_ends_and_says_how_near_it_is():
    values = torch.cat([torch.linspace(-1, 4, 98, dtype=torch.float64), torch.tensor([-2.5, 10.0])])
    matrix = symmetric(values)
    found = extreme_eigenvalues(lambda v: matrix @ v, torch.randn(100).double(), steps=100, tolerance=1e-8)
    assert found.converged and found.residual <= 1e-8 and found.steps < 100
    assert (found.largest, found.smallest) == pytest.approx((10.0, -2.5), abs=1e-8)
    assert found.condition_number == pytest.approx(0.25)


def test_too_few_steps_are_not_called_converged_and_the_residual_bounds_the_error():
    values = torch.linspace(-1, 1, 400, dtype=torch.float64)
    matrix = symmetric(values)
    found = extreme_eigenvalues(lambda v: matrix @ v, torch.randn(400).double(), steps=12, tolerance=1e-6)
    assert not found.converged and found.steps == 12 and found.residual > 1e-6
    scale = max(abs(found.largest), abs(found.smallest))
    for end in (found.largest, found.smallest):  # some eigenvalue lies within the residual (Parlett, 4.5)
        assert (values - end).abs().min() <= found.residual * scale


@pytest.mark.parametrize("size", [1, 2, 30])
def test_a_basis_that_spans_everything_is_exact(size):
    """More steps are allowed than there are dimensions: no vector of rounding errors is followed."""
    values = torch.linspace(-2, 5, size, dtype=torch.float64)
    matrix = symmetric(values)
    found = extreme_eigenvalues(lambda v: matrix @ v, torch.randn(size).double(), steps=90, tolerance=1e-15)
    assert found.converged and found.steps <= size
    assert (found.smallest, found.largest) == pytest.approx((values[0].item(), values[-1].item()))


def test_equal_eigenvalues_end_early_and_no_ghosts_appear():
    """Single precision, 300 steps: without full orthogonalisation copies of 100 would be all there is to see."""
    values = torch.cat([torch.full((50,), -1.0), torch.linspace(0, 1, 349), torch.tensor([100.0])])
    matrix = symmetric(values.double()).float()
    found = extreme_eigenvalues(lambda v: matrix @ v, torch.randn(400), steps=300, tolerance=1e-6)
    assert (found.largest, found.smallest) == pytest.approx((100.0, -1.0), abs=1e-3)
    identity = extreme_eigenvalues(lambda v: 3 * v, torch.randn(400), steps=300, tolerance=0.0)
    assert (identity.steps, identity.largest, identity.smallest) == (1, pytest.approx(3), pytest.approx(3))


@pytest.mark.parametrize("condition", [(4.0, -1.0, 0.25), (4.0, 1.0, 0.25), (0.5, -2.0, 4.0)])
def test_the_condition_number_is_the_ratio_of_the_ends(condition):
    largest, smallest, expected = condition
    assert Extremes(largest, smallest, 0.0, 1, True).condition_number == expected


@pytest.mark.parametrize(
    ("statistics", "reference", "error"), [("moving", dense_hessian, 1e-9), ("batch", differenced_hessian, 1e-7)]
)
def test_the_ends_are_those_of_the_dense_hessian(statistics, reference, error):
    network, batches = small_network().eval(), data()
    with batch_statistics(network) if statistics == "batch" else nullcontext():
        dense = torch.linalg.eigvalsh(reference(network, batches))
        shares = [lambda batch=batch: share(network, batch, batches) for batch in batches]
        product = HessianProduct(shares, list(network.parameters()))
        found = extreme_eigenvalues(product, torch.randn(product.size).double(), steps=80, tolerance=1e-9)
    assert dense[0] < -1e-4 < 1e-4 < dense[-1]
    assert (found.smallest, found.largest) == pytest.approx((dense[0].item(), dense[-1].item()), rel=error)


def test_batches_add_up_to_the_mean_over_all_images():
    """Without normalisation by batch, two uneven batches are one."""
    network, batches = small_network().eval(), data()
    product = HessianProduct(
        [lambda batch=batch: share(network, batch, batches) for batch in batches], list(network.parameters())
    )
    vector = torch.randn(product.size, dtype=torch.float64)
    torch.testing.assert_close(product(vector), dense_hessian(network, batches) @ vector)
    logits = network(torch.cat([images for images, _ in batches]))
    whole = F.cross_entropy(logits, torch.cat([labels for _, labels in batches]))
    assert mean_loss(network, batches) == pytest.approx(whole.item())


def test_a_direction_has_the_norm_of_every_filter():
    network = small_network()
    direction = filter_normalised_direction(dict(network.named_parameters()))
    for name in ("0.weight", "4.weight"):
        weight = network.get_parameter(name)
        torch.testing.assert_close(direction[name].flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))
        assert not torch.allclose(direction[name], weight)
    for name in ("1.weight", "1.bias", "4.bias"):
        assert direction[name].abs().sum() == 0


def test_a_surface_is_the_loss_of_moved_weights_and_changes_nothing():
    network, batches = small_network().eval(), data()
    before = {name: item.clone() for name, item in network.state_dict().items()}
    first, second = (filter_normalised_direction(dict(network.named_parameters())) for _ in range(2))
    places = torch.tensor([-1.0, 0.0, 0.5])

    def row(at: float) -> torch.Tensor:
        return losses_along(network, lambda model: mean_loss(model, batches), (first, at), second, places)

    assert row(0.0)[1].item() == pytest.approx(mean_loss(network, batches), rel=1e-12)
    assert all(torch.equal(item, before[name]) for name, item in network.state_dict().items())
    found = row(-0.3)[2].item()
    with torch.no_grad():
        for name, item in network.named_parameters():
            item += -0.3 * first[name] + 0.5 * second[name]
    assert found == pytest.approx(mean_loss(network, batches), rel=1e-12)


def test_random_widths_lie_just_under_the_target():
    settings = ModelSettings(name="resnet14_narrow")
    network = build_model(settings, num_classes=10, image_size=16, channels=3, small_image_stem="cifar", offline=True)
    gated = GatedNetwork(network, torch.zeros(1, 3, 16, 16))
    widths = [gated.kept_counts(random_rates(gated, 0.45)) for _ in range(20)]
    for counts in widths:
        assert 0.40 < gated.flops_rate(counts) <= 0.45
        assert all(1 <= count <= gate.channels for count, gate in zip(counts, gated.gates, strict=True))
    assert len({tuple(counts) for counts in widths}) == 20


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    answer = runner(
        "method=ekg_landscape", *SMOKE[1:], "method.compared=[l1]", "scale.max_steps=3", "method.surface_points=3",
        place=tmp_path_factory.mktemp("studied"),
    )  # fmt: skip
    assert answer.code == 0, answer.err
    return answer


def test_the_study_says_what_it_measured(studied):
    rows = json.loads((studied.folder / "artifacts" / "landscape.json").read_text())
    assert [row["name"] for row in rows["searched"]] == ["ekg", "l1"]
    assert len(rows["random"]) == 3 and all(row["flops_rate"] <= 0.2 for row in rows["random"])
    metrics = studied.result["metrics"]
    own = rows["searched"][0]
    assert metrics["condition_number"] == own["condition_number"]
    assert metrics["condition_number"] == abs(metrics["hessian_eigenvalue_min"] / metrics["hessian_eigenvalue_max"])
    assert metrics["condition_number_l1"] == rows["searched"][1]["condition_number"]
    ranks = [sorted(row[name] for row in rows["random"]) for name in ("condition_number", "potential_loss")]
    places = [
        (ranks[0].index(row["condition_number"]), ranks[1].index(row["potential_loss"])) for row in rows["random"]
    ]
    squares = sum((left - right) ** 2 for left, right in places)
    assert metrics["rank_correlation"] == pytest.approx(1 - 6 * squares / (3 * 8))  # Spearman's formula without ties


def test_the_middle_of_a_surface_is_the_loss_before_fine_tuning(studied):
    rows = json.loads((studied.folder / "artifacts" / "landscape.json").read_text())
    for row in rows["searched"]:
        assert rows["surfaces"][row["name"]][1][1] == pytest.approx(row["validation_loss"], rel=1e-5)


def test_figures_are_png_and_pdf(studied):
    starts = {"png": b"\x89PNG", "pdf": b"%PDF"}
    for name in ("rank_correlation", "surfaces"):
        for kind, start in starts.items():
            assert (studied.folder / "figures" / f"{name}.{kind}").read_bytes().startswith(start)


def test_without_matplotlib_nothing_begins(tmp_path):
    """Exit 2 and the line that installs it, before the baseline or a search."""
    hidden = "import sys; sys.modules['matplotlib'] = None; from runner.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", hidden, "method=ekg_landscape", *SMOKE[1:], f"paths.runs={tmp_path}"]
    done = subprocess.run(command, cwd=repository(), capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'paper-runner[figures]'" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())
