"""DIVERSIFY's formulas and stages against closed forms, and its baselines' parts."""

import copy
import itertools

import numpy
import pytest
import torch
from commands import runner
from scipy.spatial.distance import cdist
from torch import nn
from torch.nn.functional import cross_entropy

from runner.methods.timeseries.adversary import Adam, Branch, discriminator, reverse_gradient
from runner.methods.timeseries.diversify import (
    Diversify,
    Heads,
    fixed,
    joint_label,
    mean_entropy,
    mutual_information,
    pseudo_domains,
)
from runner.models.series import SeriesConvolutions

NETWORK = {"filters": [16, 32], "kernel": 9}


def test_the_featurizer_of_the_paper_has_32_times_44_outputs():
    network = SeriesConvolutions(channels=8, length=200, **NETWORK)
    assert network.out_features == 32 * 44
    assert network(torch.randn(2, 8, 200)).shape == (2, 32 * 44)


@pytest.mark.parametrize(("classes", "domains"), [(4, 3), (6, 10), (2, 1)])
def test_the_joint_label_is_a_bijection(classes, domains):
    pairs = torch.tensor(list(itertools.product(range(domains), range(classes))))
    labels = joint_label(pairs[:, 0], pairs[:, 1], classes)
    assert sorted(labels.tolist()) == list(range(classes * domains))
    assert torch.equal(joint_label(pairs[:, 0], pairs[:, 1], classes, fine_grained=False), pairs[:, 1])


def test_the_reversed_gradient():
    inputs = torch.randn(3, 5, requires_grad=True)
    outputs = reverse_gradient(inputs, 0.7)
    assert torch.equal(outputs, inputs)
    outputs.sum().backward()
    assert torch.equal(inputs.grad, torch.full((3, 5), -0.7))


def clusters(count=20, seed=0):
    """Three far clusters of ``count`` points, and which each belongs to."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.arange(3).repeat_interleave(count)
    centres = 20 * torch.eye(3, 8)
    return centres[which] + 0.1 * torch.randn(3 * count, 8, generator=generator), which


def test_relabelling_returns_separated_clusters():
    points, which = clusters()
    certain = torch.eye(3)[which]
    assert torch.equal(pseudo_domains(points, certain), which)
    vague = 0.1 + 0.7 * certain
    assert torch.equal(pseudo_domains(points, vague), which)


def test_relabelling_depends_on_the_place_alone():
    points, which = clusters()
    points[40] = points[0]  # of another cluster, at the same place
    found = pseudo_domains(points, 0.2 + 0.4 * torch.eye(3)[which])
    assert found[40] == found[0]


def test_scaling_matters_through_the_appended_one_alone():
    points = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    probabilities = torch.randn(50, 4, generator=torch.Generator().manual_seed(2)).softmax(1)
    far = [pseudo_domains(scale * points, probabilities) for scale in (1e6, 1e7)]
    assert torch.equal(*far)


def in_numpy(embedded: numpy.ndarray, probabilities: numpy.ndarray) -> numpy.ndarray:
    """The card's two passes with SciPy's distances, which are no number at an empty cluster."""
    points = numpy.concatenate([embedded, numpy.ones((len(embedded), 1))], 1)
    points /= numpy.linalg.norm(points, axis=1, keepdims=True)
    members = probabilities
    for _ in range(2):
        centroids = members.T @ points / (1e-8 + members.sum(0)[:, None])
        nearest = cdist(points, centroids, "cosine").argmin(1)
        members = numpy.eye(probabilities.shape[1])[nearest]
    return nearest


@pytest.mark.parametrize("seed", range(5))
def test_relabelling_is_that_of_scipys_distances(seed):
    generator = torch.Generator().manual_seed(seed)
    embedded = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    probabilities = torch.randn(60, 3, generator=generator, dtype=torch.float64).softmax(1)
    expected = in_numpy(embedded.numpy(), probabilities.numpy())
    assert pseudo_domains(embedded, probabilities).tolist() == expected.tolist()


def test_an_empty_cluster_stays_empty_or_takes_all_as_released():
    points, which = clusters()
    probabilities = 0.04 + 0.8 * torch.eye(5)[which + which.gt(0).long()]  # 0, 2, 3; none is nearest to 1 and 4
    assert pseudo_domains(points, probabilities).unique().tolist() == [0, 2, 3]
    released = pseudo_domains(points, probabilities, "released")
    assert released.unique().tolist() == [1]
    with numpy.errstate(invalid="ignore"):
        assert released.tolist() == in_numpy(points.numpy(), probabilities.numpy()).tolist()


def test_entropy_of_certain_and_of_even_logits():
    assert mean_entropy(torch.tensor([[50.0, 0.0]])).item() == pytest.approx(0, abs=1e-4)
    assert mean_entropy(torch.zeros(3, 4)).item() == pytest.approx(numpy.log(4), abs=1e-4)


def test_mutual_information():
    one = torch.tensor([0, 0, 1, 1])
    assert mutual_information(one, 1 - one) == pytest.approx(1)
    assert mutual_information(one, torch.tensor([0, 1, 0, 1])) == pytest.approx(0)


def test_stages_two_and_three_leave_the_featurizers_weights_alone():
    torch.manual_seed(0)
    featurizer = SeriesConvolutions(channels=2, length=50, **NETWORK)
    heads = Heads(featurizer, Diversify(latent_domains=2), 4)
    before = copy.deepcopy(featurizer.state_dict())
    windows, labels = torch.randn(16, 2, 50), torch.arange(16) % 4
    optimizer = Adam().over(heads.latent.bottleneck, heads.latent.classifier, heads.tells_class)
    embedded = heads.latent.bottleneck(fixed(featurizer, windows))
    told = heads.tells_class(reverse_gradient(embedded, 1.0))
    (cross_entropy(heads.latent.classifier(embedded), labels % 2) + cross_entropy(told, labels)).backward()
    optimizer.step()
    assert all(item.grad is None for item in featurizer.parameters())
    moved = {name for name, value in featurizer.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all("running" in name or "num_batches" in name for name in moved)


def test_one_latent_domain_makes_the_adversary_of_stage_three_idle():
    adversary = discriminator(8, 8, 1)
    inputs = torch.randn(6, 8, requires_grad=True)
    loss = cross_entropy(adversary(reverse_gradient(inputs, 1.0)), torch.zeros(6, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and not inputs.grad.any()
    assert not pseudo_domains(inputs.detach(), torch.ones(6, 1)).any()


def test_a_branch_shares_its_featurizer():
    featurizer = SeriesConvolutions(channels=1, length=40, **NETWORK)
    branches = nn.ModuleList(Branch(featurizer, 8, outputs) for outputs in (3, 5))
    assert branches[0].featurizer is branches[1].featurizer
    assert branches[1](torch.randn(4, 1, 40)).shape == (4, 5)


@pytest.mark.parametrize(
    "options",
    [
        "method.domains=random",
        "method.fine_grained=false",
        "method.entropy_weight=0.1",
        "method.latent_domains=1",
        "method.empty_clusters=released",
    ],
)
def test_the_ablations_run(options, tmp_path):
    answer = runner("method=diversify", "scale=smoke", "hardware=cpu", options, place=tmp_path)
    assert answer.code == 0, answer.err


def test_images_are_refused(tmp_path):
    answer = runner("method=erm", "dataset=digits", "scale=smoke", place=tmp_path)
    assert answer.code == 2 and "series" in answer.message


def test_too_short_windows_are_refused(tmp_path):
    answer = runner("method=erm", "scale=smoke", "model.arguments.kernel=60", place=tmp_path)
    assert answer.code == 2 and "too short" in answer.message
