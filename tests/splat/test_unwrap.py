"""Texture coordinates: charts that do not overlap, lie apart, fill the texture and do not stretch."""

import dataclasses

import numpy as np
import pytest
import torch
from shapes import box, joined, moved, painted, sphere

from splat import unwrap
from splat.decimate import face_crosses
from splat.errors import InputError
from splat.mesh import Mesh
from splat.unwrap import UnwrapConfig, unwrapped


def covers(mesh: Mesh, size: int) -> np.ndarray:
    """[size, size] how many triangles lie over each texel's centre."""
    count = np.zeros((size, size), int)
    for triangle in mesh.uvs.double().numpy() * size:
        low, high = np.floor(triangle.min(0)).astype(int), np.ceil(triangle.max(0)).astype(int)
        x, y = np.meshgrid(np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5)
        a, b, c = triangle
        sides = [(q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0]) for p, q in ((a, b), (b, c), (c, a))]
        inside = np.all(np.stack(sides) > 1e-9, axis=0) | np.all(np.stack(sides) < -1e-9, axis=0)
        count[low[1] : high[1], low[0] : high[0]] += inside
    return count


def area_ratios(mesh: Mesh) -> np.ndarray:
    """[F] area in the texture by area in the world, 1 for the median triangle."""
    uvs = mesh.uvs.double().numpy()
    (x1, y1), (x2, y2) = (uvs[:, 1] - uvs[:, 0]).T, (uvs[:, 2] - uvs[:, 0]).T
    ratio = np.abs(x1 * y2 - x2 * y1) / np.linalg.norm(face_crosses(mesh.vertices.numpy(), mesh.faces.numpy()), axis=1)
    return ratio / np.median(ratio)


@pytest.mark.parametrize("size", [64, 256])
def test_charts_do_not_overlap_and_fill_the_texture_evenly(size):
    mesh = unwrapped(sphere(3), UnwrapConfig(size))
    assert mesh.uvs.shape == (1280, 3, 2) and mesh.uvs.min() >= 0 and mesh.uvs.max() <= 1
    count = covers(mesh, size)
    assert count.max() == 1 and count.mean() > 0.35
    assert np.quantile(area_ratios(mesh), [0.02, 0.98]) == pytest.approx([1, 1], rel=0.6)
    again = unwrapped(sphere(3), UnwrapConfig(size))
    assert torch.equal(again.uvs, mesh.uvs)


def test_charts_lie_apart():
    from scipy.ndimage import distance_transform_edt, label

    chart, charts = label(covers(unwrapped(box(1, 1, 1), UnwrapConfig(128, padding=4)), 128), np.ones((3, 3)))
    assert charts == 6
    for k in range(1, charts + 1):
        assert distance_transform_edt(chart != k)[(chart != k) & (chart > 0)].min() > 4


def test_faces_keep_their_places_and_colours():
    ball = dataclasses.replace(sphere(2), colors=painted(sphere(2).vertices))
    mesh = unwrapped(ball, UnwrapConfig(64))
    assert torch.equal(mesh.vertices, ball.vertices) and torch.equal(mesh.faces, ball.faces)
    assert torch.equal(mesh.colors, ball.colors)


def test_bad_geometry_is_unwrapped_too():
    """Three triangles at one edge, some twice, needles, a part far away."""
    g = torch.Generator().manual_seed(0)
    needles = torch.rand(40, 1, 3, generator=g) + torch.tensor([[0.0, 0, 0], [1, 0, 0], [0.5, 1e-5, 0]])
    fan = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, -1, -1]])
    mesh = joined(
        Mesh(fan, torch.tensor([[0, 1, 2], [0, 1, 3], [0, 1, 4], [0, 1, 2]])),
        Mesh(needles.reshape(-1, 3), torch.arange(120).reshape(40, 3)),
        moved(sphere(1), 30, 0, 0),
    )
    out = unwrapped(mesh, UnwrapConfig(128))
    assert len(out.faces) == 3 + 40 + 80
    assert out.uvs.isfinite().all() and out.uvs.min() >= 0 and out.uvs.max() <= 1
    assert covers(out, 128).max() == 1


def test_triangles_of_no_chart_do_not_lie_across_the_others():
    corners = np.full((3, 3, 2), np.nan)
    corners[0], corners[1] = [[0, 0], [9, 0], [0, 9]], [[20, 20], [29, 20], [20, 29]]
    faces = np.array([[0, 1, 2], [3, 4, 5], [2, 3, 6]])
    attached = unwrap._attached(corners, faces)
    assert np.array_equal(attached[:2], corners[:2]) and (attached[2] == [0, 9]).all()


def test_large_meshes_are_cut_in_pieces(monkeypatch):
    monkeypatch.setattr(unwrap, "MOST_AT_ONCE", 200)
    mesh = unwrapped(sphere(3), UnwrapConfig(256))
    assert covers(mesh, 256).max() == 1 and area_ratios(mesh).min() > 0.2
    pieces = unwrap._pieces(np.random.default_rng(0).random((1000, 3)), 200)
    assert max(map(len, pieces)) <= 200 and np.array_equal(np.sort(np.concatenate(pieces)), np.arange(1000))


@pytest.mark.parametrize("size", [0, 8, -1, 100_000])
def test_sizes_that_no_texture_has(size):
    with pytest.raises(InputError, match="16 to 4096"):
        unwrapped(sphere(1), UnwrapConfig(size))


def test_too_many_triangles(monkeypatch):
    monkeypatch.setattr(unwrap, "MOST_FACES", 100)
    with pytest.raises(InputError, match="320 triangles"):
        unwrapped(sphere(2))
