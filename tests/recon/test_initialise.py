"""The first splats."""

import math

import pytest
import torch

from recon.initialise import (
    InitialConfig,
    choose_points,
    initial_splats,
    nearest_spacing,
    random_splats,
    viewing_bound,
)
from splat.cameras import Cameras
from splat.errors import InputError
from splat.points import PointCloud


def grid(n=6, pitch=0.5, radius=0.2):
    xyz = torch.stack(torch.meshgrid(*[torch.arange(n) * pitch] * 2, torch.zeros(1), indexing="ij"), -1).reshape(-1, 3)
    return PointCloud(
        xyz, torch.rand(len(xyz), 3), torch.ones(len(xyz)), None if radius is None else torch.full((len(xyz),), radius)
    )


def test_splats_of_points():
    points = grid()
    splats = initial_splats(points, InitialConfig(opacity=0.2, scale=0.5, sh_degree=2))
    assert torch.equal(splats.means, points.xyz)
    assert torch.allclose(splats.rgb, points.rgb, atol=1e-6)
    assert splats.sh_degree == 2 and float(splats.sh[:, 1:].abs().max()) == 0
    assert torch.allclose(splats.opacities, torch.tensor(0.2))
    assert torch.allclose(splats.scales[:, :2], torch.tensor(0.1), rtol=1e-5)
    assert torch.allclose(splats.scales[:, 2], torch.tensor(0.05), rtol=1e-5)
    round_ones = initial_splats(points, InitialConfig(thickness=1.0))
    assert torch.allclose(round_ones.scales, round_ones.scales[:1, :1], rtol=1e-5)
    assert torch.equal(round_ones.quats, torch.tensor([[1.0, 0, 0, 0]]).expand(len(points), 4))


@pytest.mark.parametrize("normal", [(0.0, 0, 1), (0.6, 0.0, 0.8), (0.36, -0.48, -0.8), (1.0, 0, 0), (0.0, -1, 0)])
def test_splats_lie_along_the_surface(normal):
    normal = torch.tensor(normal)
    g = torch.Generator().manual_seed(0)
    xyz = torch.randn(200, 3, generator=g)
    xyz = xyz - (xyz @ normal)[:, None] * normal
    splats = initial_splats(PointCloud(xyz, xyz, torch.ones(200), torch.full((200,), 0.2)))
    covariances = splats.covariances()
    across = torch.einsum("i,nij,j->n", normal, covariances, normal).sqrt()
    assert torch.allclose(across, torch.tensor(0.1), rtol=1e-3)
    assert torch.allclose(covariances.diagonal(dim1=1, dim2=2).sum(1), torch.tensor(2 * 0.04 + 0.01), rtol=1e-3)


def test_splats_in_a_thicket_stay_round():
    xyz = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    splats = initial_splats(PointCloud(xyz, xyz, torch.ones(300), torch.full((300,), 0.2)))
    assert float(splats.scales[:, 2].median()) > 0.17


def test_without_radius_neighbours_give_the_size():
    spacing = nearest_spacing(grid().xyz)
    assert float(spacing.reshape(6, 6)[2, 2]) == pytest.approx(0.5)
    corner = math.sqrt((0.25 + 0.25 + 0.5) / 3)
    assert float(spacing.reshape(6, 6)[0, 0]) == pytest.approx(corner)
    splats = initial_splats(grid(radius=None))
    assert torch.allclose(splats.scales[:, 0], spacing, rtol=1e-5)


def test_one_point_and_coincident_points_are_finite():
    one = initial_splats(PointCloud(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1)))
    same = initial_splats(PointCloud(torch.zeros(9, 3), torch.zeros(9, 3), torch.ones(9)))
    assert one.log_scales.isfinite().all() and same.log_scales.isfinite().all()


def test_no_points():
    nothing = PointCloud(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))
    with pytest.raises(InputError, match="no points"):
        initial_splats(nothing)
    with pytest.raises(InputError, match="neither"):
        choose_points(None, nothing, "dense")


def test_choice_of_points():
    dense = grid()
    far = PointCloud(torch.tensor([[0.01, 0, 0], [9.0, 0, 0], [9.0, 1, 0]]), torch.zeros(3, 3), torch.ones(3))
    assert choose_points(dense, far, "dense") is dense
    assert choose_points(dense, far, "sparse") is far
    assert choose_points(None, far, "dense") is far
    assert choose_points(dense, None, "sparse") is dense
    union = choose_points(dense, far, "union")
    assert len(union) == len(dense) + 2  # the sparse point on the dense surface adds nothing
    assert union.radius is not None and union.radius.isfinite().all()


def test_random_splats_fill_the_ball():
    centre = torch.tensor([1.0, 2, 3])
    splats = random_splats(4000, centre, 2.0)
    distance = (splats.means - centre).norm(dim=1)
    assert float(distance.max()) <= 2.0
    assert float((distance < 2 * 0.5 ** (1 / 3)).float().mean()) == pytest.approx(0.5, abs=0.03)  # even in volume
    assert torch.equal(random_splats(50, centre, 2.0).means, random_splats(50, centre, 2.0).means)
    other = random_splats(50, centre, 2.0, InitialConfig(seed=1))
    assert not torch.equal(other.means, random_splats(50, centre, 2.0).means)


def test_viewing_bound():
    cameras = Cameras.orbit(
        6, radius=4.0, elevation_deg=20.0, fov_deg=45.0, width=32, height=32, target=torch.tensor([1.0, 0, 0])
    )
    centre, radius = viewing_bound([cameras])
    assert torch.allclose(centre, torch.tensor([1.0, 0, 0]), atol=1e-4)
    assert radius == pytest.approx(2.0, rel=1e-3)
    xyz = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) + 5
    centre, radius = viewing_bound([cameras], PointCloud(xyz, xyz, torch.ones(500)))
    assert torch.allclose(centre, torch.full((3,), 5.0), atol=0.3)
    assert 3 < radius < 5
