"""Teachers from checkpoints: the loss on the card's worked numbers, and which weights are kept and read."""

import itertools
import json

import pytest
import torch
from commands import runner
from safetensors.torch import load_file
from waves import wave

from runner.methods.distillation.checkpoint_kd import CheckpointKD, Ensemble
from runner.methods.distillation.checkpoint_selection import choose
from runner.methods.distillation.teacher_checkpoints import epoch_of, file_of
from runner.product import load

SMOKE = ("scale=smoke", "hardware=cpu", "dataset=digits", "model=resnet8")
TEACHER = ("teacher.model=resnet8", "teacher.recipe.epochs=4", "scale.max_epochs=4", "method.checkpoints=4")


def test_logits_are_averaged_not_probabilities():
    teachers = [torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])]
    mean = Ensemble(torch.nn.ModuleList([Constant(t) for t in teachers]))(torch.zeros(1))
    assert mean.softmax(1)[0].tolist() == pytest.approx([0.7311, 0.2689], abs=1e-4)
    method = CheckpointKD(temperature=1.0)
    assert method.divergence(torch.tensor([[1.0, 0.0]]), teachers) == pytest.approx(0, abs=1e-7)
    by_losses = CheckpointKD(temperature=1.0, average="losses")
    probabilities = torch.tensor([[0.6904, 0.3096]]).log()  # the mean of the probabilities is least far from both
    assert by_losses.divergence(probabilities, teachers) < by_losses.divergence(mean, teachers)


@pytest.mark.parametrize(
    ("settings", "released"),
    [({}, 3.52925634), ({"soften": "teacher"}, 8.7474699), ({"average": "losses"}, 4.19994497)],
    ids=["logits", "teacher alone", "losses"],
)
def test_the_divergence_is_that_of_the_released_code(settings, released):
    """LeapLabTHU/CheckpointKD's loss of two teachers at temperature 5 on the same logits."""
    teachers = [3 * wave(5, 10, phase=5), 2 * wave(5, 10, phase=6)]
    found = CheckpointKD(**settings).divergence(3 * wave(5, 10, phase=2), teachers)
    assert found.item() == pytest.approx(released, rel=1e-5)


class Constant(torch.nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, _):
        return self.logits


@pytest.mark.parametrize("average", ["logits", "losses"])
def test_copies_of_one_teacher_are_that_teacher(average):
    s, t = torch.randn(4, 3), torch.randn(4, 3)
    method = CheckpointKD(average=average)
    assert torch.equal(method.divergence(s, [t, t]), method.divergence(s, [t]))
    assert method.divergence(t, [t]) == pytest.approx(0, abs=1e-6)


def test_at_a_high_temperature_the_gradient_is_the_difference_of_centred_logits():
    s, t = torch.randn(1, 5, dtype=torch.double, requires_grad=True), torch.randn(1, 5, dtype=torch.double)
    CheckpointKD(temperature=1e4).divergence(s, [t]).backward()
    centred = (s - s.mean(1, keepdim=True) - t + t.mean(1, keepdim=True)).detach()
    assert torch.allclose(s.grad, centred / 5, atol=1e-3)


def test_the_temperature_on_the_teacher_alone():
    s, t = torch.tensor([[1.0, 0.0]]), torch.tensor([[5.0, 0.0]])
    assert CheckpointKD(soften="teacher").divergence(s, [t]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("members", [[], [11], [2, 2]])
def test_members_that_are_no_checkpoints_are_refused(members):
    with pytest.raises(ValueError, match="members: different numbers of checkpoints, 1 to 10"):
        CheckpointKD(members=members)


def test_the_paper_keeps_every_twentieth_of_two_hundred_epochs():
    assert [epoch_of(number, 10, 200) for number in range(1, 11)] == list(range(20, 201, 20))


def test_each_member_is_the_state_after_its_epochs(tmp_path):
    answer = runner("method=checkpoint_kd", *SMOKE, *TEACHER, "method.members=[1,4]", place=tmp_path)
    assert answer.code == 0, answer.err
    assert answer.result["metrics"]["teacher_epochs"] == 4
    artifacts = answer.folder.parent.parent / answer.result["phases"]["teacher"]["run"] / "artifacts"
    kept = [load_file(artifacts / file_of(epochs)) for epochs in (1, 2, 3, 4)]
    for earlier, later in itertools.pairwise(kept):
        assert any(not torch.equal(earlier[name], later[name]) for name in earlier)
        assert later["bn1.num_batches_tracked"] - earlier["bn1.num_batches_tracked"] == 2  # steps an epoch
    last = load(artifacts / "model").state_dict()
    assert all(torch.equal(last[name], value) for name, value in kept[-1].items())


def test_without_a_share_of_the_teacher_it_is_plain_training_to_the_bit(tmp_path):
    plain = runner("method=supervised", "recipe=checkpoint_kd", *SMOKE, place=tmp_path)
    alone = runner("method=checkpoint_kd", *SMOKE, *TEACHER[:1], "method.labels_weight=1.0", place=tmp_path)
    assert plain.code == alone.code == 0, alone.err
    assert plain.result["product"]["sha256"] == alone.result["product"]["sha256"]


def test_given_weights_have_no_checkpoints(tmp_path):
    first = runner("method=supervised", *SMOKE, place=tmp_path)
    answer = runner("method=checkpoint_kd", *SMOKE, f"teacher.model.weights={first.folder}", place=tmp_path)
    assert answer.code == 2 and "leave the weights out" in answer.err


def test_the_selection_adds_both_informations():
    reconstruction, classification = torch.tensor([0.30, 0.28, 0.32]), torch.tensor([2.0, 1.0, 0.5])
    assert choose(reconstruction, classification, "minmax") == 2  # 0.5 + 0, 1 + 0.667, 0 + 1
    assert choose(reconstruction, classification, "raw") == 3
    for balance in ("minmax", "raw"):  # with nothing to tell about images, the most accurate probe's
        assert choose(torch.full((3,), 0.3), torch.tensor([2.0, 0.5, 1.0]), balance) == 2


def test_the_selected_checkpoint_teaches(tmp_path):
    selection = ("method.select=information", "method.members=[1]")
    answer = runner("method=checkpoint_kd", *SMOKE, *TEACHER, *selection, place=tmp_path)
    assert answer.code == 0, answer.err
    runs = answer.folder.parent.parent
    found = json.loads((runs / answer.result["phases"]["selection"]["run"] / "result.json").read_text())["metrics"]
    assert answer.result["metrics"]["teacher_epochs"] == found["selected"]  # four checkpoints of four epochs
    assert all(f"{name}_{k}" in found for name in ("reconstruction", "classification") for k in (1, 2, 3, 4))
    assert len(list(runs.glob("teacher_checkpoints-*/*"))) == 1  # one training for the selection and the student
