"""Singular vectors of maps: their gradient, their alignment, and KD-SVD's number of the released code."""

import pytest
import torch
from waves import STUDENT, TEACHER, wave

from runner.methods.distillation import singular_vectors as vectors

S, T = [maps.relu() for maps in STUDENT], [maps.relu() for maps in TEACHER]


def test_kd_svd_is_the_number_of_the_released_code():
    """RepDistiller on the same tensors, with the sign of the teacher's vectors fixed."""
    assert vectors.relation_differences(S, T).item() / 4 == pytest.approx(0.006774571, rel=1e-4)


def test_eigenvectors_of_the_small_product_do_for_the_decomposition():
    assert vectors.relation_differences(S, T, gram=True).item() == pytest.approx(
        vectors.relation_differences(S, T).item(), rel=1e-3
    )


@pytest.mark.parametrize("shape", [(2, 3, 3, 3), (2, 12, 2, 2)], ids=["tall", "wide"])
@pytest.mark.parametrize("gram", [False, True])
def test_the_gradient_is_that_of_finite_differences(shape, gram):
    maps = wave(*shape, phase=2).double().requires_grad_()
    target = wave(*shape[:2], 2, phase=5).double()

    def value(maps):
        found = vectors.right_vectors(maps, 2, gram=gram)
        return ((found * vectors.fix_sign(found)) * target).sum()

    assert torch.autograd.gradcheck(value, maps, eps=1e-6, atol=1e-6)


def test_equal_singular_values_give_no_infinite_gradient():
    maps = torch.eye(4).view(1, 4, 2, 2).requires_grad_()
    vectors.right_vectors(maps, 4).pow(3).sum().backward()
    assert torch.isfinite(maps.grad).all()
    dead = torch.zeros(1, 4, 2, 2, requires_grad=True)
    vectors.right_vectors(dead, 4).pow(3).sum().backward()
    assert torch.isfinite(dead.grad).all()


def test_alignment_finds_the_nearest_vector_whatever_its_sign():
    student = torch.eye(3)[None, :, [2, 0, 1]] * torch.tensor([1.0, -1.0, 1.0])
    teacher = torch.tensor([0.9, 0.1, 0.0])[None, :, None]
    assert vectors.align(student, teacher).flatten().tolist() == [1, 0, 0]
    assert vectors.align(-student, teacher).flatten().tolist() == [1, 0, 0]
    assert vectors.align(student, -teacher).flatten().tolist() == [-1, 0, 0]  # flipping the teacher's flips it
    maps = wave(2, 5, 4, 4, phase=1)
    _, _, right = vectors.leading(maps, 1)
    assert torch.allclose(vectors.align(vectors.right_vectors(maps, 4), right), right, atol=1e-5)


def test_the_sign_rule_makes_the_largest_entry_positive():
    column = torch.tensor([0.2, -0.9, 0.4])[None, :, None]
    assert (column * vectors.fix_sign(column)).flatten().tolist() == pytest.approx([-0.2, 0.9, -0.4])
    _, _, right = vectors.leading(S[0], 1)  # Perron: of a non-negative map the first vector has one sign
    assert (right * vectors.fix_sign(right)).min() > -1e-6


def test_a_map_weighted_by_its_own_left_vectors_gives_its_right_ones():
    left, _, right = vectors.leading(S[0], 2)
    assert torch.allclose(vectors.project(S[0], left), right, atol=1e-4)
    assert vectors.projected_differences(S, S).item() == pytest.approx(0, abs=1e-6)
    assert vectors.relation_differences(S, S).item() == pytest.approx(0, abs=1e-6)


def test_the_relation_by_hand():
    lower, upper = torch.tensor([[[0.0], [2.0]]]), torch.tensor([[[2.0]]])
    assert vectors.relation(lower, upper).flatten().tolist() == pytest.approx([torch.tensor(-0.5).exp().item(), 1.0])
