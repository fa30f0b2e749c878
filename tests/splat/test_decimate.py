"""Cleaning and decimation of meshes, on closed forms."""

import dataclasses

import numpy as np
import pytest
import torch
from shapes import box, hill, joined, moved, painted, sphere, to_trimesh

from splat.decimate import cleaned, colors_at, decimated, folds
from splat.errors import InputError
from splat.mesh import Mesh


def test_a_sphere_stays_a_sphere_with_its_normals_and_colours():
    ball = sphere(5)
    ball = dataclasses.replace(ball, colors=painted(ball.vertices))
    simple = decimated(ball, 1000)
    assert 900 < len(simple.faces) <= 1000
    shape = to_trimesh(simple)
    assert shape.is_watertight and shape.volume == pytest.approx(4 / 3 * np.pi, rel=0.01)
    outward = (shape.face_normals * shape.triangles_center).sum(1) / np.linalg.norm(shape.triangles_center, axis=1)
    assert outward.min() > 0.9
    assert (simple.colors - painted(simple.vertices)).abs().max() < 0.02
    again = decimated(ball, 1000)
    assert torch.equal(again.vertices, simple.vertices) and torch.equal(again.faces, simple.faces)


def test_a_sheet_keeps_its_side_and_its_outline():
    sheet = hill(60)
    simple = decimated(sheet, 400)
    shape = to_trimesh(simple)
    assert (shape.face_normals[:, 1] > 0.5).all()
    assert np.allclose(shape.bounds, to_trimesh(sheet).bounds, atol=0.01)


def test_folds_of_a_noisy_surface_are_few():
    g = torch.Generator().manual_seed(0)
    ball = sphere(5)
    rough = Mesh(ball.vertices * (1 + 0.01 * torch.randn(len(ball.vertices), 1, generator=g)), ball.faces)
    simple = decimated(rough, 1500)
    assert folds(simple.vertices.double().numpy(), simple.faces.numpy()).sum() <= 3
    shape = to_trimesh(simple)
    assert ((shape.face_normals * shape.triangles_center).sum(1) > 0).mean() > 0.995


def test_cleaning_takes_what_is_no_surface():
    cube = box(1, 1, 1)
    twice = Mesh(cube.vertices[cube.faces].reshape(-1, 3), torch.arange(36).reshape(12, 3))  # every corner a vertex of its own
    n = len(twice.vertices)
    dirty = Mesh(
        torch.cat([twice.vertices, torch.tensor([[9.0, 9, 9], [0, 0, 0.1], [0, 0, 0.2], [0, 0, 0.3]])]),
        torch.cat(
            [
                twice.faces,
                twice.faces[:2],  # there twice
                torch.tensor([[0, 0, 1], [n + 1, n + 2, n + 3]]),  # a corner twice, three in a line
            ]
        ),
    )
    clean = cleaned(dirty)
    assert len(clean.vertices) == 8 and len(clean.faces) == 12
    assert to_trimesh(clean).is_watertight and to_trimesh(clean).volume == pytest.approx(1)


def test_back_to_back_triangles_are_no_surface():
    fin = torch.tensor([[0, 4, 99], [4, 0, 99]])
    cube = box(1, 1, 1)
    fin[fin == 99] = 8
    dirty = Mesh(torch.cat([cube.vertices, torch.tensor([[2.0, 2, 2]])]), torch.cat([cube.faces, fin]))
    assert torch.equal(cleaned(dirty).faces, cube.faces)


def test_specks_go_and_colours_and_uvs_stay_with_their_triangles():
    mesh = joined(sphere(2), moved(sphere(0, 0.01), 3, 0, 0))
    uvs = torch.rand(len(mesh.faces), 3, 2, generator=torch.Generator().manual_seed(0))
    mesh = dataclasses.replace(mesh, colors=painted(mesh.vertices), uvs=uvs, texture=torch.zeros(2, 2, 3))
    clean = cleaned(mesh, min_part=1e-3)
    assert len(clean.faces) == 320 and clean.vertices[:, 0].max() < 1.1
    assert torch.equal(clean.uvs, uvs[:320]) and torch.equal(clean.colors, painted(clean.vertices))
    assert len(cleaned(mesh).faces) == 340


def test_colours_are_those_of_the_nearest_place():
    ball = sphere(4)
    ball = dataclasses.replace(ball, colors=painted(ball.vertices))
    points = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    assert (colors_at(ball, 1.3 * points) - painted(points)).abs().max() < 0.01


def test_a_mesh_that_is_small_enough_is_only_cleaned():
    assert torch.equal(decimated(box(1, 2, 3), 100).faces, box(1, 2, 3).faces)


@pytest.mark.parametrize(
    ("mesh", "told"),
    [
        (Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]])), "no area"),
        (Mesh(torch.eye(3), torch.zeros(0, 3, dtype=torch.int64)), "0 triangles"),
        (Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]), torch.tensor([[0, 1, 2]])), "None of the mesh's 1 triangles"),
        (Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, float("nan"), 0]]), torch.tensor([[0, 1, 2]])), "NaN"),
    ],
)
def test_meshes_without_area_are_one_sentence(mesh, told):
    with pytest.raises(InputError, match=told):
        decimated(mesh, 100)


@pytest.mark.parametrize("faces", [0, -5, 3])
def test_budgets_that_enclose_nothing(faces):
    with pytest.raises(InputError, match="at least 4"):
        decimated(sphere(2), faces)
