"""Similarity: a group that acts on points; its least-squares fit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splat.rotations import matrix_from_quat
from splat.similarity import Similarity, fit_similarity

quats = st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: sum(x * x for x in q) > 0.01)
similarities = st.builds(
    lambda quat, translation, scale: Similarity(
        matrix_from_quat(torch.tensor(quat, dtype=torch.float64)), torch.tensor(translation, dtype=torch.float64), scale
    ),
    quats,
    st.tuples(*[st.floats(-10, 10)] * 3),
    st.floats(0.01, 100),
)
POINTS = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def assert_equal(a, b):
    torch.testing.assert_close(a.matrix(), b.matrix(), rtol=1e-9, atol=1e-9 * max(a.scale, b.scale, 1))


@given(similarities, similarities, similarities)
def test_composition_is_associative(a, b, c):
    assert_equal((a @ b) @ c, a @ (b @ c))


@given(similarities)
def test_identity_is_neutral(a):
    assert_equal(a @ Similarity.identity(), a)
    assert_equal(Similarity.identity() @ a, a)


@given(similarities)
def test_inverse_undoes(a):
    assert_equal(a @ a.inverse(), Similarity.identity())
    torch.testing.assert_close(a.inverse()(a(POINTS)), POINTS, atol=1e-7, rtol=1e-7)


@given(similarities, similarities)
def test_composition_is_application_in_turn(a, b):
    torch.testing.assert_close((a @ b)(POINTS), a(b(POINTS)))


@given(similarities)
def test_matrix_acts_alike_and_comes_back(a):
    homogeneous = torch.cat([POINTS, torch.ones(len(POINTS), 1)], dim=1)
    torch.testing.assert_close((homogeneous @ a.matrix().T)[:, :3], a(POINTS))
    assert_equal(Similarity.from_matrix(a.matrix()), a)


@given(similarities)
def test_fit_finds_the_similarity_between_point_sets(a):
    assert_equal(fit_similarity(POINTS, a(POINTS)), a)


def test_fit_of_points_in_a_plane_is_a_proper_rotation():
    """Three points determine a reflection as well; the rotation is wanted."""
    a = Similarity(matrix_from_quat(torch.tensor([0.2, 0.5, -0.7, 0.4])), torch.tensor([1.0, 2, 3]), 2.5)
    flat = POINTS * torch.tensor([1.0, 1, 0])
    torch.testing.assert_close(fit_similarity(flat, a(flat)).matrix(), a.matrix(), atol=1e-6, rtol=1e-6)


def test_fit_is_least_squares_under_noise():
    """No similarity near the fit has a smaller residual."""
    g = torch.Generator().manual_seed(1)
    target = 2 * POINTS + 0.1 * torch.randn(7, 3, generator=g, dtype=torch.float64)
    best = fit_similarity(POINTS, target)

    def residual(s):
        return (s(POINTS) - target).square().sum()

    for _ in range(50):
        quat = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64) + 1e-3 * torch.randn(4, generator=g, dtype=torch.float64)
        nudge = Similarity(
            matrix_from_quat(quat),
            1e-3 * torch.randn(3, generator=g, dtype=torch.float64),
            1 + 1e-3 * float(torch.randn(1, generator=g)),
        )
        assert residual(nudge @ best) > residual(best)


def test_acts_in_the_points_dtype_and_on_any_leading_shape():
    a = Similarity(torch.eye(3), torch.tensor([1.0, 2, 3]), 2.0)
    points = torch.ones(2, 5, 3)
    assert a(points).dtype == torch.float32 and a(points)[1, 4].tolist() == [3, 4, 5]
    assert a(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("rotation", "scale"), [(torch.eye(3) * 1.01, 1.0), (torch.diag(torch.tensor([1.0, 1, -1])), 1.0), (torch.eye(3), 0.0)]
)
def test_what_is_no_similarity_is_refused(rotation, scale):
    with pytest.raises(AssertionError):
        Similarity(rotation, torch.zeros(3), scale)
