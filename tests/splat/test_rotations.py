"""Quaternions and matrices against scipy, and their round trips."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from splat.rotations import matrix_from_quat, quat_from_matrix, quat_multiply

quats = (
    st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: sum(x * x for x in q) > 0.01).map(lambda q: torch.tensor(q).double())
)


@given(quats)
def test_matrix_is_scipys(q):
    expected = Rotation.from_quat(q.numpy(), scalar_first=True).as_matrix()
    torch.testing.assert_close(matrix_from_quat(q), torch.from_numpy(expected))


@given(quats)
def test_round_trip_up_to_sign_and_length(q):
    unit = q / q.norm()
    back = quat_from_matrix(matrix_from_quat(q))
    assert back[0] >= 0 and float(back.norm()) == pytest.approx(1)
    assert abs(float(back @ unit)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("angle", [0, 1e-9, 1e-4, 1, math.pi - 1e-4, math.pi - 1e-9, math.pi])
def test_round_trip_at_hard_angles(axis, angle):
    """Half turns and tiny turns, where single-branch formulas divide by zero."""
    q = torch.zeros(4, dtype=torch.float64)
    q[0], q[1 + axis] = math.cos(angle / 2), math.sin(angle / 2)
    torch.testing.assert_close(matrix_from_quat(quat_from_matrix(matrix_from_quat(q))), matrix_from_quat(q), atol=1e-14, rtol=0)


@given(quats, quats)
def test_product_is_the_second_rotation_followed_by_the_first(p, q):
    torch.testing.assert_close(matrix_from_quat(quat_multiply(p, q)), matrix_from_quat(p) @ matrix_from_quat(q))


def test_leading_dimensions_broadcast():
    q = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert matrix_from_quat(q).shape == (2, 3, 3, 3)
    assert quat_from_matrix(matrix_from_quat(q)).shape == (2, 3, 4)
    torch.testing.assert_close(matrix_from_quat(q)[1, 2], matrix_from_quat(q[1, 2]))
    assert matrix_from_quat(torch.zeros(0, 4)).shape == (0, 3, 3) and quat_from_matrix(torch.zeros(0, 3, 3)).shape == (0, 4)


def test_zero_quaternion_is_the_identity_with_finite_gradient():
    q = torch.zeros(4, requires_grad=True)
    matrix = matrix_from_quat(q)
    torch.testing.assert_close(matrix, torch.eye(3))
    matrix.sum().backward()
    assert q.grad.isfinite().all()
