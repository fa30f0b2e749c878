import math

import pytest
import torch

from recon.align import align_world, common_up
from splat.cameras import Cameras, intrinsics
from splat.points import PointCloud
from splat.rotations import matrix_from_quat
from splat.similarity import Similarity

Y = torch.tensor([0.0, 1, 0])


def moved_world(seed: int = 0) -> Similarity:
    """An arbitrary gauge, as a solver leaves it."""
    generator = torch.Generator().manual_seed(seed)
    quat = torch.randn(4, generator=generator)
    return Similarity(matrix_from_quat(quat), torch.randn(3, generator=generator) * 5, 3.7)


def angle_deg(a: torch.Tensor, b: torch.Tensor) -> float:
    return math.degrees(math.acos(float((a.double() @ b.double()).clamp(-1, 1))))


def rolled(cameras: Cameras, degrees: torch.Tensor) -> Cameras:
    turn = torch.eye(4).repeat(len(cameras), 1, 1)
    angle = torch.deg2rad(degrees)
    turn[:, 0, 0] = turn[:, 1, 1] = angle.cos()
    turn[:, 0, 1], turn[:, 1, 0] = -angle.sin(), angle.sin()
    return Cameras(turn @ cameras.cam_from_world, cameras.K, cameras.width, cameras.height)


def arc(count: int, span_deg: float, elevation_deg: float, radius: float = 2.0, middle_deg: float = 0.0) -> Cameras:
    """Cameras on an arc round the origin, its middle at `middle_deg`."""
    azimuths = torch.linspace(-span_deg / 2, span_deg / 2, count) + middle_deg
    parts = [Cameras.orbit(1, radius, elevation_deg, 50, 64, 48, azimuth_deg=float(a)) for a in azimuths]
    return Cameras.cat(parts)


@pytest.mark.parametrize("span, elevation, tolerance", [(330, 20, 0.5), (90, 45, 2), (60, 0, 0.5), (180, 70, 1)])
def test_arc_comes_back_upright_facing_front(span: float, elevation: float, tolerance: float) -> None:
    cameras = arc(9, span, elevation)
    world = moved_world()
    result = align_world([cameras.transformed(world)])
    combined = (result @ world).matrix()
    assert angle_deg(combined[:3, 1] / combined[:3, 1].norm(), Y) < tolerance
    placed = cameras.transformed(world).transformed(result)
    assert float(placed.centers.norm(dim=-1).max()) == pytest.approx(1, abs=1e-3)
    if span < 300:
        azimuth = torch.atan2(placed.centers[:, 0], placed.centers[:, 2])
        assert abs(float(azimuth.mean())) < math.radians(2)


def test_full_orbit_puts_first_camera_in_front() -> None:
    cameras = Cameras.orbit(12, 3.0, 15, 50, 64, 48, azimuth_deg=77)
    world = moved_world(1)
    placed = cameras.transformed(world).transformed(align_world([cameras.transformed(world)]))
    x, y, z = placed.centers[0].tolist()
    assert abs(x) < 1e-3 and z > 0 and y == pytest.approx(math.sin(math.radians(15)), abs=1e-3)


def test_orbit_aligned_to_itself_is_only_scaled() -> None:
    cameras = Cameras.orbit(8, 2.0, 30, 50, 64, 48)
    result = align_world([cameras])
    assert torch.allclose(result.matrix(), torch.diag(torch.tensor([0.5, 0.5, 0.5, 1.0], dtype=torch.float64)), atol=2e-3)


def test_hand_shake_and_two_sideways_photos_do_not_tilt_the_world() -> None:
    generator = torch.Generator().manual_seed(3)
    roll = torch.randn(14, generator=generator) * 3
    roll[4], roll[9] = 90.0, -90.0
    cameras = rolled(arc(14, 200, 25), roll)
    assert angle_deg(common_up(cameras.cam_from_world[:, :3, :3].double()), Y) < 2


def test_given_up_is_kept() -> None:
    cameras = arc(5, 60, 10)
    result = align_world([cameras], up=torch.tensor([0.0, 0.6, 0.8]))
    assert torch.allclose(result.rotation[1], torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64), atol=1e-6)


def test_top_down_flight_looks_down() -> None:
    """A drone turning above a field: the photos' own up cancels, the way back to the cameras is up."""
    eyes = torch.tensor([[x, 10.0, z] for x in (-3.0, 0, 3) for z in (-2.0, 2)])
    headings = torch.arange(6) * math.pi / 3
    K = intrinsics(60, 64, 48)
    parts = [
        Cameras.look_at(eye[None], eye[None] - Y, torch.stack([h.cos(), torch.tensor(0.0), h.sin()]), K, 64, 48)
        for eye, h in zip(eyes, headings)
    ]
    world = moved_world(2)
    cameras = Cameras.cat(parts).transformed(world)
    result = align_world([cameras], PointCloud(world(torch.rand(50, 3)), torch.rand(50, 3), torch.ones(50)))
    assert float(cameras.transformed(result).forward[:, 1].max()) < -0.999
    assert float(cameras.transformed(result).centers.norm(dim=-1).max()) <= 1 + 1e-5


def test_parallel_cameras_take_the_distance_from_the_points() -> None:
    eyes = torch.tensor([[x, 0.1 * x, 0.0] for x in (-1.0, 0, 1)])
    cameras = Cameras.look_at(eyes, eyes + torch.tensor([0.0, 0, -1]), Y, intrinsics(60, 64, 48), 64, 48)
    points = PointCloud(torch.randn(200, 3) * 0.2 + torch.tensor([0.0, 0, -8]), torch.rand(200, 3), torch.ones(200))
    result = align_world([cameras], points)
    assert torch.allclose(result(torch.tensor([0.0, 0, -8])), torch.zeros(3), atol=0.05)
    placed = cameras.transformed(result)
    assert torch.allclose(placed.forward, torch.tensor([0.0, 0, -1]).expand(3, 3), atol=0.1)
    assert torch.allclose(-placed.cam_from_world[:, 1, :3], Y.expand(3, 3), atol=0.02)


def test_cameras_looking_outwards_are_centred_on_themselves() -> None:
    orbit = Cameras.orbit(8, 1.0, 0, 60, 64, 48)
    eyes = orbit.centers
    outwards = Cameras.look_at(eyes, 2 * eyes, Y, orbit.K[0], 64, 48)
    result = align_world([outwards])
    assert float(outwards.transformed(result).centers.mean(0).norm()) < 0.3
    assert result.rotation[1, 1] > 0.999


@pytest.mark.parametrize("count", [1, 2])
def test_one_and_two_cameras_get_a_frame(count: int) -> None:
    cameras = arc(count, 20, 10).transformed(moved_world(4))
    result = align_world([cameras])
    assert result.matrix().isfinite().all()
    assert float(cameras.transformed(result).centers.norm(dim=-1).max()) == pytest.approx(1, abs=1e-3)


def test_identical_cameras_do_not_divide_by_zero() -> None:
    camera = arc(1, 0, 10)
    assert align_world([camera, camera]).matrix().isfinite().all()


def test_batches_of_two_sizes_count_alike() -> None:
    cameras = arc(6, 120, 20)
    portrait = cameras[[1, 4]].resized(48, 64)
    whole = align_world([cameras])
    split = align_world([cameras[[0, 2, 3, 5]], portrait])
    assert torch.allclose(whole.matrix(), split.matrix(), atol=1e-5)
