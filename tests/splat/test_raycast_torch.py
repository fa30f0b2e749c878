"""Ray casting in PyTorch against open3d's."""

import math

import numpy as np
import pytest
import torch

from splat.cameras import Cameras
from splat.mesh import Mesh
from splat.raycast import raycast
from splat.raycast_torch import cast


def soup(seed: int, faces: int = 40) -> Mesh:
    """Random triangles of random colours about the origin."""
    g = torch.Generator().manual_seed(seed)
    centers = 0.5 * (torch.rand(faces, 1, 3, generator=g) - 0.5)
    vertices = (centers + 0.5 * (torch.rand(faces, 3, 3, generator=g) - 0.5)).reshape(-1, 3)
    return Mesh(vertices, torch.arange(3 * faces).reshape(-1, 3), torch.rand(3 * faces, 3, generator=g))


CAMERAS = Cameras.orbit(3, 1.9, 20.0, 49.1, 40, 32, azimuth_deg=10.0)


@pytest.mark.parametrize("seed", range(4))
def test_the_same_pictures_as_open3d(seed, monkeypatch):
    mesh = soup(seed)
    views, depth = raycast(mesh, CAMERAS, background=(0.1, 0.2, 0.3))
    monkeypatch.setattr(
        "splat.raycast._caster", lambda mesh, threads, device: lambda c: tuple(x.numpy() for x in cast(mesh, c, "cpu"))
    )
    others, other_depth = raycast(mesh, CAMERAS, background=(0.1, 0.2, 0.3))
    same = ((views.images - others.images).abs().amax(-1) < 1e-4) & ((depth - other_depth).abs() < 1e-4)
    assert float(same.float().mean()) > 0.998  # rays along an edge may fall on either side of it
    assert float(views.masks.mean()) > 0.05
    assert torch.equal((views.masks > 0).any(0).any(), (others.masks > 0).any(0).any())


def test_pieces_make_no_difference(monkeypatch):
    whole = cast(soup(5), CAMERAS[0], "cpu")
    monkeypatch.setattr("splat.raycast_torch.PAIRS", 100)
    for a, b in zip(whole, cast(soup(5), CAMERAS[0], "cpu"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_triangle_of_known_place():
    """One that faces the camera 2 units away: depth is 2, weights are those of the point on the plane."""
    camera = Cameras.look_at(
        torch.tensor([[0.0, 0, 2]]),
        torch.zeros(3),
        torch.tensor([0.0, 1, 0]),
        torch.tensor([[20.0, 0, 8], [0, 20, 8], [0, 0, 1]]),
        16,
        16,
    )
    corners = torch.tensor([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0, 0.5, 0]])
    depth, face, weights = cast(Mesh(corners, torch.tensor([[0, 1, 2]]), None), camera, "cpu")
    hit = depth > 0
    assert 20 < int(hit.sum()) < 100 and bool((face[hit] == 0).all())
    torch.testing.assert_close(depth[hit], torch.full_like(depth[hit], 2.0))
    y, x = 9, 7  # of the pixel 0.5 left of and 1.5 below the middle
    point = torch.tensor([(x + 0.5 - 8) / 20 * 2, -(y + 0.5 - 8) / 20 * 2, 0.0])
    u, v = weights[y, x]
    torch.testing.assert_close(corners[0] + u * (corners[1] - corners[0]) + v * (corners[2] - corners[0]), point)


def test_nothing_behind_the_camera_and_nothing_at_all():
    behind = Mesh(soup(0).vertices + torch.tensor([0.0, 0, 5]), soup(0).faces, None)
    camera = Cameras.look_at(torch.tensor([[0.0, 0, 2]]), torch.zeros(3), torch.tensor([0.0, 1, 0]), CAMERAS.K[0], 40, 32)
    assert not bool(cast(behind, camera, "cpu")[0].any())
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64), None)
    assert not bool(cast(empty, camera, "cpu")[0].any())


@pytest.mark.cuda
def test_on_a_gpu():
    views, depth = raycast(soup(1), CAMERAS)
    others, other_depth = raycast(soup(1), CAMERAS, device="cuda")
    same = (views.images - others.images).abs().amax(-1) < 1e-3
    assert float(same.float().mean()) > 0.995
    assert math.isclose(float(np.median(depth[depth > 0])), float(np.median(other_depth[other_depth > 0])), rel_tol=1e-3)
