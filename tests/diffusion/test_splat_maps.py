"""Gaussians laid out as pictures, and what known views say of the space along rays."""

import math

import pytest
import torch

from diffusion.data.object_views import DISTANCE
from diffusion.splat_maps import (
    HULL_CHANNELS,
    HULL_SAMPLES,
    MAP_CHANNELS,
    REACH,
    hull_features,
    plucker_rays,
    ray_features,
    seen_by,
    to_splats,
)
from diffusion.view_bank import cameras_at
from splat.render import RenderOptions, render

SIDE = 32
CAMERAS = cameras_at(torch.arange(4) * math.pi / 2, torch.full((4,), 0.3), SIDE)
FIRST = torch.tensor([True, False, False, False])


def disc(radius: float = 8.0, colour=(1.0, 0.5, 0.0)):
    """Premultiplied pictures [4, 4, SIDE, SIDE]: a disc in the middle of each."""
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    coverage = ((x - SIDE / 2) ** 2 + (y - SIDE / 2) ** 2 < radius**2).float()
    return torch.cat([torch.tensor(colour)[:, None, None] * coverage, coverage[None]]).expand(4, -1, -1, -1).contiguous()


def test_rays_pass_through_the_centre_of_their_camera():
    rays = plucker_rays(CAMERAS, 8)
    directions, moments = rays[:, :3], rays[:, 3:]
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(4, 8, 8))
    centers = CAMERAS.centers[:, :, None, None].expand_as(directions)
    torch.testing.assert_close(torch.cross(centers, directions, dim=1), moments)
    assert float((directions * moments).sum(1).abs().max()) < 1e-6


def test_rays_of_smaller_pictures_go_through_their_pixels():
    rays = plucker_rays(CAMERAS, 8)
    camera = CAMERAS[0].resized(8, 8)
    point = camera.centers[0] + 1.7 * rays[0, :3, 2, 5]
    in_cam = camera.cam_from_world[0, :3, :3] @ point + camera.cam_from_world[0, :3, 3]
    at = camera.K[0] @ in_cam
    torch.testing.assert_close(at[:2] / at[2], torch.tensor([5.5, 2.5]))


def test_gaussians_of_plain_maps_lie_on_their_pixels_at_the_distance_of_the_object():
    maps = torch.zeros(4, MAP_CHANNELS, SIDE, SIDE)
    splats = to_splats(maps, CAMERAS, disc(), FIRST)
    assert len(splats) == 4 * SIDE * SIDE
    in_cam = splats.means.reshape(4, -1, 3)[2] @ CAMERAS.cam_from_world[2, :3, :3].T + CAMERAS.cam_from_world[2, :3, 3]
    torch.testing.assert_close(in_cam[:, 2], torch.full((SIDE * SIDE,), DISTANCE))
    at = in_cam @ CAMERAS.K[2].T
    torch.testing.assert_close((at[:, :2] / at[:, 2:])[SIDE * 3 + 7], torch.tensor([7.5, 3.5]), rtol=0, atol=1e-3)
    torch.testing.assert_close(splats.quats[0], torch.tensor([1.0, 0, 0, 0]))


def test_the_known_view_starts_as_its_picture():
    """Opaque in the silhouette, in its colour, and nothing elsewhere."""
    splats = to_splats(torch.zeros(4, MAP_CHANNELS, SIDE, SIDE), CAMERAS, disc(), FIRST)
    own = splats[: SIDE * SIDE]
    out = render(own, CAMERAS[0], RenderOptions(background=torch.zeros(3)))
    inside = disc(6.0)[0, 3] > 0
    assert float(out.alpha[0][inside].mean()) > 0.9
    assert float(out.alpha[0][disc(11.0)[0, 3] == 0].max()) < 0.05
    colour = out.rgb[0][inside] / out.alpha[0][inside][:, None]
    torch.testing.assert_close(colour.mean(0), torch.tensor([0.98, 0.5, 0.02]), rtol=0, atol=0.02)


def test_what_a_known_view_shows_empty_is_carved_in_the_others():
    maps = torch.zeros(4, MAP_CHANNELS, SIDE, SIDE)
    maps[:, 10] = 6.0  # every pixel wants to be opaque
    free = to_splats(maps, CAMERAS, disc(), torch.zeros(4, dtype=torch.bool))
    carved = to_splats(maps, CAMERAS, disc(), FIRST)
    shown = [float(render(s, CAMERAS[0], RenderOptions()).alpha[0][disc(11.0)[0, 3] == 0].mean()) for s in (free, carved)]
    assert shown[0] > 0.9
    assert shown[1] < 0.2


def test_depth_stays_between_the_front_and_the_back_of_the_object():
    maps = torch.zeros(4, MAP_CHANNELS, SIDE, SIDE)
    for raw, depth in ((-50.0, DISTANCE - REACH), (50.0, DISTANCE + REACH)):
        maps[:, 0] = raw
        splats = to_splats(maps, CAMERAS, disc(), FIRST)
        in_cam = splats.means.reshape(4, -1, 3)[1] @ CAMERAS.cam_from_world[1, :3, :3].T + CAMERAS.cam_from_world[1, :3, 3]
        torch.testing.assert_close(in_cam[:, 2], torch.full((SIDE * SIDE,), depth))


def test_gradients_reach_every_channel_through_a_render():
    g = torch.Generator().manual_seed(0)
    maps = (0.3 * torch.randn(4, MAP_CHANNELS, SIDE, SIDE, generator=g)).requires_grad_()
    out = render(to_splats(maps, CAMERAS, disc(), FIRST), CAMERAS, RenderOptions(background=torch.rand(3, generator=g)))
    (out.rgb * torch.rand(out.rgb.shape, generator=g)).sum().backward()
    assert bool((maps.grad.abs().amax((0, 2, 3)) > 0).all())
    assert bool(maps.grad.isfinite().all())


class TestSeenBy:
    def test_points_take_the_colour_at_which_they_are_seen(self):
        colour, coverage = seen_by(torch.tensor([[0.0, 0, 0], [0.0, 0.6, 0]]), disc(), FIRST, CAMERAS)
        torch.testing.assert_close(colour[0], torch.tensor([1.0, 0.5, 0.0]))
        torch.testing.assert_close(coverage, torch.tensor([1.0, 0.0]))

    def test_edges_keep_their_colour(self):
        half = 0.4 * disc()  # coverage and colour of pixels that are partly covered
        colour, _ = seen_by(torch.zeros(1, 3), half, FIRST, CAMERAS)
        torch.testing.assert_close(colour[0], torch.tensor([1.0, 0.5, 0.0]))

    def test_all_known_views_must_see_a_point(self):
        pictures = disc()
        pictures[1] = 0
        both = torch.tensor([True, True, False, False])
        assert float(seen_by(torch.zeros(1, 3), pictures, both, CAMERAS)[1]) == 0
        assert float(seen_by(torch.zeros(1, 3), pictures, FIRST, CAMERAS)[1]) == 1

    def test_without_known_views_everything_may_be(self):
        colour, coverage = seen_by(torch.zeros(5, 3), disc(), torch.zeros(4, dtype=torch.bool), CAMERAS)
        assert bool((colour == 0.5).all()) and bool((coverage == 1).all())


class TestHull:
    def test_a_ray_from_the_side_is_inside_where_the_front_view_sees_the_disc(self):
        """The front view's disc is a cone: along the side view's middle ray it is left on both sides of the object."""
        hull = hull_features(disc(), FIRST, CAMERAS, 16)[:, :HULL_SAMPLES]
        middle = hull[1, :, 8, 8]
        assert float(middle[HULL_SAMPLES // 2]) == 1
        assert float(middle[0]) == 0 and float(middle[-1]) == 0
        assert bool((hull[0].amin(0) == hull[0].amax(0)).float().mean() > 0.8)  # its own rays are inside or outside as a whole

    def test_colours_are_those_of_the_picture(self):
        features = hull_features(disc(), FIRST, CAMERAS, 16)
        assert features.shape == (4, HULL_CHANNELS, 16, 16)
        torch.testing.assert_close(features[1, HULL_SAMPLES:, 8, 8], torch.tensor([1.0, 0.5, 0.0]), rtol=0, atol=0.02)

    def test_rays_and_hull_are_put_together(self):
        features = ray_features(disc(), FIRST, CAMERAS, 16)
        torch.testing.assert_close(features[:, :6], plucker_rays(CAMERAS, 16))
        torch.testing.assert_close(features[:, 6:], hull_features(disc(), FIRST, CAMERAS, 16))


@pytest.mark.parametrize("known", [[True, False, False, False], [False] * 4, [True] * 4])
def test_nothing_is_infinite(known):
    pictures = disc() * 0  # a picture without anything in it
    splats = to_splats(torch.zeros(4, MAP_CHANNELS, SIDE, SIDE), CAMERAS, pictures, torch.tensor(known))
    assert all(bool(x.isfinite().all()) for x in (splats.means, splats.opacity_logits, splats.sh, splats.log_scales))
