"""The memory banks of contrastive distillation."""

import pytest
import torch
from torch.nn.functional import normalize
from waves import wave

from runner.methods.distillation.memory_bank import MemoryBank, NegativeSampler, contrast


def test_the_loss_is_the_number_of_the_released_code():
    assert contrast(wave(4, 9, phase=2).abs(), 50).item() == pytest.approx(11.68127, rel=1e-5)


@pytest.mark.parametrize("count", [20, 2000])
def test_scores_are_the_same_by_fetching_and_by_one_product(count):
    bank = MemoryBank(count, 8, 0.5)
    embeddings, rows = normalize(wave(3, 8, phase=1)), torch.arange(12).view(3, 4)
    by_hand = torch.stack([(bank.vectors[r] @ e / 0.07).exp() for r, e in zip(rows, embeddings, strict=True)])
    scores = bank.scores(embeddings, rows, 0.07)
    assert torch.allclose(scores, by_hand / (by_hand.mean() * count), rtol=1e-4)
    assert torch.allclose(bank.scores(2 * embeddings, rows, 0.14), scores, rtol=1e-4)  # the constant stays


def test_vectors_move_towards_what_was_seen_and_scores_keep_their_gradient():
    bank = MemoryBank(5, 2, 0.5)
    bank.vectors = normalize(torch.ones(5, 2))
    seen = torch.tensor([[1.0, 0.0]], requires_grad=True)
    scores = bank.scores(seen, torch.tensor([[3, 1]]), 1.0)
    bank.update(seen.detach(), torch.tensor([3]))
    contrast(scores, 5).backward()  # needs the vectors as they were
    assert torch.isfinite(seen.grad).all()
    root = 0.5**0.5
    assert torch.allclose(bank.vectors[3], normalize(torch.tensor([(root + 1) / 2, root / 2]), dim=0))
    assert torch.allclose(bank.vectors[1], torch.tensor([root, root]))


def test_negatives_are_all_others_classes_and_alike_often():
    labels = torch.tensor([2, 0, 1, 0, 2, 2])
    drawn = NegativeSampler(labels).draw(torch.tensor([0, 1, 2]), 6000)
    for row, own in zip(drawn, (0, 1, 2), strict=True):
        assert own not in labels[row]
        counts = row.bincount(minlength=6)[labels != own]
        assert counts.min() > 0.9 * 6000 / len(counts)
