"""Splats: rows stay together, raw and activated spaces, the same scene after a move."""

from dataclasses import fields

import pytest
import torch
from scenes import random_splats
from scipy.spatial.transform import Rotation

from splat.gaussians import Splats
from splat.rotations import matrix_from_quat
from splat.similarity import Similarity

FIELDS = [f.name for f in fields(Splats)]


def assert_same(a, b):
    for name in FIELDS:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_different_length_are_refused(name):
    splats = random_splats(4)
    values = {f: getattr(splats, f) for f in FIELDS}
    values[name] = values[name][:3]
    with pytest.raises(AssertionError):
        Splats(**values)


def test_wrong_number_of_sh_terms_is_refused():
    splats = random_splats(4)
    with pytest.raises(ValueError, match="5 spherical-harmonics terms"):
        Splats(splats.means, splats.quats, splats.log_scales, splats.opacity_logits, splats.sh[:, :5])


def test_indexing_takes_the_same_rows_of_every_field():
    splats = random_splats(6)
    mask = torch.tensor([True, False, True, False, False, True])
    for rows in (mask, torch.tensor([0, 2, 5])):
        for name in FIELDS:
            assert torch.equal(getattr(splats[rows], name), getattr(splats, name)[[0, 2, 5]])
    assert_same(Splats.cat([splats[:2], splats[2:]]), splats)
    assert len(splats[torch.zeros(6, dtype=torch.bool)]) == 0


def test_activations():
    splats = random_splats(3)
    torch.testing.assert_close(splats.scales, torch.exp(splats.log_scales))
    torch.testing.assert_close(splats.opacities, 1 / (1 + torch.exp(-splats.opacity_logits)))
    torch.testing.assert_close(splats.rgb, 0.5 + 0.28209479 * splats.sh[:, 0])


def test_covariance_is_r_s_s_r_transposed():
    splats = random_splats(5, dtype=torch.float64)
    for i in range(5):
        r = torch.from_numpy(Rotation.from_quat(splats.quats[i].numpy(), scalar_first=True).as_matrix())
        expected = r @ torch.diag(splats.scales[i] ** 2) @ r.T
        torch.testing.assert_close(splats.covariances()[i], expected)


def test_widened_adds_its_square_to_every_covariance():
    splats = random_splats(5, dtype=torch.float64)
    wide = splats.widened(0.03)
    torch.testing.assert_close(wide.covariances(), splats.covariances() + 0.03**2 * torch.eye(3, dtype=torch.float64))
    assert_same(Splats(wide.means, wide.quats, splats.log_scales, wide.opacity_logits, wide.sh), splats)


def test_with_sh_degree_cuts_and_pads():
    splats = random_splats(3, degree=2)
    assert splats.sh_degree == 2
    assert torch.equal(splats.with_sh_degree(1).sh, splats.sh[:, :4])
    more = splats.with_sh_degree(3)
    assert torch.equal(more.sh[:, :9], splats.sh) and more.sh[:, 9:].abs().max() == 0 and more.sh.shape == (3, 16, 3)


@pytest.fixture
def move():
    return Similarity(matrix_from_quat(torch.tensor([0.3, -0.5, 0.7, 0.2]).double()), torch.tensor([1.0, -2, 3]), 2.5)


def test_transformed_moves_means_and_covariances(move):
    splats = random_splats(5, dtype=torch.float64)
    moved = splats.transformed(move)
    torch.testing.assert_close(moved.means, move(splats.means))
    linear = move.scale * move.rotation
    torch.testing.assert_close(moved.covariances(), linear @ splats.covariances() @ linear.T)
    assert torch.equal(moved.opacity_logits, splats.opacity_logits)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_transformed_there_and_back(move, degree):
    splats = random_splats(5, degree, dtype=torch.float64)
    back = splats.transformed(move).transformed(move.inverse())
    for name in ("means", "log_scales", "opacity_logits", "sh"):
        torch.testing.assert_close(getattr(back, name), getattr(splats, name))
    torch.testing.assert_close(back.covariances(), splats.covariances())


def test_transformed_keeps_the_length_of_quaternions_and_the_dtype(move):
    """The optimiser's Adam state speaks of raw quaternions; a move must not rescale them."""
    splats = random_splats(5)
    moved = splats.transformed(move)
    torch.testing.assert_close(moved.quats.norm(dim=1), splats.quats.norm(dim=1))
    assert all(getattr(moved, name).dtype == torch.float32 for name in FIELDS)


def test_empty_splats_work(move):
    empty = random_splats(3)[:0]
    assert len(empty.transformed(move)) == 0 and empty.covariances().shape == (0, 3, 3) and len(Splats.cat([empty, empty])) == 0
    assert empty.with_sh_degree(0).sh.shape == (0, 1, 3)
