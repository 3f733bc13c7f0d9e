"""Generated pairs, the ranking of channels and the loss of the modality focusing hypothesis against closed forms."""

import pytest
import torch
from commands import runner
from torch import nn

from runner.methods.distillation.losses import kl_divergence
from runner.methods.distillation.modality_focusing import ModalityFocusing, min_max, permutation_scores
from runner.methods.distillation.paired_gaussians import layout_of


@pytest.mark.parametrize(
    ("experiment", "varied", "gamma", "shared"),
    [
        ("vary_gamma", 0, 0, 0),
        ("vary_gamma", 4, 4 / 16, 4),
        ("vary_gamma", 10, 1, 10),
        ("vary_alpha", 0, 1, 10),
        ("vary_alpha", 40, 0.2, 10),
        ("teachers", 5, 1 / 3, 5),
        ("teachers", 30, 0.75, 30),
    ],
)
def test_gamma_is_the_share_of_what_both_see(experiment, varied, gamma, shared):
    layout = layout_of(experiment, varied)
    assert layout.gamma == pytest.approx(gamma) and layout.shared == shared
    assert len(layout.teacher) == (10 if experiment == "vary_gamma" else 10 + varied)


def test_shared_columns_are_the_same_bits_and_all_others_are_independent():
    torch.manual_seed(0)
    layout = layout_of("vary_gamma", 4)  # the teacher sees 6..15, the student 0..9
    teacher, student, labels = layout.draw(layout.draw_hyperplane(), 4000)
    assert teacher.shape == (4000, 25) and student.shape == (4000, 50)
    assert set(labels.tolist()) == {0, 1}
    for column in range(6, 10):
        assert torch.equal(teacher[:, column], student[:, column])
    together = torch.corrcoef(torch.cat([teacher, student], 1).T)[:25, 25:].abs()
    for column in range(6, 10):
        together[column, column] = 0
    assert together.max() < 0.08


def test_the_label_is_the_side_of_the_hyperplane():
    torch.manual_seed(0)
    layout = layout_of("teachers", 10)
    teacher, _, labels = layout.draw(torch.ones(20), 500)
    assert torch.equal(labels, (teacher[:, :20].sum(1) > 0).long())


def test_a_permuted_column_of_a_linear_head_adds_its_variance_times_the_square_of_its_weight():
    torch.manual_seed(1)
    features = torch.randn(400, 4) * torch.tensor([1.0, 2.0, 1.0, 1.0])
    head = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 1.0]]))
        scores = permutation_scores(head, features, head(features), 300)
    expected = 2 / 2 * features.var(0, unbiased=False) * head.weight.square().sum(0)  # 2 / K Var(x) |w|^2
    assert torch.allclose(scores, min_max(expected).detach(), atol=0.02)
    assert scores.min() == 0 and scores.max() == 1


def test_a_column_without_weight_scores_least_when_the_networks_agree():
    torch.manual_seed(2)
    features = torch.randn(50, 5)
    head = nn.Linear(5, 2)
    with torch.no_grad():
        head.weight[:, 3] = 0
        scores = permutation_scores(head, features, head(features), 3)
    assert scores[3] == 0 and (scores[[0, 1, 2, 4]] > 0).all()


def test_permutation_keeps_the_values_of_every_column():
    features = torch.randn(30, 3)
    seen = []
    permutation_scores(lambda inputs: seen.append(inputs) or inputs[:, :2], features, torch.zeros(30, 2), 1)
    for channel, permuted in enumerate(seen[0].view(3, 30, 3)):
        assert torch.equal(permuted[:, channel].sort()[0], features[:, channel].sort()[0])
        rest = [other for other in range(3) if other != channel]
        assert torch.equal(permuted[:, rest], features[:, rest])


def test_equal_scores_scale_to_zeros():
    assert min_max(torch.full((3,), 2.0)).tolist() == [0, 0, 0]


def test_the_mean_over_classes_is_half_of_the_mean_over_the_batch():
    """The released divergence divides by batch and classes."""
    s, t = torch.randn(6, 2), torch.randn(6, 2)
    released = nn.KLDivLoss(reduction="mean")(s.log_softmax(1), t.softmax(1))
    assert torch.allclose(kl_divergence(s, t) / 2, released)
    assert kl_divergence(t, t) == 0


def test_more_columns_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"vary_gamma takes 0 to 10, not 11"):
        ModalityFocusing(experiment="vary_gamma", varied=11)


def test_algorithm_1_finds_the_shared_columns(tmp_path):
    answer = runner("method=modality_focusing", "hardware=cpu", "tracking=none", place=tmp_path)
    assert answer.code == 0, answer.err
    metrics = answer.result["metrics"]
    assert metrics["hit_rate"] >= 0.9
    assert metrics["accuracy_teacher"] > metrics["accuracy_teacher_general"] + 0.05
