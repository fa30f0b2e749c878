"""Spherical harmonics against scipy's, and what turning them means."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splat import sh
from splat.rotations import matrix_from_quat


def directions(n, seed=0):
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)).double(), dim=-1)


def test_basis_is_scipys_real_form_with_the_condon_shortley_sign():
    special = pytest.importorskip("scipy.special")
    if not hasattr(special, "sph_harm_y"):
        pytest.skip("scipy before 1.15")
    d = directions(50)
    theta, phi = np.arccos(d[:, 2].numpy()), np.arctan2(d[:, 1].numpy(), d[:, 0].numpy())
    columns = []
    for l in range(4):
        for m in range(-l, l + 1):
            y = special.sph_harm_y(l, abs(m), theta, phi)
            columns.append(y.real if m == 0 else np.sqrt(2) * (y.imag if m < 0 else y.real))
    torch.testing.assert_close(sh.basis(d, 3), torch.from_numpy(np.stack(columns, axis=1)))


def test_basis_is_orthonormal_on_the_sphere():
    """Gauss-Legendre in z, equal steps in angle: exact for products of degree 3."""
    z, weight = np.polynomial.legendre.leggauss(8)
    phi = np.arange(16) * 2 * np.pi / 16
    zz, pp = (torch.from_numpy(x).flatten() for x in np.meshgrid(z, phi, indexing="ij"))
    r = (1 - zz**2).sqrt()
    d = torch.stack([r * pp.cos(), r * pp.sin(), zz], dim=-1)
    y = sh.basis(d, 3)
    area = torch.from_numpy(np.repeat(weight, 16)) * 2 * np.pi / 16
    torch.testing.assert_close(y.T @ (area[:, None] * y), torch.eye(16).double())


def test_lower_degrees_are_the_first_terms():
    d = directions(5)
    for degree in range(4):
        torch.testing.assert_close(sh.basis(d, degree), sh.basis(d, 3)[:, : (degree + 1) ** 2])


def test_rgb_round_trip_and_known_value():
    rgb = torch.rand(4, 3)
    torch.testing.assert_close(sh.to_rgb(sh.from_rgb(rgb)), rgb)
    assert float(sh.to_rgb(torch.tensor(1.0))) == pytest.approx(0.7820947917738781)


@pytest.mark.parametrize("terms", [0, 2, 3, 5, 15, 25])
def test_wrong_number_of_terms(terms):
    with pytest.raises(ValueError, match=f"{terms} spherical-harmonics terms"):
        sh.degree_of(terms)


@given(st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: sum(x * x for x in q) > 0.01), st.integers(0, 3))
def test_rotated_radiance_seen_along_the_rotated_direction_is_the_same(quat, degree):
    rotation = matrix_from_quat(torch.tensor(quat).double())
    coefficients = torch.randn(3, (degree + 1) ** 2, 3, generator=torch.Generator().manual_seed(1)).double()
    turned = sh.rotated(coefficients, rotation)
    for d in directions(6, seed=2):
        here = torch.einsum("k,nkc->nc", sh.basis(d, degree), coefficients)
        there = torch.einsum("k,nkc->nc", sh.basis(rotation @ d, degree), turned)
        torch.testing.assert_close(there, here, atol=1e-9, rtol=0)


def test_rotations_compose():
    a, b = matrix_from_quat(torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).double())
    coefficients = torch.randn(4, 16, 3).double()
    torch.testing.assert_close(sh.rotated(sh.rotated(coefficients, b), a), sh.rotated(coefficients, a @ b))


def test_rotation_is_differentiable_and_keeps_the_dtype():
    coefficients = torch.randn(2, 16, 3, requires_grad=True)
    rotation = matrix_from_quat(torch.tensor([0.9, 0.1, 0.2, 0.3]))
    turned = sh.rotated(coefficients, rotation)
    assert turned.dtype == torch.float32
    turned.square().sum().backward()
    torch.testing.assert_close(coefficients.grad, 2 * coefficients.detach())  # D is orthogonal


def test_colours_clamp_at_zero_and_respect_the_degree():
    coefficients = torch.zeros(1, 4, 3)
    coefficients[0, 0] = sh.from_rgb(torch.tensor([0.2, 0.5, 0.8]))
    coefficients[0, 2] = 1.0  # along +z: 0.4886
    up = torch.tensor([[0.0, 0, 1]])
    assert sh.colours(coefficients, up)[0].tolist() == pytest.approx([0.6886025, 0.9886025, 1.2886025])
    assert sh.colours(coefficients, -up)[0].tolist() == pytest.approx([0.0, 0.0113975, 0.3113975], abs=1e-6)
    assert sh.colours(coefficients, up, degree=0)[0].tolist() == pytest.approx([0.2, 0.5, 0.8])
    assert sh.colours(coefficients, up, degree=3)[0].tolist() == pytest.approx([0.6886025, 0.9886025, 1.2886025])
