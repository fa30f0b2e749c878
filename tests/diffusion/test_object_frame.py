"""Reconstructed objects in the networks' frame, there and back."""

import math
from dataclasses import replace

import pytest
import torch

from diffusion.data.object_views import DISTANCE, FOV_DEG
from diffusion.object_frame import SILHOUETTE, framed_photos, looking_at_origin, object_frame
from diffusion.subject import FILL
from splat.cameras import Cameras
from splat.errors import InputError
from splat.gaussians import Splats
from splat.metrics import psnr
from splat.render import RenderOptions, render
from splat.similarity import Similarity
from splat.views import Views

SIDE = 200


def turn(angle: float) -> torch.Tensor:
    return torch.tensor([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])


WORLD = Similarity(turn(0.7), torch.tensor([3.0, -1.0, 2.0]), 2.5)  # the result's, from the networks' frame
GUESS = WORLD(torch.tensor([0.1, 0.1, 0.3]))  # of the object's centre, a little off


def protocol(azimuths: tuple[float, ...]) -> Views:
    """Photos by the protocol's cameras of something whose silhouette is as large as the protocol's are, in the middle."""
    cameras = Cameras.cat([Cameras.orbit(1, DISTANCE, 20.0, FOV_DEG, SIDE, SIDE, azimuth_deg=a) for a in azimuths])
    masks = torch.zeros(len(azimuths), SIDE, SIDE)
    half = round(FILL * SIDE / 2)
    masks[:, SIDE // 2 - half : SIDE // 2 + half, SIDE // 2 - 30 : SIDE // 2 + 30] = 1
    return Views(torch.ones(len(azimuths), SIDE, SIDE, 3), tuple(map(str, range(len(azimuths)))), cameras, masks)


def in_world(views: Views) -> Views:
    return replace(views, cameras=views.cameras.transformed(WORLD))


def test_the_frame_is_found_in_closed_form():
    frame = object_frame([in_world(protocol((0.0, 40.0, 80.0)))], GUESS)
    torch.testing.assert_close(frame.matrix(), WORLD.inverse().matrix(), atol=2e-3, rtol=0)
    upright = object_frame([in_world(protocol((0.0, 40.0, 80.0)))], GUESS, turned=False)
    torch.testing.assert_close(upright.rotation, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(upright(WORLD.translation), torch.zeros(3, dtype=torch.float64), atol=2e-3, rtol=0)


def test_one_photo_leaves_the_depth_to_the_guess():
    view = in_world(protocol((0.0,)))
    frame = object_frame([view], WORLD(torch.zeros(3)))
    torch.testing.assert_close(frame.matrix(), WORLD.inverse().matrix(), atol=2e-3, rtol=0)


def test_splats_come_back_from_the_frame_as_they_were():
    g = torch.Generator().manual_seed(1)
    splats = Splats(
        torch.randn(50, 3, generator=g), torch.randn(50, 4, generator=g), torch.randn(50, 3, generator=g) - 3,
        torch.randn(50, generator=g), torch.randn(50, 9, 3, generator=g),
    )  # fmt: skip
    frame = object_frame([in_world(protocol((0.0, 40.0, 80.0)))], torch.zeros(3))
    back = splats.transformed(frame).transformed(frame.inverse())
    for name in ("means", "log_scales", "opacity_logits", "sh"):
        torch.testing.assert_close(getattr(back, name), getattr(splats, name), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(back.covariances(), splats.covariances(), atol=1e-5, rtol=1e-4)


def blobs() -> Splats:
    g = torch.Generator().manual_seed(2)
    means = 0.4 * torch.nn.functional.normalize(torch.randn(300, 3, generator=g), dim=-1)
    sh = torch.randn(300, 1, 3, generator=g)
    return Splats(means, torch.tensor([1.0, 0, 0, 0]).repeat(300, 1), torch.full((300, 3), -2.7), torch.full((300,), 4.0), sh)


@pytest.mark.parametrize("background", [(1.0, 1.0, 1.0), (0.2, 0.4, 0.6)])
def test_a_photo_from_anywhere_becomes_the_network_s_view_of_the_same_rays(background):
    eye = torch.tensor([[1.5, 1.2, -2.4]])
    up = torch.tensor([0.3, 1.0, 0.1])  # rolled
    K = torch.tensor([[400.0, 0, 150], [0, 400, 90], [0, 0, 1]])  # off-centre, another lens
    camera = Cameras.look_at(eye, torch.tensor([0.15, -0.1, 0.2]), up, K, 280, 220)
    drawn = render(blobs(), camera, RenderOptions(background=torch.tensor(background)))
    photo = Views(drawn.rgb.clamp(0, 1), ("a",), camera.transformed(WORLD), drawn.alpha)
    pictures, cameras = framed_photos([photo], WORLD.inverse(), 64, background)
    assert pictures.shape == (1, 4, 64, 64) and bool((pictures[:, :3] <= pictures[:, 3:] + 1e-6).all())
    torch.testing.assert_close(cameras.centers, eye, atol=1e-4, rtol=0)
    torch.testing.assert_close(cameras.project(torch.zeros(1, 3))[0][0, 0], torch.tensor([32.0, 32.0]), atol=1e-3, rtol=0)
    true = render(blobs(), looking_at_origin(camera, 256), RenderOptions(background=torch.zeros(3)))
    small = torch.nn.functional.avg_pool2d(torch.cat([true.rgb, true.alpha[..., None]], -1).permute(0, 3, 1, 2), 4)
    assert float(psnr(pictures[0].permute(1, 2, 0)[..., :3], small[0].permute(1, 2, 0)[..., :3])) > 32
    assert float((pictures[0, 3] - small[0, 3]).abs().mean()) < 0.01


def test_what_has_no_frame_is_told():
    views = protocol((0.0, 40.0))
    with pytest.raises(InputError, match="a whole scene and the generators know objects alone"):
        object_frame([replace(views, masks=None)], torch.zeros(3))
    with pytest.raises(InputError, match="masks of all photos are empty"):
        object_frame([replace(views, masks=torch.zeros_like(views.masks))], torch.zeros(3))
    assert pytest.approx(1.06, abs=0.01) == SILHOUETTE
