"""Splats of known surfaces become meshes of those surfaces."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from splat import sh
from splat.cameras import Cameras
from splat.errors import StoppedLate
from splat.extract_mesh import MeshConfig, _undenied, extract_mesh, surface_depth
from splat.gaussians import Splats
from splat.rotations import quat_from_matrix

SMALL = MeshConfig(resolution=72)


def flat_splats(points: torch.Tensor, normals: torch.Tensor, rgb: torch.Tensor, size: float, opacity: float = 0.97) -> Splats:
    """Thin discs of standard deviation `size` at `points` [N, 3] across `normals`."""
    helper = torch.where(normals[:, :1].abs() < 0.9, torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]))
    u = torch.nn.functional.normalize(torch.linalg.cross(helper, normals), dim=-1)
    frames = torch.stack([u, torch.linalg.cross(normals, u), normals], dim=-1)
    return Splats(
        points,
        torch.stack([quat_from_matrix(f.double()) for f in frames]).float(),
        torch.tensor([size, size, size * 0.05]).log().expand(len(points), 3).contiguous(),
        torch.full((len(points),), math.log(opacity / (1 - opacity))),
        sh.from_rgb(rgb)[:, None],
    )


def sphere(radius: float = 0.5, count: int = 3000, centre=(0.0, 0.0, 0.0)) -> Splats:
    """Coloured by direction: rgb = (d + 1) / 2."""
    i = torch.arange(count) + 0.5
    z, phi = 1 - 2 * i / count, i * math.pi * (3 - 5**0.5)
    r = (1 - z * z).sqrt()
    d = torch.stack([r * phi.cos(), r * phi.sin(), z], dim=-1)
    spacing = (4 * math.pi / count) ** 0.5 * radius
    return flat_splats(radius * d + torch.tensor(centre), d, (d + 1) / 2, 0.6 * spacing)


def wall(z: float, half: float, rgb, opacity: float = 0.97, step: float = 0.05) -> Splats:
    """A square at `z` facing +z, covered evenly."""
    side = torch.arange(-half, half + 1e-6, step)
    x, y = torch.meshgrid(side, side, indexing="xy")
    points = torch.stack([x, y, torch.full_like(x, z)], dim=-1).reshape(-1, 3)
    colour = torch.tensor(rgb).expand(len(points), 3)
    return flat_splats(points, torch.tensor([0.0, 0, 1]).expand(len(points), 3), colour, step, opacity)


def all_round() -> list[Cameras]:
    return [Cameras.orbit(5, 2.0, elevation, 40.0, 96, 72, azimuth_deg=elevation) for elevation in (-55.0, 0.0, 55.0)]


def volume(mesh) -> float:
    """Signed, positive when the triangles run counter-clockwise seen from outside."""
    a, b, c = mesh.vertices[mesh.faces].double().unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


def boundary_edges(mesh) -> int:
    """Edges that not exactly two triangles share."""
    edges = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]).sort(dim=1).values
    return int((torch.unique(edges, dim=0, return_counts=True)[1] != 2).sum())


@pytest.fixture(scope="module")
def sphere_mesh():
    return extract_mesh(sphere(), all_round(), SMALL)


def test_sphere_becomes_a_closed_sphere(sphere_mesh):
    radii = sphere_mesh.vertices.norm(dim=1)
    assert abs(float(radii.mean()) - 0.5) < 0.015 and float(radii.std()) < 0.006
    assert boundary_edges(sphere_mesh) < 0.002 * len(sphere_mesh.faces)
    assert volume(sphere_mesh) == pytest.approx(4 / 3 * math.pi * 0.125, rel=0.08)  # the sign says: outward


def test_colours_lie_where_they_belong(sphere_mesh):
    direction = torch.nn.functional.normalize(sphere_mesh.vertices, dim=-1)
    assert (sphere_mesh.colors - (direction + 1) / 2).abs().mean() < 0.02


def test_position_is_not_shifted(sphere_mesh):
    assert sphere_mesh.vertices.mean(0).abs().max() < 0.004  # a tenth of a pixel is 0.002, half a pixel 0.009


def test_simplified_to_the_budget(sphere_mesh):
    small = extract_mesh(sphere(), all_round(), MeshConfig(resolution=72, max_faces=1500))
    assert 1000 < len(small.faces) <= 1500 < len(sphere_mesh.faces)
    assert volume(small) == pytest.approx(volume(sphere_mesh), rel=0.01)
    direction = torch.nn.functional.normalize(small.vertices, dim=-1)
    assert (small.colors - (direction + 1) / 2).abs().mean() < 0.03


def camera(distance: float = 2.0) -> Cameras:
    return Cameras.orbit(1, distance, 0.0, 40.0, 96, 72)


def test_depth_of_one_wall_is_its_distance():
    depth, rgb, _ = surface_depth(wall(0.25, 1.2, (0.2, 0.4, 0.6)), camera(), MeshConfig())
    inside = depth[10:-10, 10:-10]
    assert torch.allclose(inside, torch.full_like(inside, 1.75), rtol=2e-3)
    assert torch.allclose(rgb[30, 40], torch.tensor([0.2, 0.4, 0.6]), atol=0.01)


@pytest.mark.parametrize(("opacity", "expected"), [(0.05, 2.5), (0.9, 1.5)])
def test_veil_before_a_wall_does_not_bend_the_depth(opacity, expected):
    """A faint veil is ignored and a dense one is the surface; the mean of the two never is."""
    splats = Splats.cat([wall(0.5, 1.2, (1.0, 0, 0), opacity), wall(-0.5, 2.0, (0.0, 0, 1))])
    depth, _, _ = surface_depth(splats, camera(), MeshConfig())
    middle = depth[20:-20, 20:-20]
    assert (middle > 0).float().mean() > 0.8
    assert (middle[middle > 0] - expected).abs().median() < 0.03


def test_undecided_blend_shows_no_surface():
    # One layer of these discs stops about half of the light everywhere.
    splats = Splats.cat([wall(0.5, 1.2, (1.0, 0, 0), 0.12), wall(-0.5, 2.0, (0.0, 0, 1))])
    alpha_of_veil = 1 - _transmittance(wall(0.5, 1.2, (1.0, 0, 0), 0.12))
    assert 0.4 < alpha_of_veil < 0.6
    depth, _, _ = surface_depth(splats, camera(), MeshConfig())
    assert (depth[20:-20, 20:-20] == 0).float().mean() > 0.9


def _transmittance(splats: Splats) -> float:
    from splat.render import render

    return 1 - float(render(splats, camera()).alpha[0, 20:-20, 20:-20].mean())


def test_transparent_pixels_and_masked_pixels_are_skipped():
    half_left = torch.ones(1, 72, 96)
    half_left[:, :, :48] = 0
    mesh = extract_mesh(wall(0.07, 0.6, (0.5, 0.5, 0.5)), [camera()], SMALL, masks=[half_left])
    assert float(mesh.vertices[:, 0].min()) > -0.05 and float(mesh.vertices[:, 0].max()) > 0.5
    faint = wall(0.0, 0.6, (0.5, 0.5, 0.5), opacity=0.02)
    with pytest.raises(StoppedLate, match="pixels of 1 views"):
        extract_mesh(faint, [camera()], SMALL)


def test_crumbs_go_and_the_far_background_stays_out():
    crumb = sphere(0.04, 60, (0.75, 0.3, 0.0))
    far = wall(-30.0, 40.0, (0.1, 0.9, 0.1), step=2.0)
    mesh = extract_mesh(Splats.cat([sphere(), crumb, far]), all_round(), SMALL)
    assert mesh.vertices.norm(dim=1).max() < 0.6


def rod(opacity: float) -> Splats:
    """Black, upright at x = 0.3 from y = -0.5 to 0.5, a fifth of a pixel thick, beside a ball."""
    y = torch.linspace(-0.5, 0.5, 101)
    points = torch.stack([torch.full_like(y, 0.3), y, torch.zeros_like(y)], dim=-1)
    thin = flat_splats(points, torch.tensor([[0.0, 0, 1]]).expand(101, 3), torch.zeros(101, 3), 0.0025, opacity)
    log_scales = torch.tensor([0.0025, 0.01, 0.0025]).log().expand(101, 3)
    quats = torch.tensor([[1.0, 0, 0, 0]]).expand(101, 4)
    return Splats.cat([dataclasses.replace(thin, log_scales=log_scales, quats=quats), sphere(0.15, 800, (-0.2, 0.0, 0.0))])


def test_what_is_thinner_than_a_pixel_survives_a_wider_low_pass():
    def height(low_pass: float) -> float:
        config = dataclasses.replace(SMALL, low_pass=low_pass, min_part=0.0)
        vertices = extract_mesh(rod(0.15), all_round(), config).vertices
        return len(vertices[vertices[:, 0] > 0.2, 1].mul(40).floor().unique()) / 40  # slices of the rod that have a surface

    assert height(2.0) > 0.85
    assert height(0.3) < 0.3


def test_carving_keeps_a_rod_as_thin_as_its_pictures():
    """Behind the edges of a picture truncation leaves surface that other pictures see is not there."""

    def found(carve: bool) -> tuple[float, torch.Tensor, torch.Tensor]:
        mesh = extract_mesh(rod(0.97), all_round(), dataclasses.replace(SMALL, carve=carve, min_part=0.0))
        at_rod = mesh.vertices[:, 0] > 0.1
        radius = (mesh.vertices[at_rod][:, [0, 2]] - torch.tensor([0.3, 0.0])).norm(dim=-1)
        return float(radius.max()), mesh.colors[at_rod], mesh.colors[~at_rod]

    radius, at_rod, at_ball = found(carve=True)
    assert radius < 0.035 and found(carve=False)[0] > 0.06
    assert at_rod.mean() < 0.01 and at_ball.mean() > 0.4  # empty rays have no colour


def test_empty_and_out_of_sight_scenes_stop_with_a_sentence():
    behind = [
        Cameras.look_at(
            torch.tensor([[0.0, 0, 2]]), torch.tensor([0.0, 0, 9]), torch.tensor([0.0, 1, 0]), camera().K[0], 96, 72
        )
    ]
    with pytest.raises(StoppedLate):
        extract_mesh(sphere(), behind, SMALL)


def test_what_other_views_look_through_is_dropped():
    """Five cameras before a wall at z = 0; one alone sees a patch in mid-air."""
    eyes = torch.tensor([[x, 0.0, 2.0] for x in (-0.4, -0.2, 0.0, 0.2, 0.4)])
    ahead = Cameras.look_at(eyes, eyes - torch.tensor([0.0, 0, 2]), torch.tensor([0.0, 1, 0]), camera().K[0], 96, 72)
    views = [(ahead[i], torch.full((72, 96), 2.0), torch.zeros(72, 96, 3)) for i in range(5)]
    views[2][1][30:40, 40:50] = 1.2
    views[1][1][:, :5] = 0  # unknown stays unknown, and denies nothing
    kept = _undenied(views, MeshConfig())
    assert (kept[2][1][30:40, 40:50] == 0).all()
    assert (kept[2][1][:, 55:] == 2.0).all() and (kept[0][1] == 2.0).all() and (kept[1][1][:, :5] == 0).all()
    assert (views[2][1][30:40, 40:50] == 1.2).all()  # the input is left alone
