"""The turntable stays where photos were taken, and its video plays everywhere."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.contact_sheet import PAGE_WIDTH, Pair, contact_sheet
from app.turntable import render_frames, subject, suited_path, video
from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.similarity import Similarity


def ball(centre=(0.0, 0.0, 0.0), n: int = 200) -> Splats:
    g = torch.Generator().manual_seed(0)
    means = torch.tensor(centre) + 0.3 * torch.randn(n, 3, generator=g)
    return Splats(means, torch.randn(n, 4, generator=g), torch.full((n, 3), -3.0), torch.full((n,), 3.0), torch.rand(n, 1, 3))


def angles(cameras: Cameras, focus: torch.Tensor):
    offset = cameras.centers.double() - focus
    distance = offset.norm(dim=-1)
    return torch.atan2(offset[:, 0], offset[:, 2]), torch.asin(offset[:, 1] / distance), distance


def test_surrounding_cameras_give_a_full_turn_that_starts_at_the_front():
    captured = Cameras.orbit(12, 2.0, 25.0, 50.0, 64, 48)
    path = suited_path([captured], ball(), 24, 97)
    azimuth, elevation, distance = angles(path, torch.zeros(3))
    assert (path.width, path.height) == (96, 72)
    assert abs(float(azimuth[0])) < 1e-3 and float(azimuth[1]) > 0.1
    turn = torch.remainder(torch.diff(azimuth), 2 * math.pi)
    assert torch.allclose(turn, torch.full_like(turn, 2 * math.pi / 24), atol=1e-3)
    assert torch.allclose(elevation, torch.full_like(elevation, math.radians(25)), atol=0.02)
    assert torch.allclose(distance, torch.full_like(distance, 2.0), atol=0.02)


@pytest.mark.parametrize("middle", [0.0, 90.0, 180.0, -130.0])
def test_an_arc_is_swayed_through_and_not_left(middle):
    arc = Cameras.cat([Cameras.orbit(1, 3.0, 10.0, 40.0, 48, 64, azimuth_deg=middle + a) for a in (-40, -20, 0, 20, 40)])
    path = suited_path([arc], ball(), 40, 64)
    azimuth, _, _ = angles(path, torch.zeros(3))
    away = torch.rad2deg(torch.remainder(azimuth - math.radians(middle) + math.pi, 2 * math.pi) - math.pi)
    assert away.abs().max() < 40.5
    assert away.max() > 25 and away.min() < -25
    assert (path.width, path.height) == (48, 64)  # portrait stays portrait


def test_parallel_cameras_look_at_the_depth_of_the_splats():
    eyes = torch.tensor([[x, 0.0, 0.0] for x in (-0.2, -0.1, 0.0, 0.1, 0.2)])
    targets = eyes + torch.tensor([0.0, 0.0, -1.0])
    K = torch.tensor([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])
    facade = Cameras.look_at(eyes, targets, torch.tensor([0.0, 1, 0]), K, 64, 48)
    splats = ball((0.0, 0.0, -4.0))
    assert (subject([facade], splats) - torch.tensor([0.0, 0, -4])).norm() < 0.4
    path = suited_path([facade], splats, 20, 64)
    assert path.centers[:, 0].abs().max() < 0.3 and path.centers[:, 2].abs().max() < 0.5


def test_photos_taken_while_walking_are_walked_through_again():
    """Where a walk turns, the optical axes of before and after cross: a turn round that point would look where nobody did."""
    before, after = torch.linspace(0, 1, 20)[:, None], torch.linspace(0, 1, 5)[:, None]
    eyes = torch.cat([torch.lerp(torch.tensor([-0.22, 0.0, 0.97]), torch.tensor([0.04, 0.0, -0.05]), before),
                      torch.lerp(torch.tensor([0.09, 0.0, -0.17]), torch.tensor([0.21, 0.0, -0.37]), after)])  # fmt: skip
    ahead = torch.tensor([[0.21, 0.0, -0.97]] * 20 + [[0.54, 0.0, -0.83]] * 5)
    K = torch.tensor([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])
    walk = Cameras.look_at(eyes, eyes + ahead, torch.tensor([0.0, 1, 0]), K, 64, 48)
    path = suited_path([walk[torch.randperm(25)]], ball((0.3, 0.0, -1.0)), 24, 64)
    near = torch.cdist(path.centers, walk.centers).amin(1)
    assert near.max() < 0.1 and (path.forward @ walk.forward.T).amax(1).min() > 0.97
    assert path.centers[0, 2] > 0.8 and path.centers[12, 2] < -0.25  # sets out forwards, is at the far end half way
    assert (path.centers[0] - path.centers[-1]).norm() < 0.1


@given(st.integers(0, 1000))
def test_the_path_moves_with_the_world(seed):
    """Turning about the vertical, moving and scaling the world does the same to an arc's path."""
    g = torch.Generator().manual_seed(seed)
    angle, scale = float(torch.rand(1, generator=g)) * 6.28, 0.1 + 5 * float(torch.rand(1, generator=g))
    turn = torch.tensor([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
    moved = Similarity(turn, torch.randn(3, generator=g), scale)
    arc = Cameras.cat([Cameras.orbit(1, 3.0, 10.0 + a, 40.0, 48, 64, azimuth_deg=10.0 * a) for a in range(5)])
    splats = ball()
    expected = suited_path([arc], splats, 8, 64).transformed(moved).centers
    found = suited_path([arc.transformed(moved)], splats.transformed(moved), 8, 64).centers
    assert torch.allclose(found, expected, atol=2e-3 * max(scale, 1))


def test_the_video_is_h264_yuv420p_of_even_size(tmp_path):
    import av

    path = Cameras.orbit(5, 2.0, 10.0, 50.0, 34, 26)
    frames = list(render_frames(ball(), path, torch.tensor([1.0, 0, 0]), threads=1))
    assert torch.allclose(frames[0][0, 0], torch.tensor([1.0, 0, 0]))
    with video(tmp_path / "t.mp4") as add:
        for frame in frames:
            add(frame)
    with av.open(str(tmp_path / "t.mp4")) as container:
        stream = container.streams.video[0]
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
    assert len(decoded) == 5 and decoded[0].shape == (26, 34, 3)
    assert abs(decoded[0].astype(float) / 255 - frames[0].numpy()).mean() < 0.05


def test_the_contact_sheet_holds_photos_renders_and_frames():
    red, blue, green = (torch.zeros(30, 40, 3) + torch.tensor(c) for c in ([1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]))
    sheet = contact_sheet([Pair("a very long name indeed.jpg", red, blue, 20.0)], [green] * 9)
    assert sheet.shape[1] == PAGE_WIDTH
    for colour in ([1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]):
        share = (sheet - torch.tensor(colour)).abs().amax(-1).lt(0.02).float().mean()
        assert share > 0.05
    assert contact_sheet([], [green]).shape[1] == PAGE_WIDTH
