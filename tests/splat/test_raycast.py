"""Ray-cast views of meshes: exact depth, orientation, colours, textures, coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from splat.cameras import Cameras, intrinsics
from splat.mesh import Mesh
from splat.raycast import bilinear, raycast

UP = torch.tensor([0.0, 1, 0])


def square(z: float, half: float, colors: torch.Tensor | None = None, **kwargs) -> Mesh:
    """A square in the plane z = const facing +z."""
    corners = torch.tensor([[-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]])
    return Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]]), colors=colors, **kwargs)


def front_camera(distance: float, width: int = 32, height: int = 24) -> Cameras:
    return Cameras.look_at(
        torch.tensor([[0.0, 0, distance]]), torch.zeros(3), UP, intrinsics(float(width), width, height), width, height
    )


def uv_sphere(radius: float, rings: int = 64) -> Mesh:
    import trimesh

    ball = trimesh.creation.uv_sphere(radius=radius, count=[rings, 2 * rings])
    return Mesh(torch.tensor(ball.vertices).float(), torch.tensor(ball.faces).long())


def test_plane_depth_is_z_and_not_ray_length():
    views, depth = raycast(square(0.5, 10), front_camera(3.0))
    assert torch.allclose(depth, torch.full_like(depth, 2.5), atol=1e-5)
    assert (views.masks == 1).all()


def test_slanted_plane_depth_matches_the_plane_equation_at_pixel_centres():
    mesh = Mesh(
        torch.tensor([[-9.0, -9, -2], [9, -9, 2], [9, 9, 2], [-9, 9, -2]]), torch.tensor([[0, 1, 2], [0, 2, 3]])
    )  # z = 2 x / 9
    camera = front_camera(5.0)
    _, depth = raycast(mesh, camera)
    x = (torch.arange(32) + 0.5 - 16) / 32  # camera x over depth; the camera looks along -z of the world, so x is world x
    expected = 5.0 / (1 + 2 / 9 * x)  # 5 - depth = (2 / 9) x depth
    assert torch.allclose(depth[0], expected.expand(24, 32), atol=1e-4)


def test_sphere_depth_and_silhouette():
    camera = Cameras.look_at(torch.tensor([[2.0, 1, 2]]), torch.zeros(3), UP, intrinsics(60, 48, 48), 48, 48)
    views, depth = raycast(uv_sphere(1.0, 128), camera, supersample=4)
    assert depth[0, 24, 24] == pytest.approx(2.0, abs=1e-2)
    assert depth[0, 0, 0] == 0 and views.masks[0, 0, 0] == 0
    radius = 60 * math.tan(math.asin(1 / 3))  # pixels
    assert views.masks.sum().item() == pytest.approx(math.pi * radius**2, rel=0.01)


def test_orientation_right_is_right_and_up_is_up():
    red, green = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0])
    right = Mesh(torch.tensor([[0.5, -0.1, 0], [0.9, -0.1, 0], [0.7, 0.2, 0]]), torch.tensor([[0, 1, 2]]), red.expand(3, 3))
    above = Mesh(torch.tensor([[-0.1, 0.4, 0], [0.1, 0.4, 0], [0, 0.7, 0]]), torch.tensor([[0, 1, 2]]), green.expand(3, 3))
    for mesh, row, column, colour in [(right, 24, 39, red), (above, 12, 32, green)]:
        views, _ = raycast(mesh, front_camera(3.0, 64, 48))
        weight = views.masks[0]
        ys, xs = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(64) + 0.5, indexing="ij")
        centre = torch.stack([(ys * weight).sum(), (xs * weight).sum()]) / weight.sum()
        corner_pixels, _ = front_camera(3.0, 64, 48).project(mesh.vertices)
        assert centre.flip(0).sub(corner_pixels[0].mean(0)).abs().max() < 0.3
        assert abs(centre[0] - row) < 3 and abs(centre[1] - column) < 10
        inside = weight == 1
        assert torch.allclose(views.images[0][inside], colour.expand(int(inside.sum()), 3), atol=1e-5)


def test_vertex_colours_interpolate_linearly():
    colors = torch.tensor([[0.0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]])
    views, _ = raycast(square(0, 1, colors), front_camera(2.0, 32, 24), supersample=1)
    x = (torch.arange(32) + 0.5 - 16) / 32 * 2  # world x of each column at depth 2
    assert torch.allclose(views.images[0, 12, :, 0], (x + 1) / 2, atol=1e-4)
    assert torch.allclose(views.images[0, :, 5, 1], (1 - (torch.arange(24) + 0.5 - 12) / 16) / 2, atol=1e-4)


def test_texture_origin_is_lower_left():
    texture = torch.zeros(8, 8, 3)
    texture[4:, :4] = torch.tensor([1.0, 0, 0])  # the picture's lower left quarter
    corner_uv = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    mesh = square(0, 1, uvs=corner_uv[torch.tensor([[0, 1, 2], [0, 2, 3]])], texture=texture)
    views, _ = raycast(mesh, front_camera(2.0, 32, 32))
    image = views.images[0]
    assert torch.allclose(image[26, 5], torch.tensor([1.0, 0, 0]))
    for row, column in [(5, 5), (5, 26), (26, 26)]:
        assert torch.allclose(image[row, column], torch.zeros(3))


def test_bilinear_hits_texel_centres():
    texture = np.random.default_rng(0).random((3, 5, 3)).astype(np.float32)
    uv = np.array([[(j + 0.5) / 5, 1 - (i + 0.5) / 3] for i in range(3) for j in range(5)])
    assert np.allclose(bilinear(texture, uv).reshape(3, 5, 3), texture, atol=1e-6)


def test_nearer_surface_hides_farther_and_background_shows():
    near, far = square(1, 0.3, torch.ones(4, 3) * 0.2), square(-1, 0.8, torch.ones(4, 3) * 0.9)
    both = Mesh(
        torch.cat([far.vertices, near.vertices]),
        torch.cat([far.faces, near.faces + 4]),
        torch.cat([far.colors, near.colors]),
    )
    views, depth = raycast(both, front_camera(4.0, 64, 48), background=[0.0, 0.5, 1.0])
    assert depth[0, 24, 32] == pytest.approx(3.0, abs=1e-5)
    assert torch.allclose(views.images[0, 24, 32], torch.full((3,), 0.2))
    assert torch.allclose(views.images[0, 24, 40], torch.full((3,), 0.9))
    assert torch.allclose(views.images[0, 0, 0], torch.tensor([0.0, 0.5, 1.0]))
    assert depth[0, 0, 0] == 0


def test_edges_are_antialiased_and_blend_with_the_background():
    views, _ = raycast(square(0, 0.5, torch.zeros(4, 3)), front_camera(3.3, 64, 64), supersample=8)
    partial = (views.masks > 0) & (views.masks < 1)
    assert partial.any()
    assert torch.allclose(views.images[..., 0], 1 - views.masks, atol=1e-6)
    assert views.masks.sum().item() == pytest.approx((64 / 3.3) ** 2, rel=0.02)


def test_empty_mesh_is_all_background():
    views, depth = raycast(Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)), front_camera(2.0))
    assert (views.masks == 0).all() and (depth == 0).all() and (views.images == 1).all()


def test_orbit_views_agree_with_projection():
    """Each view's depth equals the z that `Cameras.project` gives for the point it hit."""
    cameras = Cameras.orbit(4, 3.0, 20.0, 45.0, 40, 30)
    views, depth = raycast(uv_sphere(0.8), cameras)
    assert len(views) == 4 and views.names[2] == "view_002"
    for i in range(4):
        row, column = 14, 19
        pixel = torch.tensor([column + 0.5, row + 0.5, 1.0])
        in_cam = torch.linalg.inv(cameras.K[i]) @ pixel * depth[i, row, column]
        world = cameras.world_from_cam[i, :3, :3] @ in_cam + cameras.centers[i]
        assert world.norm().item() == pytest.approx(0.8, abs=5e-3)
