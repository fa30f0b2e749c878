"""Closed meshes from the density of splats."""

import math
from dataclasses import replace

import pytest
import torch

from splat.density_mesh import DensityMeshConfig, density_mesh
from splat.errors import StoppedLate
from splat.gaussians import Splats
from splat.sh import from_rgb


def ball(radius: float = 0.4, count: int = 4000, sigma: float = 0.03, opacity: float = 0.9, center=(0.0, 0.0, 0.0)) -> Splats:
    """Gaussians on a sphere, red above and blue below."""
    i = torch.arange(count) + 0.5
    y = 1 - 2 * i / count
    turn, flat = math.pi * (1 + 5**0.5) * i, (1 - y**2).sqrt()
    means = radius * torch.stack([turn.cos() * flat, y, turn.sin() * flat], -1)
    rgb = torch.where(y[:, None] > 0, torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.9]))
    return Splats(
        means + torch.tensor(center), torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1), torch.full((count, 3), math.log(sigma)),
        torch.full((count,), math.log(opacity / (1 - opacity))), from_rgb(rgb)[:, None],
    )  # fmt: skip


def volume(mesh) -> float:
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    return float((a * torch.cross(b, c, dim=1)).sum() / 6)


def edges(mesh) -> torch.Tensor:
    """How often each edge is used: 2 everywhere on a closed surface."""
    pairs = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]).sort(dim=1).values
    return pairs.unique(dim=0, return_counts=True)[1]


SMALL = DensityMeshConfig(resolution=48)


def test_a_ball_is_closed_outward_and_of_its_size():
    mesh = density_mesh(ball(), SMALL)
    assert bool((edges(mesh) == 2).all())
    radius = mesh.vertices.norm(dim=1)
    assert 0.4 < float(radius.min()) and float(radius.max()) < 0.4 + 3 * 0.03  # some deviations outside of the centres
    assert volume(mesh) == pytest.approx(4 / 3 * math.pi * float(radius.mean()) ** 3, rel=0.03)  # full: no inner wall
    top, bottom = mesh.vertices[:, 1] > 0.1, mesh.vertices[:, 1] < -0.1
    torch.testing.assert_close(mesh.colors[top].mean(0), torch.tensor([0.9, 0.1, 0.1]), rtol=0, atol=0.02)
    torch.testing.assert_close(mesh.colors[bottom].mean(0), torch.tensor([0.1, 0.1, 0.9]), rtol=0, atol=0.02)


def test_it_follows_position_and_scale():
    mesh = density_mesh(ball(center=(3.0, -2.0, 5.0)), SMALL)
    torch.testing.assert_close(mesh.vertices.mean(0), torch.tensor([3.0, -2.0, 5.0]), rtol=0, atol=0.02)
    big = density_mesh(ball(4.0, sigma=0.3), SMALL)
    assert volume(big) == pytest.approx(1000 * volume(density_mesh(ball(), SMALL)), rel=0.02)


def test_turned_gaussians_are_felt_along_their_axes():
    """One long Gaussian turned by 90 degrees about z: the mesh is long along y, not along x."""
    half = math.sqrt(0.5)
    one = Splats(
        torch.zeros(1, 3), torch.tensor([[half, 0, 0, half]]), torch.tensor([[0.3, 0.05, 0.05]]).log(), torch.full((1,), 4.0),
        from_rgb(torch.full((1, 3), 0.5))[:, None],
    )  # fmt: skip
    several = Splats.cat(
        [one, replace(one, means=torch.tensor([[0.01, 0.3, 0]])), replace(one, means=torch.tensor([[0, -0.3, 0.01]]))]
    )
    mesh = density_mesh(several, SMALL)
    size = mesh.vertices.amax(0) - mesh.vertices.amin(0)
    assert float(size[1]) > 4 * float(size[0])


def test_a_lower_level_is_thicker():
    thin, thick = (volume(density_mesh(ball(opacity=0.5), replace(SMALL, level=level))) for level in (0.6, 0.1))
    assert thick > 1.1 * thin


def test_crumbs_go_and_faces_stay_within_their_budget():
    crumb = ball(0.02, 30, 0.01, center=(0.9, 0.9, 0.9))
    mesh = density_mesh(Splats.cat([ball(), crumb]), replace(SMALL, max_faces=2000))
    assert len(mesh.faces) <= 2000
    assert float(mesh.vertices.amax()) < 0.6


@pytest.mark.parametrize("faint", [0.01, 0.1])
def test_nothing_dense_has_no_surface(faint):
    with pytest.raises(StoppedLate, match="no mesh can be made"):
        density_mesh(ball(count=20, opacity=faint, sigma=0.01), SMALL)


def test_no_splats_at_all():
    with pytest.raises(StoppedLate, match="too faint"):
        density_mesh(ball()[torch.zeros(4000, dtype=torch.bool)], SMALL)
