"""NASWOT: scores on worked numbers and on networks, and searches over a user's table."""

import math

import numpy
import pytest
import torch
from commands import runner
from torch import nn

from runner.errors import UserError
from runner.methods.compression import zero_cost
from runner.methods.compression.naswot import best_of, rank_correlation
from runner.models.cell_network import architecture, cell_network

MIXED = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"


def codes(*rows: str) -> torch.Tensor:
    return torch.tensor([[sign == "1" for sign in row] for row in rows])


@pytest.fixture
def network():
    torch.manual_seed(0)
    return cell_network(3, 2, MIXED, channels=4, stages=2, cells=1)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 2, 8, 8, generator=generator), torch.arange(6) % 3


def test_the_kernel_of_three_codes():
    kernel = zero_cost.agreements(codes("1011", "1101", "0010"))
    assert kernel.tolist() == [[4, 2, 2], [2, 4, 0], [2, 0, 4]]
    assert zero_cost.log_determinant(kernel) == pytest.approx(math.log(32))


def test_equal_codes_are_singular_and_complementary_ones_orthogonal():
    assert zero_cost.log_determinant(zero_cost.agreements(codes("1011", "1011", "0010"))) == -math.inf
    kernel = zero_cost.agreements(codes("1011", "0100"))
    assert kernel.tolist() == [[4, 0], [0, 4]]
    assert zero_cost.log_determinant(kernel) == pytest.approx(2 * math.log(4))  # the largest that N ln N_A allows


def test_what_leaves_the_score_and_what_adds_to_it():
    random = torch.rand(5, 40, generator=torch.Generator().manual_seed(0)) > 0.5
    score = zero_cost.log_determinant(zero_cost.agreements(random))
    flipped = random ^ (torch.arange(40) % 3 == 0)
    for same in (random.flip(0), random.flip(1), flipped):
        assert zero_cost.log_determinant(zero_cost.agreements(same)) == pytest.approx(score)
    tripled = zero_cost.log_determinant(zero_cost.agreements(random.repeat(1, 3)))
    assert tripled == pytest.approx(score + 5 * math.log(3))
    assert torch.linalg.eigvalsh(zero_cost.agreements(random)).min() > -1e-4


class Branches(nn.Module):
    """One ReLU in place, one whose output is used nowhere, one that is called twice."""

    def __init__(self):
        super().__init__()
        self.used, self.unused, self.twice = nn.ReLU(inplace=True), nn.ReLU(), nn.ReLU()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        self.unused(x * self.scale)
        return self.twice(-self.twice(self.used(x * self.scale) - 1)).sum(1)


def test_only_units_on_the_way_to_the_output_count():
    images = torch.tensor([[0.0, 2.0, -1.0], [3.0, 0.5, 0.0]])
    kernel, units = zero_cost.code_kernel(Branches(), images)
    assert units == 9
    # 010 010 000 and 110 100 000: an input of exactly 0 is off, and the second call sees what is never above 0
    assert kernel.tolist() == [[9, 6], [6, 9]]


def test_a_network_without_relu_modules_is_refused():
    with pytest.raises(UserError, match=r"torch\.nn\.ReLU"):
        zero_cost.code_kernel(nn.Flatten(), torch.zeros(2, 1, 2, 2))


@pytest.mark.parametrize("name", sorted(zero_cost.SCORES))
def test_no_score_changes_the_network(name, network, batch):
    network.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert math.isfinite(zero_cost.SCORES[name](network, *batch))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not network.training and all(parameter.grad is None for parameter in network.parameters())


def test_the_score_of_a_network(network, batch):
    kernel, units = zero_cost.code_kernel(network, batch[0])
    assert torch.equal(kernel, kernel.T) and (kernel.diagonal() == units).all()
    # the cells' ReLUs (two convolutions each, at 4 and 8 channels), the reduction's two, the last one
    assert units == 2 * 4 * 64 + (4 * 64 + 8 * 16) + 2 * 8 * 16 + 8 * 16
    assert zero_cost.relu_codes(network, *batch) == torch.linalg.slogdet(kernel).logabsdet.item()


def test_the_scores_that_the_released_code_gives():
    """The kernel's of its hooks on modules of nn.ReLU alone, and the first version's, on its own networks."""

    def waves(*shape: int) -> torch.Tensor:
        return torch.sin(torch.arange(math.prod(shape)) * 1.7).reshape(shape)

    network = cell_network(1, 3, MIXED, channels=2, stages=3, cells=1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(waves(*parameter.shape))
    images = waves(6, 3, 8, 8)
    kernel, _ = zero_cost.code_kernel(network, images)
    assert kernel[0].tolist() == [768, 747, 732, 719, 714, 704]
    assert zero_cost.relu_codes(network, images, torch.zeros(6)) == pytest.approx(25.071748, abs=1e-6)
    assert zero_cost.jacobian(network, images, torch.zeros(6)) == pytest.approx(-15.350771, abs=1e-3)


def test_normalised_layers_may_be_scaled(network, batch):
    network.double()
    images = batch[0].double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-12
    kernel, _ = zero_cost.code_kernel(network, images)
    with torch.no_grad():
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d) and "shortcut" not in name:  # which no normalisation follows
                module.weight.mul_(7)
    assert torch.equal(zero_cost.code_kernel(network, images)[0], kernel)


def test_an_edge_of_zeros_still_carries_a_gradient(batch):
    """As in the published networks: a convolution that only a product with 0 follows counts."""
    dead = "|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|"
    network = cell_network(3, 2, dead, channels=4, stages=1, cells=1)
    assert zero_cost.code_kernel(network, batch[0])[1] == 2 * 4 * 64


def test_two_batches_of_the_same_images_would_add_n_ln_3_to_an_accumulated_kernel(network, batch):
    """The marking and the counting pass of the second batch, as the released code adds them; the runner does not."""
    kernel, _ = zero_cost.code_kernel(network, batch[0])
    added = zero_cost.log_determinant(3 * kernel) - zero_cost.log_determinant(kernel)
    assert added == pytest.approx(6 * math.log(3))


def test_the_first_version_s_score():
    def by_hand(*eigenvalues: float) -> float:
        return -sum(math.log(value + 1e-5) + 1 / (value + 1e-5) for value in eigenvalues)

    assert zero_cost.correlation_score(torch.eye(4).double()) == pytest.approx(by_hand(1, 1, 1, 1))
    half = torch.tensor([[1, 0.5], [0.5, 1]]).double()
    assert zero_cost.correlation_score(half) == pytest.approx(by_hand(0.5, 1.5))
    assert math.isnan(zero_cost.correlation_score(torch.tensor([[1.0, float("nan")], [float("nan"), 1.0]])))


def test_scores_of_a_linear_chain():
    """synflow: each layer's sum of weight x gradient is the output; gradient_norm: by the closed form of the loss."""
    chain = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        chain[0].weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 3.0]]))
        chain[1].weight.copy_(torch.tensor([[-1.0, 1.0], [2.0, 0.0]]))
    images = torch.tensor([[1.0, 0.0]])
    assert zero_cost.synflow(chain, images, torch.tensor([0])) == pytest.approx(2 * ((3 + 3) + 6))
    error = torch.tensor([-1.0, 2.0]).softmax(0) - torch.tensor([1.0, 0.0])
    hidden = torch.tensor([1.0, 0.0])
    last = torch.outer(error, hidden).norm()
    first = torch.outer(chain[1].weight.detach().T @ error, images[0]).norm()
    assert zero_cost.gradient_norm(chain, images, torch.tensor([0])) == pytest.approx((first + last).item())


def test_the_best_of_each_sample():
    samples = numpy.array([[0, 2, 1], [3, 3, 0], [1, 1, 2]])
    assert best_of(samples, numpy.array([0.0, 5.0, 5.0, -numpy.inf])).tolist() == [2, 0, 1]


def test_rank_correlation():
    accuracy = numpy.array([0.1, 0.2, 0.3, 0.4])
    assert rank_correlation(numpy.array([-numpy.inf, 1, 3, 2]), accuracy) == pytest.approx(4 / 6)
    assert rank_correlation(numpy.array([numpy.nan, 3, 2, 1]), accuracy) == -1
    assert rank_correlation(numpy.ones(4), accuracy) == 0


@pytest.fixture
def csv(tmp_path):
    names = [architecture(number) for number in (9_000, 15_000)]
    path = tmp_path / "table.csv"
    rows = "".join(f"{name},{value},{value},{value},600\n" for name, value in zip(names, (80.0, 90.0), strict=True))
    path.write_text(f"architecture,accuracy_test,accuracy_validation,accuracy_cifar100,cost\n{rows}")
    return path


def test_a_user_s_table_is_searched(csv, tmp_path):
    words = (f"method.benchmark={csv}", "dataset=digits", "scale=smoke", "hardware=cpu")
    answer = runner("method=naswot", "method.score=parameters", *words, place=tmp_path / "runs")
    assert answer.code == 0, answer.err
    metrics = answer.result["metrics"]
    assert 0.8 <= metrics["accuracy_cifar100"] == metrics["accuracy"] <= metrics["accuracy_optimal"] <= 0.9
    assert metrics["accuracy_random"] == pytest.approx(0.85)
    area = runner("method=naswot", "method.search=evolution", "method.runs=3", "method.evolution.budget=6600", *words,
                  place=tmp_path / "runs")  # fmt: skip
    assert area.result["metrics"]["trained"] == 11 and area.result["metrics"]["accuracy"] == pytest.approx(0.9)
    csv.write_text(csv.read_text().replace("80.0", "70.0"))
    changed = runner("method=naswot", "method.score=parameters", *words, place=tmp_path / "runs")
    assert changed.folder != answer.folder


def test_a_network_without_architectures_is_refused(tmp_path):
    answer = runner("method=naswot", "model=conv4", "dataset=digits", "scale=smoke", place=tmp_path)
    assert answer.code == 2 and "use model=cell_network" in answer.message
