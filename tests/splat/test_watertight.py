"""Closed solids from meshes that are closed, torn, open, doubled, or nothing."""

import dataclasses

import numpy as np
import pytest
import torch
from shapes import box, hill, joined, moved, painted, sphere, to_trimesh

from splat.errors import InputError
from splat.mesh import Mesh
from splat.watertight import SolidConfig, closed_soup, is_closed, volume, watertight

BALL = 4 / 3 * np.pi
QUICK = SolidConfig(resolution=48)


def checked(mesh: Mesh, config: SolidConfig = QUICK) -> Mesh:
    """The solid, closed in trimesh's judgement and in ours, and turned outwards."""
    solid = watertight(mesh, config)
    shape = to_trimesh(solid)
    assert is_closed(solid) and shape.is_watertight and shape.is_winding_consistent
    assert volume(solid) == pytest.approx(shape.volume, rel=1e-3) and shape.volume > 0
    return solid


def without(mesh: Mesh, gone: torch.Tensor) -> Mesh:
    """`mesh` without the triangles whose middles `gone` [F]."""
    return Mesh(mesh.vertices, mesh.faces[~gone])


def middles(mesh: Mesh) -> torch.Tensor:
    return mesh.vertices[mesh.faces].mean(1)


@pytest.mark.parametrize(("mesh", "expected"), [(sphere(4), BALL), (box(1, 0.6, 0.3), 0.18)], ids=["sphere", "box"])
def test_closed_shapes_keep_volume_and_place(mesh, expected):
    solid = checked(mesh)
    assert volume(solid) == pytest.approx(expected, rel=0.012)
    assert np.allclose(to_trimesh(solid).bounds, to_trimesh(mesh).bounds, atol=0.01)


def test_finer_grids_are_more_exact():
    errors = [abs(volume(watertight(box(1, 0.6, 0.3), SolidConfig(n))) - 0.18) for n in (32, 64)]
    assert errors[1] < 0.6 * errors[0]


def test_cracks_are_capped():
    ball = sphere(4)
    torn = without(ball, (middles(ball)[:, 0] > 0.98) | (torch.arange(len(ball.faces)) % 97 == 0))
    assert volume(checked(torn)) == pytest.approx(BALL, rel=0.02)


def test_a_missing_underside_becomes_a_level_base():
    ball = sphere(4)
    solid = checked(without(ball, middles(ball)[:, 1] < -0.6))
    assert volume(solid) > 0.85 * BALL
    low = solid.vertices[:, 1].min()
    assert low == pytest.approx(-0.6 - 0.02 * 2, abs=0.06)  # two hundredths of the longest side below the rim
    standing = solid.vertices[(solid.vertices[:, 1] - low) < 0.01]
    assert np.ptp(standing[:, 0].numpy()) > 1.3  # on a disc as wide as the cut


def test_a_sheet_becomes_a_relief():
    solid = checked(hill(height=0.3))
    assert volume(solid) == pytest.approx(0.02 + 0.3 * 4 / np.pi**2, rel=0.03)
    assert solid.vertices[:, 1].min() == pytest.approx(-0.02, abs=0.01)


def test_a_wall_is_closed_behind_it():
    """A hill seen from the front: it faces +Z, and its base is behind it."""
    sheet = hill(height=0.3)
    wall = Mesh(torch.stack([sheet.vertices[:, 0], -sheet.vertices[:, 2], sheet.vertices[:, 1]], dim=1), sheet.faces)
    solid = checked(wall)
    assert volume(solid) == pytest.approx(0.02 + 0.3 * 4 / np.pi**2, rel=0.03)
    assert solid.vertices[:, 2].min() == pytest.approx(-0.02, abs=0.01)


def test_overlapping_parts_become_one_and_hollows_are_filled():
    both = checked(joined(sphere(3), moved(sphere(3), 1, 0, 0)))
    lens = 5 * np.pi / 12  # of two unit balls at distance 1
    assert volume(both) == pytest.approx(2 * BALL - lens, rel=0.03)
    hollow = sphere(3, 0.5)
    shell = joined(sphere(3), Mesh(hollow.vertices, hollow.faces.flip(1)))
    assert volume(checked(shell)) == pytest.approx(BALL, rel=0.03)


def test_specks_are_dropped_and_pieces_kept():
    solid = checked(joined(sphere(3), moved(sphere(2, 0.1), 1.4, 0, 0), moved(sphere(3, 0.6), 0, 2, 0)))
    assert to_trimesh(solid).body_count == 2 and solid.vertices[:, 0].max() < 1.1


@pytest.mark.parametrize("faces", [3000, 500])
def test_a_budget_of_triangles_keeps_it_closed(faces):
    ball = dataclasses.replace(sphere(4), colors=painted(sphere(4).vertices))
    solid = checked(ball, SolidConfig(resolution=48, faces=faces))
    assert len(solid.faces) <= faces and volume(solid) == pytest.approx(BALL, rel=0.05)
    near = torch.nn.functional.normalize(solid.vertices, dim=1)
    assert (solid.colors - painted(near)).abs().mean() < 0.03


def test_decimation_that_tears_falls_back_to_a_coarser_grid(monkeypatch):
    monkeypatch.setattr("splat.watertight.decimated", lambda mesh, faces: without(mesh, torch.arange(len(mesh.faces)) == 5))
    assert len(checked(sphere(4), SolidConfig(resolution=48, faces=6000)).faces) <= 6000
    with pytest.raises(InputError, match="100 triangles are too few"):
        watertight(sphere(3), SolidConfig(resolution=32, faces=100))


def test_decimation_that_does_not_get_there_falls_back_too(monkeypatch):
    def refuse(mesh, faces):
        raise InputError("The mesh falls into too many parts.")

    monkeypatch.setattr("splat.watertight.decimated", refuse)
    assert len(checked(sphere(4), SolidConfig(resolution=48, faces=6000)).faces) <= 6000
    with pytest.raises(InputError, match="100 triangles are too few for a closed solid"):
        watertight(sphere(3), SolidConfig(resolution=32, faces=100))


def test_a_mesh_that_is_inside_out_is_turned():
    ball = sphere(3)
    outward, inward = (checked(Mesh(ball.vertices, faces)) for faces in (ball.faces, ball.faces.flip(1)))
    assert volume(inward) == pytest.approx(volume(outward), rel=1e-3)
    torn = without(ball, middles(ball)[:, 0] > 0.95)
    outward, inward = (checked(Mesh(torn.vertices, faces)) for faces in (torn.faces, torn.faces.flip(1)))
    assert volume(inward) == pytest.approx(volume(outward), rel=1e-3)


def test_the_closing_triangles_balance_every_edge():
    ball = sphere(3)
    for gone in (middles(ball)[:, 1] < 0, middles(ball)[:, 0] > 0.95, torch.arange(len(ball.faces)) % 50 == 0):
        _, faces = closed_soup(ball.vertices.double().numpy(), without(ball, gone).faces.numpy())
        edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
        forth, count = np.unique(edges, axis=0, return_counts=True)
        back, other = np.unique(edges[:, ::-1], axis=0, return_counts=True)
        assert np.array_equal(forth, back) and np.array_equal(count, other)


def test_what_cannot_be_solid_is_one_sentence():
    with pytest.raises(InputError, match="24 to 1024"):
        watertight(sphere(2), SolidConfig(resolution=4))
    with pytest.raises(InputError, match="no area"):
        watertight(Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]])))
